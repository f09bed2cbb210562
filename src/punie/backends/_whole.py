"""Streamed answers of services, taken only whole: neither garbled nor broken off."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import httpx2
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import (
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
)
from pydantic_ai.models import StreamedResponse

from punie.backends import _refusals
from punie.errors import ModelError

_GARBLED = (AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""How the SDKs, which build their objects without a check, fail over JSON of another shape."""

_Events = Callable[[], AsyncIterator[ModelResponseStreamEvent]]


@asynccontextmanager
async def whole(
    asked: AbstractAsyncContextManager[StreamedResponse], url: httpx2.URL
) -> AsyncIterator[StreamedResponse]:
    """Open a stream. It raises NetworkRefused where it stops before it said why, ModelError where it is no answer.

    Both come while it is read, before any call in it is made.
    """
    async with AsyncExitStack() as stack:
        try:
            response = await stack.enter_async_context(asked)
        except _GARBLED as error:
            raise _garbled(url) from error
        # The one place that sees an error of reading, and not also those of whoever reads.
        response._get_event_iterator = _checked(response, response._get_event_iterator, url)  # noqa: SLF001
        yield response


def _checked(response: StreamedResponse, read: _Events, url: httpx2.URL) -> _Events:
    async def events() -> AsyncIterator[ModelResponseStreamEvent]:
        try:
            async for event in read():
                if not _is_sound(event):
                    raise _garbled(url)
                yield event
        except ModelAPIError as error:
            if "without a `finish_reason`" not in error.message:
                raise
            raise _refusals.broken_off(url) from error
        except _GARBLED as error:
            raise _garbled(url) from error
        if response.finish_reason is None and not response.cancelled:
            raise _refusals.broken_off(url)

    return events


def _is_sound(event: ModelResponseStreamEvent) -> bool:
    """Whether text is text: the SDKs hand on whatever stands in its place."""
    match event:
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return isinstance(text, str)
        case PartStartEvent(part=ToolCallPart(tool_name=name)):
            return isinstance(name, str)
        case _:
            return True


def _garbled(url: httpx2.URL) -> ModelError:
    return ModelError(
        f"The answer of {_refusals.address(url)} is not in the format it should be in.",
        "Check the address after --model, and that the server speaks this format.",
    )
