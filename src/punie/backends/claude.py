"""Claude, through Anthropic's service: `claude` or `claude:MODEL`."""

import os
from collections.abc import Mapping

from pydantic_ai.models.anthropic import AnthropicModel, AnthropicModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider

from punie.config import AgentConfig
from punie.errors import ConfigError

DEFAULT_MODEL = "claude-sonnet-5-5"
KEY = "ANTHROPIC_API_KEY"


def build(name: str, config: AgentConfig, *, env: Mapping[str, str] = os.environ) -> AnthropicModel:
    """Build the model `name`, the default one when it is empty. Raises ConfigError when there is no key.

    Tools, instructions and the conversation so far are cached by the service: they stay the same within a turn.
    """
    del config
    key = env.get(KEY, "").strip()
    if not key:
        raise ConfigError("Claude needs a key.", f"Set {KEY} in the environment, or use --model local.")
    settings = AnthropicModelSettings(
        anthropic_cache=True, anthropic_cache_instructions=True, anthropic_cache_tool_definitions=True
    )
    provider = AnthropicProvider(api_key=key, base_url=env.get("ANTHROPIC_BASE_URL"))
    return AnthropicModel(name or DEFAULT_MODEL, provider=provider, settings=settings)
