"""A local model as a PydanticAI model: messages to token ids, an engine on one thread, a stream of parts back."""

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from pydantic_ai import ModelProfile, ModelSettings, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettingName
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from punie import wire
from punie.backends._engine import CallGrammar, Engine, Loaded, Piece, Worker
from punie.backends._prefixes import conversation_key
from punie.backends._runtime import Job, Runtime
from punie.backends._stream import LocalStream
from punie.config import EngineOptions
from punie.errors import ContextTooLong

__all__ = ["Engine", "Loaded", "LocalModel", "Piece", "Worker"]

DEFAULT_MAX_TOKENS = 512
SMALLEST_ANSWER = 64
"""Tokens that must be left for the answer, or the conversation counts as too long."""


class LocalModel(Model[None]):
    """Runs an engine in this process. `load` is called on the worker thread: by `warm`, or by the first request.

    `loading` is a load that was begun on `worker` before this class was imported.
    """

    unsupported_settings: ClassVar[frozenset[ModelSettingName]] = frozenset(
        {
            "top_p",
            "top_k",
            "presence_penalty",
            "frequency_penalty",
            "logit_bias",
            "parallel_tool_calls",
            "tool_choice",
            "timeout",
            "extra_headers",
            "extra_body",
            "service_tier",
        }
    )

    def __init__(
        self,
        load: Callable[[], Loaded],
        *,
        name: str,
        context_window: int | None = None,
        compact: bool = False,
        settings: ModelSettings | None = None,
        options: EngineOptions | None = None,
        worker: Worker | None = None,
        loading: Future[Loaded] | None = None,
    ) -> None:
        # Announcements about what text in tags means would be noise for a small model.
        merged = ModelSettings(framing_announcement="never")
        merged.update(settings or {})
        profile = ModelProfile(context_window=context_window, supports_forced_tool_choice=False)
        super().__init__(settings=merged, profile=profile)
        self.compact = compact
        """Whether this is a small model that was trained with its own system text and needs no other."""
        self._name = name
        self._options = options or EngineOptions()
        self._runtime = Runtime(load, worker=worker or Worker(f"punie-{name}"), loading=loading)
        self._reported_load = False
        weakref.finalize(self, self._runtime.close)

    @property
    def model_name(self) -> str:
        """The model, with its adapter's hash: `smollm2-135m+punie@0123456789ab`."""
        return self._name

    @property
    def system(self) -> str:
        """The provider, as PydanticAI calls it."""
        return "local"

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together; of a file it is known once the file is loaded."""
        return self._runtime.context_window() or super().context_window

    def warm(self, system: str | None = None, tools: Sequence[ToolDefinition] = ()) -> None:
        """Start loading, and read the beginning that every prompt shares into the cache. Returns at once."""
        self._runtime.begin()
        if system or tools:
            first = (wire.Message("system", system),) if system else ()
            messages = (*first, wire.Message("user", ""))
            self._runtime.prefill(partial(self._beginning, messages, tools=tuple(tools)))

    def close(self) -> None:
        """End what runs and free the weights. The model cannot be used afterwards."""
        self._runtime.close()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Generate the whole response."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
            return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Generate, streaming. Leaving the context ends the generation. Raises ContextTooLong before it starts."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        loaded = await self.loaded()
        conversation = wire.conversation(messages)
        job = self._job(loaded, conversation, settings=settings, tools=tuple(parameters.declared_tool_defs.values()))
        generation = self._runtime.generate(loaded, job)
        try:
            yield LocalStream(
                model_request_parameters=parameters,
                name=self._name,
                generation=generation,
                lines=wire.result_lines(conversation),
                tool_names=tuple(parameters.declared_tool_defs),
                prompt_tokens=len(job.prompt),
                load_s=self._load_seconds(loaded),
                dialect=loaded.wire.dialect,
            )
        finally:
            generation.cancelled.set()

    async def count_tokens(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> RequestUsage:
        """Count the tokens of the prompt, template and tools included."""
        _, parameters = self.prepare_request(model_settings, model_request_parameters)
        loaded = await self.loaded()
        prompt = loaded.wire.prompt(wire.conversation(messages), _declarations(parameters))
        return RequestUsage(input_tokens=len(prompt))

    async def continue_tokens(
        self, prompt: Sequence[int], *, max_tokens: int, speculate: bool = False
    ) -> AsyncIterator[Piece]:
        """Continue token ids greedily with nothing around them: what the engine alone does, for benchmarks."""
        loaded = await self.loaded()
        generation = self._runtime.generate(loaded, Job(tuple(prompt), max_tokens=max_tokens, speculate=speculate))
        async for piece in generation.pieces():
            yield piece

    async def loaded(self) -> Loaded:
        """Wait for the weights. Raises what went wrong with them."""
        # Loading goes on when the one request that waits for it is cancelled: the next one needs it too.
        return await asyncio.shield(asyncio.wrap_future(self._runtime.loaded()))

    def _job(
        self,
        loaded: Loaded,
        conversation: Sequence[wire.Message],
        *,
        settings: ModelSettings | None,
        tools: Sequence[ToolDefinition],
    ) -> Job:
        given = settings or ModelSettings()
        asked = self._beginning(conversation, loaded, tools=tools)
        room = loaded.engine.context_window - len(asked.prompt)
        wanted = given.get("max_tokens") or DEFAULT_MAX_TOKENS
        if room < min(wanted, SMALLEST_ANSWER):
            raise ContextTooLong(
                f"The conversation has {len(asked.prompt)} tokens; {self._name} takes {loaded.engine.context_window}.",
                "Start a new session, or ask about a smaller part.",
            )
        return replace(
            asked,
            max_tokens=min(wanted, room),
            temperature=given.get("temperature") or 0.0,
            seed=given.get("seed") or 0,
            stop=tuple(given.get("stop_sequences") or ()),
            goes_on=any(message.role == "assistant" for message in conversation),
        )

    def _beginning(
        self, conversation: Sequence[wire.Message], loaded: Loaded, *, tools: Sequence[ToolDefinition]
    ) -> Job:
        """A job of one token: what reading the prompt takes, and nothing about the answer."""
        declared = wire.declarations(tools)
        return Job(
            loaded.wire.prompt(conversation, declared),
            max_tokens=1,
            grammar=call_grammar(loaded.wire.dialect, tools) if self._options.grammar else None,
            speculate=self._options.speculation,
            conversation=conversation_key(loaded.wire, conversation, declared) if loaded.prefixes else "",
        )

    def _load_seconds(self, loaded: Loaded) -> float:
        """What loading took, told once: with the first response."""
        seconds, self._reported_load = (0.0 if self._reported_load else loaded.load_s), True
        return seconds


def call_grammar(dialect: wire.Dialect, tools: Sequence[ToolDefinition]) -> CallGrammar | None:
    """What calls of these tools look like; None where the template teaches the model another dialect than JSON."""
    if not tools or dialect != "json":
        return None
    return CallGrammar(tuple((tool.name, json.dumps(tool.parameters_json_schema)) for tool in tools))


def _declarations(parameters: ModelRequestParameters) -> tuple[dict[str, Any], ...]:
    return wire.declarations(tuple(parameters.declared_tool_defs.values()))
