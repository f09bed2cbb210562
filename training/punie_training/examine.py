"""One evaluation from start to end: build the suite, load one model, run every case, write the report."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic_ai.models import Model

from punie import backends
from punie.backends import _weights
from punie.backends._files import claimed
from punie.backends._local import Loaded, LocalModel
from punie.backends.catalogue import EMBEDDED, entry, split_name
from punie.backends.llamacpp import LlamaCpp
from punie.config import AgentConfig
from punie.wire import View, Wire
from punie_training import again, evaluate, report, suite
from punie_training.corpora import Split
from punie_training.generate import Studio, studios
from punie_training.recipe import Recipe
from punie_training.rss import forget_peak, resident_peak
from punie_training.tasks import Expect, Step, Task, Turn

Say = Callable[[str], None]
STANDARD_PROJECTS = ("dishka", "injector")
"""Public projects that define protocols, and an `Inject` of their own."""
MAX_TOKENS = 256
CANARY = Turn(
    "canary",
    "Find all classes that inherit from Protocol",
    (Step("find_subclasses", {"name": "Protocol"}),),
    "",
    Expect("words"),
)


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and where."""

    model: str
    split: Split
    out: Path
    cache_dir: Path
    adapter: Path | None = None
    """An adapter of the embedded model to use in place of the shipped one."""
    bare: bool = False
    """The embedded model without any adapter."""
    scale: float = 1.0
    concepts: int = 70
    again: Recipe | None = None
    """Ask the questions that this recipe trains on, in place of the suite; the split is `train` then."""
    data: Path = Path("training/data/train.jsonl")
    """Where those questions are."""


async def examine(plan: Plan, *, say: Say) -> Path:
    """Run the suite and return the path of the report for people."""
    opened = studios(plan.split, cache_dir=plan.cache_dir)
    if plan.again:
        cases = again.cases(plan.again, data=plan.data)
    else:
        cases = await suite.suite(plan.split, opened, scale=plan.scale, concepts=plan.concepts)
    # Answers are short, their lines are put in by Punie: a model that writes on and on has missed already.
    config = AgentConfig(max_tokens=MAX_TOKENS)
    model = build(plan, config)
    known = {**identity(plan, model, config), "suite": suite.fingerprint(cases)}
    plan.out.mkdir(parents=True, exist_ok=True)
    with claimed(plan.out):
        before = evaluate.stored(plan.out / "outcomes.jsonl", key=evaluate.key(known))
        forget_peak()
        run = partial(
            evaluate.evaluate,
            model=model,
            config=config,
            opened=opened,
            store=plan.out / "outcomes.jsonl",
            key=evaluate.key(known),
        )
        outcomes = await run(cases, on_progress=partial(_progress, say))
        standard = await run(standard_cases(opened))
        canary = await run((suite.Case("canary", Task("canary", opened[0].project, (CANARY,))),))
        passed = bool(canary[0].calls) and canary[0].first_call_right
        asked = len(outcomes) + len(standard) + len(canary)
        held = _peak_before(plan.out) if len(before) == asked else {"peak_bytes": resident_peak()}
        found = {**resources(plan), **held}
        return report.write(outcomes, plan.out, identity=known, standard=standard, canary=passed, resources=found)


def _peak_before(out: Path) -> Mapping[str, int]:
    """The memory of an evaluation that is only reported again, as its report had it."""
    try:
        found = json.loads((out / "report.json").read_bytes())["resources"]["peak_bytes"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {"peak_bytes": int(found)}


def resources(plan: Plan) -> Mapping[str, int]:
    """Bytes of the model and the adapter as they are stored, where they are files.

    A report adds the most memory that its process held: interpreter, oracles of the projects, model; not a server's.
    """
    adapter = _adapter(plan)
    weights = adapter / "adapters.safetensors" if adapter else None
    stored = {"model_bytes": _weights_of(plan), "adapter_bytes": weights}
    return {name: _bytes(path) for name, path in stored.items() if path}


def _weights_of(plan: Plan) -> Path | None:
    """The file or directory of the model; None for one that a service runs."""
    kind, _, rest = plan.model.partition(":")
    if _is_embedded(plan):
        return _weights.ensure_base(plan.cache_dir)
    if kind in {"mlx", "gguf"}:
        return Path(backends.split_adapter(rest)[0]).expanduser()
    if kind == "local":
        model = entry(split_name(rest)[0])
        return _weights.place_of(model, backends.engine_for(model, plan.cache_dir), plan.cache_dir)
    return None


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _is_embedded(plan: Plan) -> bool:
    spec, _, name = plan.model.partition(":")
    return spec == "local" and name in {"", EMBEDDED}


def _adapter(plan: Plan) -> Path | None:
    return plan.adapter or (None if plan.bare or not _is_embedded(plan) else _weights.shipped_adapter())


def build(plan: Plan, config: AgentConfig) -> Model:
    """The model of a plan; the embedded one also with another adapter, or with none."""
    if plan.adapter is None and not plan.bare:
        return backends.build(plan.model, config, cache_dir=plan.cache_dir)
    title = f"{EMBEDDED}+{_weights.adapter_hash(plan.adapter)}" if plan.adapter else EMBEDDED
    load = partial(_load, plan.cache_dir, plan.adapter)
    return LocalModel(load, name=title, context_window=entry(EMBEDDED).context_window, compact=True)


def _load(cache_dir: Path, adapter: Path | None) -> Loaded:
    started = time.monotonic()
    files = _weights.embedded_files(cache_dir, adapter=adapter)
    wire = Wire.load(files.tokenizer, template=files.template, view=View())
    engine = LlamaCpp(files.weights, context_window=files.context_window)
    return Loaded(engine, wire, load_s=time.monotonic() - started)


def identity(plan: Plan, model: Model, config: AgentConfig) -> Mapping[str, str]:
    """What a figure depends on, each as a name or a hash."""
    adapter = _adapter(plan)
    template = (adapter and _weights.template_of(adapter)) or _weights.shipped_template()
    file = entry(EMBEDDED).file if _is_embedded(plan) else None
    return {
        "model": model.model_name,
        "spec": plan.model,
        "base": file.sha256[:16] if file else plan.model,
        "adapter": _weights.adapter_hash(adapter) if adapter else "none",
        "template": digest(template),
        "settings": digest(config.model_dump_json()),
        "split": plan.split,
    }


def digest(text: str) -> str:
    """Sixteen hexadecimal digits that stand for the text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def standard_cases(opened: tuple[Studio, ...]) -> tuple[suite.Case, ...]:
    """The three standard queries, verbatim, on two public projects."""
    return tuple(
        suite.Case(
            f"standard-{studio.project}-{number}",
            Task("standard", studio.project, (Turn(f"standard/{number}", question, (), "", Expect("words")),)),
        )
        for studio in opened
        if studio.project in STANDARD_PROJECTS
        for number, question in enumerate(suite.STANDARD)
    )


def _progress(say: Say, done: int, total: int, outcome: evaluate.Outcome) -> None:
    if done % 10 == 0 or done == total:
        say(f"{done}/{total} {outcome.family} {outcome.total_s:.1f} s")
