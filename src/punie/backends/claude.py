"""Claude, through Anthropic's service: `claude` or `claude:MODEL`."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from pydantic_ai import ModelSettings, RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider

from punie.backends import _keys, _refusals
from punie.backends._http import Client
from punie.backends._whole import whole
from punie.config import AgentConfig
from punie.errors import ConfigError

DEFAULT_MODEL = "claude-sonnet-5-5"
KEY = "ANTHROPIC_API_KEY"
SERVICE = "https://api.anthropic.com"


def build(
    name: str, config: AgentConfig, *, env: Mapping[str, str] = os.environ, http: Client | None = None
) -> "Claude":
    """Build the model `name`, the default one when it is empty. Raises ConfigError when there is no key.

    Tools, instructions and the conversation so far are cached by the service: they stay the same within a turn.
    """
    del config
    key = _keys.find(KEY, env)
    if not key:
        raise ConfigError("Claude needs a key.", f"{_keys.how_to_set(KEY)}\nOr use --model local.")
    url = env.get("ANTHROPIC_BASE_URL") or SERVICE
    client = AsyncAnthropic(
        api_key=key,
        base_url=url,
        max_retries=0,
        http_client=http or Client(local=_refusals.is_loopback(httpx2.URL(url).host), key_name=KEY),
    )
    settings = AnthropicModelSettings(
        anthropic_cache=True, anthropic_cache_instructions=True, anthropic_cache_tool_definitions=True
    )
    return Claude(name or DEFAULT_MODEL, provider=AnthropicProvider(anthropic_client=client), settings=settings)


class Claude(AnthropicModel):
    """The service's model, which takes no answer for whole that ended without saying why."""

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
