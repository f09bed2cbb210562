"""What `punie doctor` asks of a service before it asks the model: a key, a server that answers, a model it knows."""

import asyncio
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from punie.backends import _keys
from punie.errors import PunieError
from punie.ui._checks import Finding
from punie.ui._setup import Setup

_SECONDS = 15.0
"""How long a server may take to say what it is."""
_KEYS = {"claude": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
_SMALL_WINDOW = 8_192
"""Tokens: instructions, tools and a file or two take as many."""
WINDOW_CURE = "Start the server with a larger one (llama-server -c 32768, OLLAMA_CONTEXT_LENGTH=32768 ollama serve)."


def of_service(setup: Setup, env: Mapping[str, str]) -> Iterator[Finding]:
    """Nothing for a local model but whether a key for Claude is there, in case it is to be used."""
    kind, _, rest = setup.config.model.partition(":")
    if kind == "openai" and "@" in rest:
        yield from _server(rest, setup, env)
    elif kind == "openai":
        yield _key(kind, env, needed=True)
    else:
        yield _key("claude", env, needed=kind == "claude")


def _key(service: str, env: Mapping[str, str], *, needed: bool) -> Finding:
    """Whether there is one; what it is stays unsaid."""
    variable = _KEYS[service]
    if _keys.find(variable, env):
        where = "is set" if env.get(variable, "").strip() else "is in the keyring"
        return Finding("ok", service, f"{variable} {where}")
    if needed:
        return Finding("problem", service, f"{variable} is not set", _keys.how_to_set(variable))
    return Finding("note", service, f"{variable} is not set; only needed for --model {service}")


def _server(name: str, setup: Setup, env: Mapping[str, str]) -> Iterator[Finding]:
    try:
        yield from asyncio.run(_asked(name, setup, env))
    except PunieError as error:
        yield Finding("problem", "server", error.cause, error.next_step)


async def _asked(name: str, setup: Setup, env: Mapping[str, str]) -> list[Finding]:
    """What the server says about itself. Raises PunieError where nobody answers, or not as a model's server does."""
    from punie.backends import openai
    from punie.backends._http import Client, Patience
    from punie.backends._refusals import address, is_loopback

    patience = Patience(first_byte_s=_SECONDS, idle_s=_SECONDS, retries=0)
    probe = openai.build(name, setup.config, env=env)
    local = is_loopback(urlsplit(probe.base_url).hostname or "")
    sent = {"authorization": f"Bearer {probe.client.api_key}"}
    async with Client(local=local, key_name=openai.KEY, patience=patience) as http:
        response = await http.get(f"{probe.base_url.rstrip('/')}/models", headers=sent)
        model = openai.build(name, setup.config, env=env, http=http)
        facts = await model.meet() if isinstance(model, openai.Server) and response.is_success else None
    where = address(response.request.url)
    if facts is None:
        said = f"{where} answers (status {response.status_code}), but does not list its models"
        return [Finding("note", "server", said, "Check the address after @: it usually ends in /v1.")]
    kind = "" if facts.kind == "unknown" else f" ({facts.kind})"
    return [
        Finding("ok", "server", f"{where} answers{kind}"),
        *(Finding("note", "server", notice, "Name another one after `openai:`.") for notice in facts.notices),
        *_window(facts.context),
    ]


def _window(tokens: int | None) -> Iterator[Finding]:
    if tokens is not None and tokens < _SMALL_WINDOW:
        yield Finding("note", "window", f"{tokens:,} tokens: a file and a question may not fit", WINDOW_CURE)
