"""SIGINT in every state of an answer: what there was of it is kept, the exit code is 130, the session opens again.

    python -m tests.faults.interrupts [EVERY]

interrupts one `punie -p` in each state, and at every EVERYth commit of its session (1: all of them).
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from tests.backends.tiny import TEMPLATE, ScriptedEngine, byte_tokenizer
from tests.faults.ground import LEAK, Ground, Running, slow_commit
from tests.stubs import scripted

import punie.backends
from punie.backends._local import Loaded, LocalModel, Piece
from punie.wire import WHOLE, Wire

ASLEEP_S = 60.0
WRITE = ("write_file", {"path": "c.txt", "content": "sea\n"})


@dataclass(frozen=True)
class Case:
    """A punie in a state, and what it must leave: the words of an answer, and whether the turn had begun at all."""

    name: str
    model: Model | None = None
    hook: Callable[[int], None] | None = None
    reached: Callable[[Running], None] = lambda running: _heard(running)
    partial: str = ""
    begun: bool = True
    says: str = ""
    """What it says on the pipe while it ends."""


def _heard(running: Running) -> None:
    assert running.heard(), f"it ended before it came so far: {running.err.read_text()}"


def _there(path: Path) -> Callable[[Running], None]:
    def wait(running: Running) -> None:
        for _ in range(6_000):
            if path.exists():
                return
            time.sleep(0.01)
        raise AssertionError(f"{path} never appeared: {running.err.read_text()}")

    return wait


def _slow_load(told: int) -> None:
    def build(*_: object, **__: object) -> Model:
        os.write(told, b"l")
        time.sleep(ASLEEP_S)
        return scripted("Never.")

    punie.backends.build = build


class _Told:
    """A model that says on the pipe how far it is, then does not go on."""

    def __init__(self, *, before: int = -1, after: str = "") -> None:
        self.before, self.after, self.requests, self.told = before, after, 0, -1
        self.model = FunctionModel(stream_function=self._stream)

    def hook(self, told: int) -> None:
        self.told = told

    async def _stream(self, _: list[ModelMessage], __: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        self.requests += 1
        if self.requests == self.before:
            os.write(self.told, b"p")
            await asyncio.sleep(ASLEEP_S)
        if self.after:
            yield self.after
            await asyncio.sleep(0.05)
            os.write(self.told, b"d")
            await asyncio.sleep(ASLEEP_S)
        yield {0: DeltaToolCall(WRITE[0], json.dumps(WRITE[1]))}


class _Engine(ScriptedEngine):
    """A local engine that says on the pipe that it was asked, or that it has said something, and then hangs."""

    def __init__(self, told: int, *, text: str, ahead: bool) -> None:
        super().__init__()
        self.told, self.text, self.ahead = told, text, ahead

    def generate(self, prompt: Sequence[int], **named: Any) -> Iterator[Piece]:
        if named["max_tokens"] == 1 and not self.ahead:  # the beginning that is read while the user types
            yield Piece(finish="length", prompt_tokens=len(prompt))
            return
        yield from (Piece(self.text[at : at + 4], token_count=1) for at in range(0, len(self.text), 4))
        time.sleep(0.2)  # what was said is shown meanwhile
        os.write(self.told, b"e")
        if named["cancelled"].wait(ASLEEP_S):
            os.write(self.told, b"c")
        yield Piece(finish="cancelled", prompt_tokens=len(prompt))


def _local(directory: Path, *, text: str = "", load_s: float = 0.0, ahead: bool = False) -> Callable[[int], None]:
    """A local model that hangs while it is loaded, reads its instructions, reads the prompt, or after some words."""

    def hook(told: int) -> None:
        def load() -> Loaded:
            if load_s:
                os.write(told, b"l")
                time.sleep(load_s)
            engine = _Engine(told, text=text, ahead=ahead)
            return Loaded(engine, Wire(byte_tokenizer(directory), template=TEMPLATE, view=WHOLE), load_s=0.0)

        punie.backends.build = lambda *_, **__: LocalModel(load, name="tiny", context_window=100_000)

    return hook


def cases(ground: Ground, *, thorough: bool) -> Iterator[Case]:
    """One for each state but those of the session's commits."""
    yield Case("loading", None, _slow_load, begun=False)
    if thorough:  # nothing can break off a library that loads: it is given five seconds
        yield Case("loading on the engine's thread", None, _local(ground.base, load_s=ASLEEP_S))
    yield Case("reading ahead", None, _local(ground.base, ahead=True), says="c")
    yield Case("local prefill", None, _local(ground.base))
    yield Case("local decode", None, _local(ground.base, text="Half of an ans"), partial="Half of an ans")
    waiting = _Told(before=1)
    yield Case("prefill", waiting.model, waiting.hook)
    speaking = _Told(after="Half of an ans")
    yield Case("decode", speaking.model, speaking.hook, partial="Half of an ans")
    between = _Told(before=2)
    yield Case("between result and request", between.model, between.hook)
    mark = ground.project / "started"
    command = ("run_command", {"command": f"{LEAK}; trap '' TERM; (setsid sleep 1000 &); touch started; sleep 1000"})
    yield Case("tool", scripted(command, "Never."), reached=_there(mark))


