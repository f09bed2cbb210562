"""`just bench backends`: one model behind four backends, and what each lever of the engines in this process is worth.

Speeds are seen from the caller's side and so mean the same for an engine and for a server: the prompt is read until the
first piece comes, and the rest is decoding. Every figure is a median with the smallest and largest run beside it; a
share is the time without a lever over the time with it, run by run in turn.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart, UserPromptPart
from pydantic_ai.models import Model

from punie.backends._local import LocalModel
from punie.config import AgentConfig, EngineOptions
from punie.errors import PunieError
from punie.tools import Workspace
from punie_training import bench_servers
from punie_training.bench import QUERY, Figure, asked, local_model, machine, options_of, project_of, say

DECODED = 64
"""Tokens of one measured answer, at most."""
LINES = tuple(
    f"src/shop/{name}.py:{7 * number} class {name.title()}Repository(Protocol)"
    for number, name in enumerate(("order", "customer", "invoice", "parcel", "refund", "basket", "coupon"), start=3)
)
"""A tool's output: what an answer copies when nothing is put in place of `[[result]]`."""
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Probe:
    """One answer as the caller saw it. Seconds and tokens."""

    first_s: float
    rest_s: float
    prompt: int
    cached: int
    said: int

    @property
    def prefill(self) -> float:
        """Tokens read in a second."""
        return (self.prompt - self.cached) / self.first_s

    @property
    def decode(self) -> float:
        """Tokens written in a second, after the first."""
        return (self.said - 1) / self.rest_s


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write the figures as JSON if asked to."""
    options = options_of(argv, prog="just bench backends", about="Compare the backends on this machine.")
    root = project_of(options.project, cache_dir=options.cache)
    say(f"{machine()}\nquery: {QUERY!r} on {root.name}, {options.runs} runs\n")
    figures: Figures = {}
    for name, opened in backends(options.cache):
        with opened() as model:
            figures |= asyncio.run(compared(name, model, root=root, runs=options.runs))
    for engine in ("mlx", "llamacpp"):
        figures |= asyncio.run(levers(engine, root=root, runs=options.runs, cache_dir=options.cache))
    for name, figure in figures.items():
        say(f"{name:<62}{figure}")
    if options.out:
        record = {"machine": machine(), "query": QUERY, "figures": {k: asdict(v) for k, v in figures.items()}}
        options.out.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return 0


def backends(cache: Path) -> Iterator[tuple[str, Callable]]:
    """The four, each with what opens it for the length of a block."""
    yield "MLX in process", partial(in_process, "mlx", cache)
    yield "llama.cpp in process", partial(in_process, "llamacpp", cache)
    yield "llama.cpp over HTTP", partial(bench_servers.llama, cache)
    yield "mlx_lm.server over HTTP", partial(bench_servers.mlx_lm, cache)


@contextmanager
def in_process(engine: str, cache: Path, options: EngineOptions | None = None) -> Iterator[LocalModel]:
    """The embedded model with its adapter on an engine; nothing on disk makes it look faster than it is."""
    given = (options or EngineOptions()).model_copy(update={"prefix_cache": False})
    model = local_model(engine, cache_dir=cache, options=given)
    yield model
    model.close()


# --- the same for all four -------------------------------------------------------------------------------------------


async def compared(name: str, model: Model, *, root: Path, runs: int) -> Figures:
    """Speeds of reading and writing, the second turn's reading, and the whole query, warm."""
    config, workspace = AgentConfig(), Workspace(root)
    await whole_query(model, workspace=workspace, config=config)
    fresh, again = [], []
    for number in range(runs):
        first, messages = await probe(model, question(number))
        fresh.append(first)
        again.append((await probe(model, [*messages, ModelRequest(parts=[UserPromptPart("And then?")])]))[0])
    queries = [await whole_query(model, workspace=workspace, config=config) for _ in range(runs)]
    return {
        f"{name}: prefill, tokens/s": Figure.of(found.prefill for found in fresh),
        f"{name}: decode, tokens/s": Figure.of(found.decode for found in fresh),
        f"{name}: new prompt to first token, s": Figure.of(found.first_s for found in fresh),
        f"{name}: second turn to first token, s": Figure.of(found.first_s for found in again),
        f"{name}: tokens read again in the second turn": Figure.of(found.prompt - found.cached for found in again),
        f"{name}: whole query, warm, s": Figure.of(queries),
    }


