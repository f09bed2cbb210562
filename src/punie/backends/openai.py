"""Any server that speaks the OpenAI chat format: `openai:MODEL@URL`, without `@` the OpenAI service."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import AsyncOpenAI
from pydantic_ai import ModelSettings, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from punie.backends import _keys, _refusals, _servers
from punie.backends._http import Client
from punie.backends._notices import tell
from punie.backends._ollama import Ollama
from punie.backends._whole import whole
from punie.config import AgentConfig
from punie.errors import ConfigError, NetworkRefused

KEY = "OPENAI_API_KEY"
SERVICE = "https://api.openai.com/v1"


def build(name: str, config: AgentConfig, *, env: Mapping[str, str] = os.environ, http: Client | None = None) -> "Chat":
    """Build the model `MODEL` or `MODEL@URL`. Raises ConfigError for a bad name or address, or a missing key."""
    del config
    model, at, url = name.partition("@")
    if not model:
        raise ConfigError("openai: needs a model name.", "Write openai:MODEL or openai:MODEL@http://127.0.0.1:8080/v1.")
    if not at:
        return Chat(model, url=SERVICE, key=_service_key(env), http=http or Client(local=False, key_name=KEY))
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"'{url}' is not a server address.", f"Write openai:{model}@http://HOST:PORT/v1.")
    local = _refusals.is_loopback(parts.hostname)
    # The key must not travel where others can read it, and a proxy cannot reach this machine's own servers.
    key = _keys.find(KEY, env) if local or parts.scheme == "https" else ""
    return Server(model, url=url, key=key or _keys.NO_KEY, http=http or Client(local=local, key_name=KEY))


class Chat(OpenAIChatModel):
    """A model behind the chat format, which takes no answer for whole that ended without saying why."""

    profile_defaults = OpenAIModelProfile(openai_chat_streaming_requires_finish_reason=True)

    def __init__(self, name: str, *, url: str, key: str, http: Client) -> None:
        client = AsyncOpenAI(api_key=key, base_url=url, http_client=http, max_retries=0)
        super().__init__(name, provider=OpenAIProvider(openai_client=client), profile=self.profile_defaults)
        self._http = http
        self._warned: set[str] = set()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask and wait for the whole answer."""
        response = await super().request(messages, model_settings, model_request_parameters)
        self._compare(response.model_name)
        return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Stream an answer. Raises NetworkRefused when it stops in the middle, before a call in it is made."""
        asked = super().request_stream(messages, model_settings, model_request_parameters, run_context)
        async with whole(asked, httpx2.URL(self.base_url)) as response:
            yield response
            self._compare(response.model_name)

    def _compare(self, served: str | None) -> None:
        """Tell the user, once, when another model answered than the one asked for."""
        if served and served not in self._warned and not _servers.same_model(self.model_name, served):
            self._warned.add(served)
            tell(f"The server answered with {served}, not with {self.model_name}.")


class Server(Chat):
    """A server at an address of the user's own, asked what it is and what it can do before the first question."""

    profile_defaults = OpenAIModelProfile(
        openai_chat_streaming_requires_finish_reason=True,
        # Ollama and LM Studio read `max_tokens` only; the others read both.
        openai_chat_supports_max_completion_tokens=False,
    )
    facts: _servers.Facts | None = None

    def __init__(self, name: str, *, url: str, key: str, http: Client) -> None:
        super().__init__(name, url=url, key=key, http=http)
        self._asked = name
        self._meeting = asyncio.Lock()

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together, once the server has said; a name alone says nothing about a server."""
        return self.facts.context if self.facts else None

    async def meet(self) -> _servers.Facts | None:
        """Find out what the server is, unless it told already."""
        async with self._meeting:
            if self.facts is None:
                key = self.client.api_key
                self.facts = await _servers.discover(self._http, self.base_url, model=self._asked, key=key)
                if self.facts is not None:
                    self._take_up(self.facts)
            return self.facts

    def _take_up(self, facts: _servers.Facts) -> None:
        self._model_name = facts.model
        self._http.dialect = Ollama(facts.num_ctx) if facts.num_ctx else None
        self._warned.add(facts.announced)
        for notice in facts.notices:
            if notice not in self._warned:
                self._warned.add(notice)
                tell(notice)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask and wait for the whole answer."""
        await self.meet()
        return await super().request(messages, model_settings, model_request_parameters)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Stream an answer."""
        await self.meet()
        asked = super().request_stream(messages, model_settings, model_request_parameters, run_context)
        try:
            async with asked as response:
                yield response
        except NetworkRefused:
            self.facts = None  # it may come back with another model
            raise


def _service_key(env: Mapping[str, str]) -> str:
    key = _keys.find(KEY, env)
    if not key:
        raise ConfigError(
            "The OpenAI service needs a key.",
            f"{_keys.how_to_set(KEY)}\nOr name your own server: openai:MODEL@http://127.0.0.1:8080/v1.",
        )
    return key
