"""What the cases need of a backend, and how they ask it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic_ai import ModelSettings
from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models import Model
from tests.backends.conformance.scenes import Scene

from punie.agent.failures import translated


async def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Talk:
    """A model, and what can be seen of it from behind."""

    model: Model
    sent: Callable[[], Mapping[str, Any]] | None = None
    """The settings of the last request under PydanticAI's names, as they reached a played service."""
    stopped: Callable[[], Awaitable[object]] = _nothing
    """Waits until the work behind a cancelled request has ended."""
    idle: bool = False
    """Whether `stopped` can be asked before anything runs, to learn how long it takes."""
    breaking: ModelSettings | None = None
    """Settings that make the next request fail."""

    def check_sent(self, **settings: object) -> None:
        """A service can only obey what it is told: that the settings reached it."""
        if self.sent is not None:
            found = self.sent()
            assert {name: found.get(name) for name in settings} == settings


class Backend(Protocol):
    """One row of the table."""

    key_name: str
    """The variable that a key comes from."""
    window: int | None
    """Tokens of context it must tell; None: the backend has them from elsewhere."""
    parallel: ModelSettings
    """What must be asked for to get two calls at once."""

    def open(self, scene: Scene) -> AbstractAsyncContextManager[Talk]:
        """The model, ready for a scene."""
        ...

    def endless(self) -> AbstractAsyncContextManager[Talk]:
        """The model in the middle of an answer that goes on for long."""
        ...

    def too_long(self) -> AbstractAsyncContextManager[Talk]:
        """The model before a prompt that it cannot take."""
        ...

    def failing(self) -> AbstractAsyncContextManager[Talk]:
        """The model, about to fail."""
        ...

    def unreachable(self) -> AbstractAsyncContextManager[Talk]:
        """The model with nobody behind it."""
        ...

    def wrong_key(self) -> AbstractAsyncContextManager[Talk]:
        """The model with a key that is refused."""
        ...

    def embedded(self, cache: Path) -> AbstractAsyncContextManager[Talk]:
        """The embedded model with its adapter, out of a cache of weights."""
        ...


async def ask(talk: Talk, scene: Scene, settings: ModelSettings | None = None) -> ModelResponse:
    """The whole reply. Raises PunieError for whatever keeps it from coming."""
    response, _ = await listen(talk, scene, settings)
    return response


async def listen(
    talk: Talk, scene: Scene, settings: ModelSettings | None = None, *, heard: asyncio.Event | None = None
) -> tuple[ModelResponse, list[str]]:
    """The reply and the pieces of its text. `heard` is set when the first of them is there."""
    pieces: list[str] = []
    given = _suitable(settings, talk.model)
    asked = model_request_stream(
        talk.model, list(scene.messages), model_settings=given, model_request_parameters=scene.parameters
    )
    try:
        async with asked as stream:
            async for event in stream:
                match event:
                    case (
                        PartStartEvent(part=TextPart(content=text))
                        | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
                    ) if text:
                        pieces.append(text)
                if heard is not None and pieces:
                    heard.set()
            return stream.get(), pieces
    except AgentRunError as error:
        raise translated(error) from error


def _suitable(settings: ModelSettings | None, model: Model) -> ModelSettings:
    """As the agent does it: some models of Claude take no settings of sampling and complain about them."""
    own = model.profile.get("anthropic_disallows_sampling_settings", False)
    left_out = {"temperature", "seed"} if own else set()
    return ModelSettings(**{name: value for name, value in (settings or {}).items() if name not in left_out})  # type: ignore[typeddict-item]
