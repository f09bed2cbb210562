"""A long conversation with the embedded model about a real package, with everything a request took written down.

    python -m tests.ui.conversation [--turns 30] [--package prompt_toolkit] [--window 4096] [--model local]

The package is copied from the environment it is installed in, and asked about by the names it defines. The window can
be taken smaller than the model's own, so that compaction comes sooner. Fails where a request is larger than the
window, where a turn ends in another way than with an answer, or where something that was said is no longer stored.
"""

import argparse
import ast
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse

from punie.agent import SessionStore, TurnEnded, create_agent, run_turn
from punie.agent.approval import approve_all
from punie.agent.events import Notice, ToolReturned
from punie.backends import build
from punie.config import AgentConfig, EngineOptions
from punie.tools import Workspace

ASKED = (
    "Where is {name} defined?",
    "Show me the code of {name}.",
    "What calls {name}?",
    "How many lines does {file} have?",
    "Explain what {name} in {file} is for.",
)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@dataclass
class Told:
    """What a conversation took. Tokens of the largest request with its reply, and seconds."""

    turns: int = 0
    calls: int = 0
    left_out: int = 0
    summed_up: int = 0
    largest: int = 0
    seconds: float = 0.0
    failed: list[str] = field(default_factory=list)


def copied(package: str, into: Path) -> Path:
    """A copy of an installed package's own files, as a project. SystemExit where there is none."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise SystemExit(f"No package {package} is installed.")
    shutil.copytree(places[0], into / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return into


def questions(root: Path) -> Iterator[str]:
    """Questions about what the files of a project define, spread over all of them."""
    defined = [
        (node.name, str(file.relative_to(root)))
        for file in sorted(root.rglob("*.py"))
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]
    step = max(len(defined) // 97, 1)
    for number in range(len(defined)):
        name, file = defined[number * step % len(defined)]
        yield ASKED[number % len(ASKED)].format(name=name, file=file)


async def converse(root: Path, store: SessionStore, *, turns: int, model: str, window: int | None) -> Told:
    """Have the conversation, stored as the chat would store it."""
    config = AgentConfig(model=model, engine=EngineOptions(context=window, prefix_cache=False))
    told, started = Told(), time.perf_counter()
    backend = build(model, config)
    agent = create_agent(config, model=backend, approve=approve_all)
    session, said = store.create(root), list[str]()
    session.begin(model=model, title="a long conversation")
    history: Sequence[ModelMessage] = ()
    for question, _ in zip(questions(root), range(turns), strict=False):
        said.append(question)
        async for event in run_turn(
            agent, question, workspace=Workspace(root), config=config, history=history, session=session
        ):
            match event:
                case Notice():
                    told.left_out += "left out" in event.text
                    told.summed_up += "summed up" in event.text
                case ToolReturned():
                    told.calls += 1
                case TurnEnded():
                    added = [m for m in event.messages[len(history) :] if isinstance(m, ModelResponse)]
                    taken = [reply.usage.input_tokens + reply.usage.output_tokens for reply in added]
                    told.largest = max([told.largest, *taken])
                    history, told.turns = event.messages, told.turns + 1
                    if event.stop_reason != "done":
                        told.failed.append(f"{question}: {event.stop_reason} {event.error or ''}")
                    say(f"{told.turns:>3}  {max(taken, default=0):>6} tokens  {question}")
                case _:
                    pass
    told.seconds = time.perf_counter() - started
    session.sync(history)
    session.close()
    stored = ModelMessagesTypeAdapter.dump_json(list(store.messages(session.id))).decode()
    told.failed += [f"not stored: {question}" for question in said if question not in stored]
    limit = window or backend.context_window or sys.maxsize
    if told.largest > limit:
        told.failed.append(f"a request of {told.largest} tokens in a window of {limit}")
    return told


def main() -> int:
    """Run it and say what it took; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--package", default="prompt_toolkit")
    parser.add_argument("--window", type=int, default=4096, help="tokens; 0 takes the model's own")
    parser.add_argument("--model", default="local")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = copied(given.package, Path(place) / "project")
        with SessionStore(Path(place) / "sessions") as store:
            told = asyncio.run(converse(root, store, turns=given.turns, model=given.model, window=given.window or None))
    say(
        f"{told.turns} turns, {told.calls} tool calls, largest request {told.largest} tokens with its reply, results "
        f"left out {told.left_out} times, summed up {told.summed_up} times, {told.seconds:.0f} s"
    )
    say("\n".join(told.failed) or "nothing failed")
    return 1 if told.failed else 0


if __name__ == "__main__":
    sys.exit(main())
