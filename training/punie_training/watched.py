"""A model that is watched, so that a backend that fails is not taken for a model that answers wrongly."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from punie.agent import failures
from punie.errors import ContextTooLong, Interrupted, LimitReached, PunieError

_OF_ONE_REQUEST = frozenset({400, 413, 422, 500})


class Watched(WrapperModel):
    """A model whose failures are told apart from its mistakes: of those every other task will come to the same end."""

    failure: PunieError | None = None
    status: int | None = None

    @property
    def of_one_request(self) -> bool:
        """Whether the server may dislike this one conversation only, such as one with a call that it cannot parse."""
        return self.status in _OF_ONE_REQUEST

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Stream an answer, and remember why none came."""
        self.failure = self.status = None
        try:
            async with super().request_stream(messages, model_settings, model_request_parameters, run_context) as reply:
                yield reply
        except (ModelAPIError, PunieError) as error:
            self._remember(error)
            raise

    def _remember(self, error: ModelAPIError | PunieError) -> None:
        own = error if isinstance(error, PunieError) else failures.translated(error)
        if not isinstance(own, ContextTooLong | LimitReached | Interrupted):
            self.failure = own
            self.status = error.status_code if isinstance(error, ModelHTTPError) else None
