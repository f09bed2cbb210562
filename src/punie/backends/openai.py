"""Any server that speaks the OpenAI chat format: `openai:MODEL@URL`, without `@` the OpenAI service."""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx2
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from punie.config import AgentConfig
from punie.errors import ConfigError

KEY = "OPENAI_API_KEY"
NO_KEY = "not-needed"
_TIMEOUT_S = httpx2.Timeout(600, connect=5)


def build(name: str, config: AgentConfig, *, env: Mapping[str, str] = os.environ) -> OpenAIChatModel:
    """Build the model `MODEL` or `MODEL@URL`. Raises ConfigError for a bad name or address, or a missing key."""
    del config
    model, at, url = name.partition("@")
    if not model:
        raise ConfigError("openai: needs a model name.", "Write openai:MODEL or openai:MODEL@http://127.0.0.1:8080/v1.")
    if not at:
        return OpenAIChatModel(model, provider=OpenAIProvider(api_key=_service_key(env)))
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"'{url}' is not a server address.", f"Write openai:{model}@http://HOST:PORT/v1.")
    local = is_loopback(parts.hostname)
    # The key must not travel where others can read it, and a proxy cannot reach this machine's own servers.
    key = env.get(KEY, "").strip() if local or parts.scheme == "https" else ""
    client = httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=not local)
    return OpenAIChatModel(model, provider=OpenAIProvider(url, api_key=key or NO_KEY, http_client=client))


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _service_key(env: Mapping[str, str]) -> str:
    key = env.get(KEY, "").strip()
    if not key:
        raise ConfigError(
            "The OpenAI service needs a key.",
            f"Set {KEY} in the environment, or name your own server: openai:MODEL@http://127.0.0.1:8080/v1.",
        )
    return key