def question(number: int) -> list[ModelMessage]:
    """A prompt of some hundred tokens that differs from every other one at its beginning."""
    text = "\n".join(LINES) + "\nSay in many words what could be in each of these files."
    return [ModelRequest(parts=[SystemPromptPart(f"Question {number}. Answer at length."), UserPromptPart(text)])]


async def probe(model: Model, messages: list[ModelMessage]) -> tuple[Probe, list[ModelMessage]]:
    """Ask once; the conversation with the answer."""
    started = time.perf_counter()
    first = 0.0
    settings = {"max_tokens": DECODED, "temperature": 0.0}
    async with model_request_stream(model, messages, model_settings=settings) as stream:  # type: ignore[arg-type]
        async for _ in stream:
            first = first or time.perf_counter()
        response = stream.get()
    ended, usage = time.perf_counter(), response.usage
    if usage.output_tokens < 2:
        raise PunieError("The answer is too short to be measured.")
    found = Probe(
        first - started, ended - first, usage.input_tokens, cached=usage.cache_read_tokens, said=usage.output_tokens
    )
    return found, [*messages, response]


async def whole_query(model: Model, *, workspace: Workspace, config: AgentConfig) -> float:
    """Seconds of the standard query in a new conversation. Raises PunieError when it is not answered."""
    return (await asked(model, workspace=workspace, config=config)).timing.total_s


# --- one lever after the other ---------------------------------------------------------------------------------------


async def levers(engine: str, *, root: Path, runs: int, cache_dir: Path) -> Figures:
    """What grammar, speculation and the reuse of what was read are worth on an engine in this process."""
    plain = EngineOptions(grammar=False, speculation=False)
    workspace, config = Workspace(root), AgentConfig()
    figures: Figures = {}
    with in_process(engine, cache_dir, plain) as without:
        with in_process(engine, cache_dir, EngineOptions(speculation=False)) as grammar:
            ask = [partial(whole_query, model, workspace=workspace, config=config) for model in (without, grammar)]
            figures |= await in_turn(f"{engine}: grammar, whole query", *ask, runs=runs)
        with in_process(engine, cache_dir, EngineOptions(grammar=False)) as speculation:
            prompt = await copying(speculation)
            say_it = [
                partial(copied, model, prompt, speculate=on) for model, on in ((without, False), (speculation, True))
            ]
            figures |= await in_turn(f"{engine}: speculation, decode of a copy", *say_it, runs=runs)
        numbers = iter(range(10**6))
        ask = [partial(second_turn, without, numbers, reuse=reuse) for reuse in (False, True)]
        figures |= await in_turn(f"{engine}: prefix reuse, second turn's prefill", *ask, runs=runs)
    return figures


async def in_turn(name: str, off: Callable, on: Callable, *, runs: int) -> Figures:
    """Both ways, one after the other, after a run of each that does not count."""
    pairs = [(await off(), await on()) for _ in range(runs + 1)][1:]
    return {
        f"{name}, off, s": Figure.of(a for a, _ in pairs),
        f"{name}, on, s": Figure.of(b for _, b in pairs),
        f"{name}, off/on": Figure.of(a / b for a, b in pairs),
    }


async def copying(model: LocalModel) -> tuple[int, ...]:
    """A prompt whose answer copies lines that stand in it: the answer has begun and goes on with the second line."""
    loaded = await model.loaded()
    listed = "\n".join(LINES)
    return tuple(loaded.wire.encode(f"The tool found:\n{listed}\n\nThe same lines again:\n{LINES[0]}\n"))


async def copied(model: LocalModel, prompt: tuple[int, ...], *, speculate: bool) -> float:
    """Seconds of decoding. Raises PunieError when something else than a copy came."""
    text, seconds = "", 0.0
    async for piece in model.continue_tokens(prompt, max_tokens=2 * DECODED, speculate=speculate):
        text += piece.text
        seconds = piece.decode_s or seconds
    if LINES[2] not in text:
        raise PunieError(f"The model did not copy: {text[:80]!r}.")
    return seconds


async def second_turn(model: LocalModel, numbers: Iterator[int], *, reuse: bool) -> float:
    """Seconds until the first token of a second turn; without reuse another conversation came in between."""
    _, messages = await probe(model, question(next(numbers)))
    if not reuse:
        await probe(model, question(next(numbers)))
    found, _ = await probe(model, [*messages, ModelRequest(parts=[UserPromptPart("And then?")])])
    return found.first_s
