"""Stand-ins for models: a scripted one, and a real HTTP server on the loopback address that says what it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai import ModelSettings, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

ToolCall = tuple[str, Mapping[str, object] | str]
Reply = str | ToolCall | Sequence[ToolCall]


def scripted(*replies: Reply, seen: list[AgentInfo] | None = None) -> FunctionModel:
    """A model that streams the given replies one after the other: text, one call, or several calls."""
    rest = iter(replies)

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        del messages
        if seen is not None:
            seen.append(info)
        reply = next(rest)
        if isinstance(reply, str):
            for start in range(0, len(reply), 7):
                yield reply[start : start + 7]
            return
        for index, (name, arguments) in enumerate(_calls(reply)):
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            yield {index: DeltaToolCall(name, text)}

    return FunctionModel(stream_function=stream)


def _calls(reply: ToolCall | Sequence[ToolCall]) -> list[ToolCall]:
    match reply:
        case (str() as name, arguments):
            return [(name, arguments)]  # type: ignore[list-item]
        case _:
            return list(reply)  # type: ignore[arg-type]


class Canned(Model):
    """A model that gives the responses it was made with, as they are: finish reason, details and all."""

    def __init__(self, *responses: ModelResponse) -> None:
        super().__init__()
        self._rest = iter(responses)

    @property
    def model_name(self) -> str:
        """Name of the stand-in."""
        return "canned"

    @property
    def system(self) -> str:
        """Name of its provider."""
        return "stub"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The next response."""
        return next(self._rest)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[object] | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """The next response, as events."""
        yield CompletedStreamedResponse(
            next(self._rest), model_request_parameters=model_request_parameters, replay_events=True
        )


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `close_early` drops the connection in the middle of the body."""

    body: bytes
    status: int = 200
    content_type: str = "text/event-stream"
    close_early: bool = False


@dataclass
class StubServer:
    """Answers the requests it gets in order, the last answer again and again, and keeps what was asked."""

    answers: Sequence[Answer]
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        path = lines[0].split()[1]
        if "/chat/completions" in path or "/messages" in path:
            self.requests.append((path, headers, json.loads(body or b"{}")))
            writer.write(_http(self.answers[min(len(self.requests), len(self.answers)) - 1]))
        else:  # what a server may be asked about itself
            writer.write(_http(Answer(b"{}", 404, "application/json")))
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _http(answer: Answer) -> bytes:
    length = len(answer.body) * (2 if answer.close_early else 1)
    head = (
        f"HTTP/1.1 {answer.status} Stub\r\ncontent-type: {answer.content_type}\r\n"
        f"content-length: {length}\r\nretry-after-ms: 1\r\nretry-after: 0\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + answer.body


@asynccontextmanager
async def serving(*answers: Answer) -> AsyncIterator[StubServer]:
    """Run a stub server on a free port."""
    stub = StubServer(answers)
    server = await asyncio.start_server(stub.handle, "127.0.0.1", 0)
    stub.port = server.sockets[0].getsockname()[1]
    async with server:
        yield stub


def sse(*events: Mapping[str, object], named: bool = False, done: bool = False) -> bytes:
    """Server-sent events; `named` writes the Anthropic form, `done` ends as OpenAI servers do."""
    text = "".join(
        (f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n" for event in events
    )
    return (text + ("data: [DONE]\n\n" if done else "")).encode()


def openai_chunks(text: str = "", *, call: ToolCall | None = None, finish: str | None = None) -> Answer:
    """A streamed chat completion that says `text`, or makes one call."""
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    delta: dict[str, object] = {"role": "assistant", "content": text}
    if call:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        delta = {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": function}],
        }
    reason = finish or ("tool_calls" if call else "stop")
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return Answer(
        sse(
            {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
            {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
            {**base, "choices": [], "usage": usage},
            done=True,
        )
    )


def claude_events(text: str = "", *, call: ToolCall | None = None) -> Answer:
    """A streamed message of the Anthropic API that says `text`, or makes one call."""
    usage = {"input_tokens": 11, "output_tokens": 7}
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "stub", "content": [], "usage": usage}
    block: dict[str, object] = {"type": "text", "text": ""}
    delta: dict[str, object] = {"type": "text_delta", "text": text}
    if call:
        block = {"type": "tool_use", "id": "t1", "name": call[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call[1])}
    stop = {"stop_reason": "tool_use" if call else "end_turn", "stop_sequence": None}
    return Answer(
        sse(
            {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
            named=True,
        )
    )
