"""`just bench`: what the main job takes on this machine, where the time goes, and what Punie adds to the engine.

Every figure is a median with the smallest and the largest run beside it. A warm run is a new conversation on a model
that is loaded and has read its instructions. The same prompts and the same number of tokens then go straight to the
engine, in the same order, so that what is left over is Punie's own share.
"""

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import RunContext
from pydantic_ai.usage import RunUsage

from punie.agent import TurnEnded, create_agent, run_turn
from punie.backends._local import LocalModel
from punie.backends._weights import default_cache_dir
from punie.backends.catalogue import EMBEDDED
from punie.config import AgentConfig, EngineOptions
from punie.errors import PunieError
from punie.tools import Workspace, toolset
from punie.wire import conversation, declarations
from punie_training import corpora

QUERY = "Find all classes that inherit from Protocol"
CLAUDE_CODE_S = 2.41
"""Claude Code on this query, as the seed tracker has it; not measured here."""
Prompt = tuple[int, ...]


@dataclass(frozen=True)
class Figure:
    """Median, smallest and largest of `n` measurements; seconds unless the name says otherwise."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Figure":
        """Summarise at least one value."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1], len(known))

    def __str__(self) -> str:
        return f"{self.median:8.3f}   {self.low:8.3f} .. {self.high:.3f}   n={self.n}"


