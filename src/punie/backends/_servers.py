"""What a server of one's own says about itself: which program it is, how much context a model has, what it can serve.

Nothing is taken from a list but the entry of the model that was asked for. The replies are those the servers document:
llama.cpp (`/props`), Ollama (`/api/show`, `/api/ps`), LM Studio (`/api/v0/models`), vLLM (`max_model_len`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from punie.backends._http import Client, Reply

Kind = Literal["llama.cpp", "lm studio", "mlx_lm", "ollama", "vllm", "unknown"]
DEFAULT_MODEL = "default_model"
"""How mlx_lm.server calls the model it was started with; for any other name it goes and loads that."""
WANTED_CONTEXT = 32_768
"""Asked of Ollama, whose own choice is 4,096 on most machines: less than a file and a question."""
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")
_LISTED = 5


@dataclass(frozen=True)
class Facts:
    """What is known about the server before the first question."""

    kind: Kind
    model: str
    """The name to ask for."""
    context: int | None = None
    """Tokens of prompt and answer together, as the server really runs the model."""
    num_ctx: int | None = None
    """The context to ask Ollama for; None: leave it as it is."""
    notices: tuple[str, ...] = ()
    announced: str = ""
    """The model that the notices say will answer."""


async def discover(http: Client, base_url: str, *, model: str, key: str) -> Facts | None:
    """Ask the server at `base_url`, which mostly ends in /v1; it need not understand any of the questions.

    None where it tells nothing, perhaps because it is not there yet.
    """
    base = base_url.rstrip("/")
    server = _Server(http, root=base.removesuffix("/v1"), key=key)
    listed = await server.get(f"{base}/models")
    if listed is None:
        return None
    entries = _entries(listed.json, "data")
    entry = next((e for e in entries if e.get("id") == model), {})
    owners = {str(e.get("owned_by", "")) for e in entries}
    if "llamacpp" in owners:
        return await _llama(server, model, entry=entry, names=_names(entries))
    if listed.server.startswith("BaseHTTP/") and owners <= {""}:
        return _mlx(model, known=bool(entry))
    found = _first_number(entry, _CONTEXT_KEYS)
    if "vllm" in owners or found is not None:
        kind: Kind = "vllm" if "vllm" in owners else "unknown"
        return Facts(kind, model, found, notices=_unknown_name(model, _names(entries)))
    return await _lm_studio(server, model) or await _ollama(server, model) or _plain(model, _names(entries))


def _plain(model: str, names: Sequence[str]) -> Facts:
    return Facts("unknown", model, notices=_unknown_name(model, names))


def _mlx(model: str, *, known: bool) -> Facts:
    if known or model == DEFAULT_MODEL:
        return Facts("mlx_lm", model)
    notice = f"mlx_lm.server has no model named {model}: asking the one it was started with ({DEFAULT_MODEL})."
    return Facts("mlx_lm", DEFAULT_MODEL, notices=(notice,))


async def _llama(server: "_Server", model: str, *, entry: Mapping[str, Any], names: Sequence[str]) -> Facts:
    facts = Facts("llama.cpp", model)
    if not entry and len(names) == 1 and not same_model(model, names[0]):
        # It answers to every name with the one model it has.
        notice = f"The server runs {names[0]}, not {model}: that is what answers."
        facts = replace(facts, notices=(notice,), announced=names[0])
    # With several models to route to, /props without a name is a placeholder that says 0.
    for query in ("", f"?model={model}"):
        props = await server.get(f"{server.root}/props{query}")
        settings = _table(props and props.json, "default_generation_settings")
        if context := _first_number(settings, ("n_ctx",)):
            return replace(facts, context=context)
    return replace(facts, context=_first_number(_table(entry, "meta"), ("n_ctx",)))


async def _lm_studio(server: "_Server", model: str) -> Facts | None:
    reply = await server.get(f"{server.root}/api/v0/models")
    if reply is None:
        return None
    entries = _entries(reply.json, "data")
    if not any("max_context_length" in e or "state" in e for e in entries):
        return None
    entry = next((e for e in entries if e.get("id") == model), None)
    if entry is None:
        return Facts("lm studio", model, notices=_unknown_name(model, _names(entries)))
    # A model that is not loaded yet is loaded with less than its maximum, and how much less is not said.
    return Facts("lm studio", model, _first_number(entry, ("loaded_context_length",)))


async def _ollama(server: "_Server", model: str) -> Facts | None:
    shown = await server.post(f"{server.root}/api/show", {"model": model})
    if shown is None:
        return None
    info = _table(shown.json, "model_info")
    trained = next((n for key, n in info.items() if key.endswith(".context_length") and isinstance(n, int)), None)
    if trained is None:
        return None
    running = await server.get(f"{server.root}/api/ps")
    loaded = max((n for e in _entries(running and running.json, "models") if (n := _loaded(e, model))), default=0)
    set_by_owner = _modelfile_context(shown.json)
    context = min(trained, set_by_owner or max(loaded, WANTED_CONTEXT))
    return Facts("ollama", model, context, num_ctx=context)


def _loaded(entry: Mapping[str, Any], model: str) -> int:
    names = {entry.get("name"), entry.get("model")}
    return (_first_number(entry, ("context_length",)) or 0) if {model, f"{model}:latest"} & names else 0


def _modelfile_context(shown: object) -> int | None:
    """`num_ctx` where the model's own file sets it; `parameters` has a name and a value on each line."""
    text = shown.get("parameters", "") if isinstance(shown, dict) else ""
    for line in str(text).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "num_ctx" and words[1].isdigit():
            return int(words[1])
    return None


def _unknown_name(model: str, names: Sequence[str]) -> tuple[str, ...]:
    if not names or any(same_model(model, name) for name in names):
        return ()
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (f"The server does not list {model}; it lists {', '.join(sorted(names)[:_LISTED])}{more}.",)


def same_model(asked: str, served: str) -> bool:
    """Whether two names mean one model: servers add a tag or a date, or answer with the path of a file."""
    a, b = (_plain_name(name) for name in (asked, served))
    return a == b or b.startswith((f"{a}-", f"{a}:")) or a.startswith(f"{b}:")


def _plain_name(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf").removesuffix(":latest")


# --- reading JSON that may be anything -------------------------------------------------------------------------------


def _table(value: object, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _entries(value: object, key: str) -> list[dict[str, Any]]:
    found = value.get(key) if isinstance(value, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(entry["id"]) for entry in entries if entry.get("id")]


def _first_number(table: Mapping[str, Any], keys: Sequence[str]) -> int | None:
    found: Iterator[object] = (table.get(key) for key in keys)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


@dataclass(frozen=True)
class _Server:
    http: Client
    root: str
    key: str

    async def get(self, url: str) -> Reply | None:
        return await self.http.ask("GET", url, key=self.key)

    async def post(self, url: str, body: Mapping[str, object]) -> Reply | None:
        return await self.http.ask("POST", url, key=self.key, body=body)
