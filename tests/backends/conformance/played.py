"""Services that are played byte for byte."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pydantic_ai import ModelSettings
from pydantic_ai.models import Model
from tests.backends import services
from tests.backends.conformance import scenes
from tests.backends.conformance.dialects import OPENAI, Dialect
from tests.backends.conformance.scenes import Says, Scene
from tests.backends.conformance.talk import Talk
from tests.backends.servers import free_port
from tests.backends.services import Play, Service

from punie.backends import claude, openai
from punie.backends._http import Client, Patience
from punie.config import AgentConfig

HURRIED = Patience(wait_s=0.001, retries=1)
KEY = "sk-played"


class Rerouted(httpx2.AsyncHTTPTransport):
    """Takes requests for the service itself to this machine."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


@dataclass(frozen=True)
class Played:
    """A service of which every reply is written down."""

    window: int | None = None
    parallel = ModelSettings()

    def model(self, port: int) -> Model:
        """The model at a service that listens there."""
        raise NotImplementedError

    def plays(self, scene: Scene) -> Sequence[Play]:
        """The replies of a scene."""
        raise NotImplementedError

    def sent(self, service: Service) -> Mapping[str, Any]:
        """The last request's settings under PydanticAI's names, its results and their ids."""
        raise NotImplementedError

    @property
    def told(self) -> Mapping[str, Play]:
        """What it tells about itself, by path."""
        return {}

    @asynccontextmanager
    async def open(self, scene: Scene) -> AsyncIterator[Talk]:
        async with services.serving(*self.plays(scene), told=self.told) as service:
            yield Talk(self.model(service.port), lambda: self.sent(service))

    @asynccontextmanager
    async def _refusing(self, play: Play) -> AsyncIterator[Talk]:
        async with services.serving(play, told=self.told) as service:
            yield Talk(self.model(service.port))

    @asynccontextmanager
    async def endless(self) -> AsyncIterator[Talk]:
        gone = asyncio.Event()
        body = self.plays(scenes.ENDLESS)[0].body

        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked = await reader.readuntil(b"\r\n\r\n")
            if not asked.startswith(b"POST /v1/"):
                writer.write(b"HTTP/1.1 404 Played\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 Played\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
                writer.write(body[: 3 * len(body) // 4])
                await reader.read()  # the request's body, then nothing more until the client goes
                while await reader.read(1 << 16):
                    pass
                gone.set()
            writer.close()

        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        async with server:
            yield Talk(self.model(server.sockets[0].getsockname()[1]), stopped=gone.wait)

    def embedded(self, cache: Path) -> AbstractAsyncContextManager[Talk]:
        raise NotImplementedError

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[Talk]:
        yield Talk(self.model(free_port()))


@dataclass(frozen=True)
class PlayedChat(Played):
    """A service that speaks the chat format in a dialect of its own."""

    dialect: Dialect = OPENAI
    local: bool = True
    """Whether it is a server at an address of the user's own."""
    key_name = openai.KEY

    def model(self, port: int) -> Model:
        env = {openai.KEY: KEY}
        if self.local:
            http = Client(local=True, key_name=openai.KEY, patience=HURRIED)
            return openai.build(f"{self.dialect.model}@http://127.0.0.1:{port}/v1", AgentConfig(), env=env, http=http)
        http = Client(local=False, key_name=openai.KEY, patience=HURRIED, transport=Rerouted(port))
        return openai.build(self.dialect.model, AgentConfig(), env=env, http=http)

    def plays(self, scene: Scene) -> Sequence[Play]:
        return [self.dialect.play(says) for says in scene.says]

    @property
    def told(self) -> Mapping[str, Play]:
        return self.dialect.told

    def sent(self, service: Service) -> Mapping[str, Any]:
        body = service.asked[-1].json
        results = [message for message in body["messages"] if message["role"] == "tool"]
        body |= body.get("options", {})  # where Ollama's own format has them
        most = body.get("max_completion_tokens", body.get("max_tokens", body.get("num_predict")))
        named = {"max_tokens": most, "stop_sequences": body.get("stop")}
        told = {"results": [m["content"] for m in results], "ids": [m["tool_call_id"] for m in results]}
        return {**body, **named, **told}

    def too_long(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(self.dialect.too_long)

    def failing(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(self.dialect.failure)

    def wrong_key(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(self.dialect.wrong_key)


def _refused(status: int, kind: str, message: str) -> Play:
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return services.said(error, status)


@dataclass(frozen=True)
class PlayedClaude(Played):
    """Anthropic's service."""

    key_name = claude.KEY

    def model(self, port: int) -> Model:
        env = {claude.KEY: KEY, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}"}
        http = Client(local=True, key_name=claude.KEY, patience=HURRIED)
        return claude.build("", AgentConfig(), env=env, http=http)

    def plays(self, scene: Scene) -> Sequence[Play]:
        return [self._play(says) for says in scene.says]

    @staticmethod
    def _play(says: Says) -> Play:
        blocks = [services.text(says.text)] if says.text else []
        calls = [services.tool_use(name, **arguments) for name, arguments in says.calls]
        blocks += [{**call, "id": f"toolu_{index}"} for index, call in enumerate(calls)]
        stop = (
            "max_tokens" if says.cut else "stop_sequence" if says.stopped else "tool_use" if says.calls else "end_turn"
        )
        return services.claude(*blocks, stop=stop, cache_read_input_tokens=says.cached)

    @property
    def told(self) -> Mapping[str, Play]:
        return {"/v1/messages/count_tokens": services.said({"input_tokens": 11})}

    def sent(self, service: Service) -> Mapping[str, Any]:
        body = service.asked[-1].json
        blocks = [b for m in body["messages"] for b in m["content"] if isinstance(b, dict)]
        results = [block for block in blocks if block["type"] == "tool_result"]
        return {
            **body,
            "results": [_text_of(block["content"]) for block in results],
            "ids": [block["tool_use_id"] for block in results],
        }

    def too_long(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(
            _refused(400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")
        )

    def failing(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(_refused(500, "api_error", "Internal server error"))

    def wrong_key(self) -> AbstractAsyncContextManager[Talk]:
        return self._refusing(_refused(401, "authentication_error", "invalid x-api-key"))


def _text_of(content: object) -> object:
    return content[0]["text"] if isinstance(content, list) else content