@dataclass(frozen=True)
class Turn:
    """One run of the query, and the prompts and answer lengths that the engine saw."""

    total_s: float
    load_s: float
    prefill_s: float
    decode_s: float
    tools_s: float
    generations: tuple[tuple[Prompt, int], ...]
    answer: str


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write `bench.json` if asked to; `backends`, `training`, `safety` or `terminal` first
    measures that."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["training"]:
        from punie_training import bench_training  # it builds on this module

        return bench_training.main(given[1:])
    if given[:1] == ["backends"]:
        from punie_training import bench_backends  # it builds on this module

        return bench_backends.main(given[1:])
    if given[:1] == ["safety"]:
        from punie_training import bench_safety  # it builds on this module

        return bench_safety.main(given[1:])
    if given[:1] == ["terminal"]:
        from punie_training import bench_terminal  # it builds on this module

        return bench_terminal.main(given[1:])
    options = options_of(given, prog="just bench", about="Time the standard query on this machine.")
    figures: dict[str, Figure] = {}
    root = project_of(options.project, cache_dir=options.cache)
    say(f"{machine()}\nquery: {QUERY!r} on {root.name}, {options.runs} runs\n")
    for name in ("llamacpp", "mlx") if find_spec("mlx") else ("llamacpp",):
        runs = options.runs if name == "llamacpp" else max(3, options.runs // 4)
        figures |= asyncio.run(engine_figures(name, root=root, runs=runs, cache_dir=options.cache))
    figures |= process_figures(root, runs=max(3, options.runs // 2))
    for name, figure in figures.items():
        say(f"{name:<44}{figure}")
    ratio = figures["punie --help"].median / figures["python -c pass"].median
    say(f"\npunie --help is {ratio:.1f} times a bare Python; the seed's Claude Code figure is {CLAUDE_CODE_S} s.")
    if options.out:
        record = {"machine": machine(), "query": QUERY, "figures": {k: asdict(v) for k, v in figures.items()}}
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return 0


def options_of(argv: Sequence[str], *, prog: str, about: str) -> argparse.Namespace:
    """Runs, project, cache and where the figures go."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--runs", type=int, default=20, help="warm runs of the query")
    parser.add_argument("--project", type=Path, help="a directory instead of the pinned public project")
    parser.add_argument("--cache", type=Path, default=default_cache_dir(), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args(argv)


def project_of(given: Path | None, *, cache_dir: Path) -> Path:
    """The given directory, or the pinned public project."""
    if given:
        return given
    known = [p for p in corpora.manifest() if p.split == "test"]
    return next(iter(corpora.workspaces(known[:1], cache_dir=cache_dir).values()))


async def engine_figures(engine: str, *, root: Path, runs: int, cache_dir: Path) -> dict[str, Figure]:
    """Run the query warm on one local engine, then the same tokens on the engine alone."""
    config = AgentConfig()
    model = local_model(engine, cache_dir=cache_dir)
    workspace = Workspace(root)
    started = time.perf_counter()
    first = await one_turn(model, workspace=workspace, config=config)
    first_s = time.perf_counter() - started
    turns = [await one_turn(model, workspace=workspace, config=config) for _ in range(runs)]
    raw = [await replay(model, turns[0].generations) for _ in range(runs)]
    model.close()
    tokens = sum(count for _, count in turns[0].generations)
    decode = statistics.median(turn.decode_s for turn in turns)
    return {
        f"{engine}: first answer in a new process": Figure.of([first_s]),
        f"{engine}: of which load": Figure.of([first.load_s]),
        f"{engine}: warm query, whole": Figure.of(turn.total_s for turn in turns),
        f"{engine}: prefill": Figure.of(turn.prefill_s for turn in turns),
        f"{engine}: decode": Figure.of(turn.decode_s for turn in turns),
        f"{engine}: tools": Figure.of(turn.tools_s for turn in turns),
        f"{engine}: same tokens, engine alone": Figure.of(raw),
        f"{engine}: Punie's own share": Figure.of(turn.total_s - statistics.median(raw) for turn in turns),
        f"{engine}: decoded tokens/s": Figure.of([tokens / decode]),
    }


def local_model(engine: str, *, cache_dir: Path, options: EngineOptions | None = None) -> LocalModel:
    """The embedded model, with its adapter, on the engine with this name."""
    from importlib import import_module

    backend = import_module(f"punie.backends.{engine}")
    return backend.build_named(
        EMBEDDED, None, cache_dir=cache_dir, on_progress=lambda *_: None, options=options or EngineOptions()
    )


async def asked(model: Model, *, workspace: Workspace, config: AgentConfig) -> TurnEnded:
    """Ask the query in a new conversation. Raises PunieError when it is not answered."""
    agent = create_agent(config, model=model)
    ended: TurnEnded | None = None
    async for event in run_turn(agent, QUERY, workspace=workspace, config=config):
        if isinstance(event, TurnEnded):
            ended = event
    if ended is None or ended.exit_code:
        raise PunieError(f"The query was not answered: {ended and ended.error}.")
    return ended


async def one_turn(model: LocalModel, *, workspace: Workspace, config: AgentConfig) -> Turn:
    """Ask the query and keep what the engine was asked for."""
    ended = await asked(model, workspace=workspace, config=config)
    tools = await _declared(config, workspace)
    loaded = await model.loaded()
    generations = tuple(
        (loaded.wire.prompt(conversation(ended.messages[:at]), tools), message.usage.output_tokens)
        for at, message in enumerate(ended.messages)
        if isinstance(message, ModelResponse)
    )
    t = ended.timing
    return Turn(t.total_s, t.load_s, t.prefill_s, t.decode_s, t.tools_s, generations, ended.answer)


async def _declared(config: AgentConfig, workspace: Workspace) -> tuple[dict[str, object], ...]:
    context = RunContext(deps=workspace, model=TestModel(), usage=RunUsage())
    found = await toolset(config.tools).get_tools(context)
    return declarations([tool.tool_def for tool in found.values()])


async def replay(model: LocalModel, generations: Sequence[tuple[Prompt, int]]) -> float:
    """Seconds the engine alone, guessing ahead as in a query, takes for these prompts and numbers of tokens."""
    started = time.perf_counter()
    for prompt, tokens in generations:
        async for _ in model.continue_tokens(prompt, max_tokens=tokens, speculate=True):
            pass
    return time.perf_counter() - started


def process_figures(root: Path, *, runs: int) -> dict[str, Figure]:
    """Whole processes: a bare interpreter, the help text, and one headless answer."""
    punie = str(Path(sys.executable).with_name("punie"))
    return {
        "python -c pass": timed([sys.executable, "-c", "pass"], runs=runs),
        "punie --help": timed([punie, "--help"], runs=runs),
        "punie -p, new process": timed([punie, "-C", str(root), "-p", QUERY], runs=runs),
    }


def timed(command: Sequence[str], *, runs: int) -> Figure:
    """Wall time of a command that must succeed, after one run that does not count."""
    return Figure.of([_seconds(command) for _ in range(runs + 1)][1:])


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def machine() -> str:
    """What the figures belong to."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("punie", "xllamacpp", "pydantic-ai-slim"))
    return f"{platform.system()} {platform.machine()}, {_cores()} cores, Python {platform.python_version()}, {packages}"


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(text: str) -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