def interrupted(ground: Ground, case: Case) -> list[str]:
    """Interrupt one punie in one state; what is wrong afterwards."""
    running = ground.start("-p", "go on", "--yolo", model=case.model, hook=case.hook)
    case.reached(running)
    running.send(signal.SIGINT)
    code = running.end()
    found = [] if code == 130 else [f"exit code {code}"]
    found += [] if case.says in running.rest else [f"it never said {case.says}"]
    out, err = running.out.read_text(), running.err.read_text()
    found += ["a traceback"] if "Traceback" in err else []
    found += [] if case.partial in out else [f"the partial answer is not there: {out!r}"]
    found += goes_on(ground, partial=case.partial, begun=case.begun)
    return [f"{case.name}: {each}" for each in [*found, *ground.faults()]]


def goes_on(ground: Ground, *, partial: str = "", begun: bool = True) -> list[str]:
    """Ask the next question in the same session; what is wrong with it."""
    asked: list[str] = []
    if begun:
        messages = ground.conversation()
        replies = [message for message in messages if isinstance(message, ModelResponse)]
        texts = [part.content for reply in replies for part in reply.parts if isinstance(part, TextPart)]
        asked += [] if partial in "".join(texts) else [f"the partial answer is not stored: {texts}"]
    arguments = ("-p", "and now?", "--yolo", *(("--continue",) if begun else ()))
    again = ground.start(*arguments, model=scripted(("run_command", {"command": "true"}), "Well."))
    code = again.end()
    if code or again.out.read_text() != "Well.\n":
        asked.append(f"the next question fails with {code}: {again.out.read_text()!r} {again.err.read_text()!r}")
    return asked


def at_commits(ground: Ground, *, every: int) -> Iterator[list[str]]:
    """Interrupt at the commits of a turn with tools, one after the other, until one runs without any."""
    number = 1
    while True:
        model = scripted(("run_command", {"command": LEAK}), WRITE, "All of it.")
        running = ground.start("-p", "go on", "--yolo", model=model, hook=slow_commit(number, 0.05))
        if not running.heard():
            running.end()
            return
        running.send(signal.SIGINT)
        code, out = running.end(), running.out.read_text()
        whole = code == 0 and out == "All of it.\n"  # it came after the last moment at which it could stop anything
        found = [] if code == 130 or whole else [f"exit code {code}: {running.err.read_text()}"]
        found += ["a traceback"] if "Traceback" in running.err.read_text() else []
        with ground.store() as store:
            begun = bool(store.list(ground.project))
        found += goes_on(ground, begun=begun)
        (ground.project / "c.txt").unlink(missing_ok=True)
        yield [f"commit {number}: {each}" for each in [*found, *ground.faults()]]
        number += every


def main(every: int) -> dict[str, object]:
    """Interrupt in every state."""
    faults: list[str] = []
    names: dict[str, float] = {}
    with Ground() as ground:
        for case in cases(ground, thorough=every == 1):
            started = time.monotonic()
            faults += interrupted(ground, case)
            names[case.name] = round(time.monotonic() - started, 2)
        commits = 0
        for found in at_commits(ground, every=every):
            commits += 1
            faults += found
    return {"seconds": names, "commits": commits, "faults": faults}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1), indent=1) + "\n")
