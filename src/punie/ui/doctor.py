"""`punie doctor`: what Punie needs on this machine, checked by using it, each problem with its cure."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from punie.backends import NO_ADAPTER
from punie.backends import _weights as weights
from punie.config import user_config_file
from punie.errors import PunieError
from punie.redaction import Redactor
from punie.ui._activity import duration_text
from punie.ui._canary import Canary, ask_canary
from punie.ui._checks import Finding, of_local, of_machine, of_setup
from punie.ui._clean import clean
from punie.ui._services import WINDOW_CURE, of_service
from punie.ui._setup import Setup, prepare
from punie.ui.options import Options

SECONDS = 180.0
"""How long the model has for its answer, its loading included."""

_MARKS = {"ok": "ok  ", "note": "note", "problem": "FAIL"}
_SLOW = 2.0
"""Tokens written a second below which an answer takes minutes."""
_TOOLS_CURE = (
    "Take a model that calls tools. Some servers have to be told: llama-server --jinja,"
    " vllm serve --enable-auto-tool-choice --tool-call-parser NAME."
)


@dataclass(frozen=True)
class Asked:
    """What of `punie doctor` was asked for."""

    quick: bool = False
    """Without a question to the model."""
    as_json: bool = False
    seconds: float = SECONDS
    bundle: Path | None = None
    """A new file for a report that can be sent to somebody."""
    session: str = ""
    """The beginning of the id of a conversation that goes into the bundle."""


@dataclass
class Result:
    """Everything that was found."""

    findings: list[Finding]
    canary: Canary | None = None

    @property
    def ok(self) -> bool:
        """Whether the configured model can run."""
        return not any(finding.kind == "problem" for finding in self.findings)

    def table(self) -> dict[str, object]:
        """The object that `--json` prints; its keys are stable."""
        from punie import __version__

        question = _measured(self.canary) if self.canary else None
        findings = [asdict(finding) for finding in self.findings]
        return {"version": __version__, "ok": self.ok, "findings": findings, "question": question}


def run(options: Options, asked: Asked | None = None) -> int:
    """Check everything, print it, and return 1 if the configured model cannot run."""
    asked = asked or Asked()
    if asked.bundle is not None:
        from punie.ui import bundle

        bundle.refuse_early(asked.bundle, session=asked.session)
    result = Result([])
    for finding in findings(options, asks=not asked.quick, seconds=asked.seconds, result=result):
        result.findings.append(finding)
        if not asked.as_json:
            _print(finding)
    if asked.as_json:
        sys.stdout.write(json.dumps(result.table(), indent=2) + "\n")
    if asked.bundle is not None:
        from punie.ui import bundle

        bundle.write(asked.bundle, options=options, result=result, session=asked.session)
    return 0 if result.ok else 1


def _print(finding: Finding) -> None:
    sys.stdout.write(clean(line_of(finding)) + "\n")
    for line in finding.cure.splitlines():
        sys.stdout.write(clean(f"      -> {line}") + "\n")
    sys.stdout.flush()


def line_of(finding: Finding) -> str:
    """What was found, without its cure."""
    return f"{_MARKS[finding.kind]}  {finding.subject:<10} {finding.said}"


def findings(
    options: Options, *, asks: bool = True, seconds: float = SECONDS, result: Result | None = None
) -> Iterator[Finding]:
    """Check one thing after the other, without secrets; what builds on something broken is left out.

    `asks`: the model a question, which it may take so many `seconds` for. How it did is put into `result`.
    """
    redact = Redactor(os.environ)
    for finding in _found(options, os.environ, asks=asks, seconds=seconds, result=result or Result([])):
        yield replace(finding, said=redact(finding.said), cure=redact(finding.cure))


def _found(
    options: Options, env: Mapping[str, str], *, asks: bool, seconds: float, result: Result
) -> Iterator[Finding]:
    yield from of_machine(env)
    try:
        setup = prepare(options, env=env)
    except PunieError as error:
        yield Finding("problem", "settings", error.cause, error.next_step)
        return
    yield Finding("ok", "settings", f"{user_config_file(env)}, model {setup.config.model}")
    yield from (Finding("ok", "settings", line) for line in (setup.sources if options.verbose else ()))
    yield from (Finding("note", "settings", notice) for notice in setup.notices)
    broken = False
    for finding in _for_model(setup, env):
        broken = broken or finding.kind == "problem"
        yield finding
    if asks and not broken:
        yield from _question(setup, seconds=seconds, result=result)
    if options.verbose and result.canary is not None:
        yield from (Finding("ok", "call", line) for line in result.canary.activity())
        yield Finding("ok", "answer", repr(result.canary.ended.answer))


def _for_model(setup: Setup, env: Mapping[str, str]) -> Iterator[Finding]:
    """All that a question to the model rests on."""
    yield from of_setup(setup, env)
    yield from of_service(setup, env)
    spec = setup.config.model.removesuffix(NO_ADAPTER)
    if spec.partition(":")[0] in {"local", "gguf", "mlx"}:
        yield from of_local(setup, spec)


def _question(setup: Setup, *, seconds: float, result: Result) -> Iterator[Finding]:
    try:
        canary = ask_canary(setup, _silent, limit_s=seconds)
    except PunieError as error:
        yield Finding("problem", "question", error.cause, error.next_step)
        return
    result.canary = canary
    yield _answer(canary, setup.config.model)
    if canary.answered:
        yield _window(canary)
        yield _speed(canary)


def _answer(canary: Canary, model: str) -> Finding:
    ended, seconds = canary.ended, duration_text(canary.ended.timing.total_s)
    said = repr(ended.answer.strip()[:200])
    if canary.right:
        return Finding("ok", "question", f"{model} called {canary.called} and answered right in {seconds}")
    if canary.answered and canary.called:
        return Finding(
            "note", "question", f"{model} runs, but answered wrong in {seconds}: {said}", "See all: punie models test"
        )
    if canary.answered:
        return Finding("problem", "question", f"{model} answers, but called no tool: {said}", _TOOLS_CURE)
    cause, _, cure = (ended.error or ended.stop_reason).partition("\n")
    if "tool" in cause.lower():
        cure = _TOOLS_CURE
    return Finding("problem", "question", cause, cure or "See all: punie models test")


def _window(canary: Canary) -> Finding:
    used = canary.ended.usage.input_tokens // max(canary.ended.turns, 1)
    if canary.window is None:
        return Finding("ok", "context", f"the server does not say; a small question took {used:,} tokens")
    said = f"{canary.window:,} tokens; a small question took {used:,}"
    return Finding("ok", "context", said) if used * 2 < canary.window else Finding("note", "context", said, WINDOW_CURE)


def _speed(canary: Canary) -> Finding:
    usage, timing = canary.ended.usage, canary.ended.timing
    reading = f"read {usage.input_tokens - usage.cached_tokens:,} tokens"
    if canary.read_per_s:
        reading += f" at {canary.read_per_s:,.0f} a second"
    writing = f"wrote {usage.output_tokens:,} at {canary.written_per_s or 0:,.1f} a second"
    parts = [reading + (f" ({usage.cached_tokens:,} reused)" if usage.cached_tokens else ""), writing]
    if canary.first_s is not None:
        parts.append(f"first words after {duration_text(canary.first_s)}")
    if timing.load_s:
        parts.append(f"loading took {duration_text(timing.load_s)}")
    if (canary.written_per_s or _SLOW) < _SLOW:
        return Finding("note", "speed", ", ".join(parts), "Take a smaller model, or one on another machine.")
    return Finding("ok", "speed", ", ".join(parts))


def _measured(canary: Canary) -> dict[str, object]:
    ended = canary.ended
    return {
        "model_id": canary.model_id,
        "right": canary.right,
        "stop_reason": ended.stop_reason,
        "answer": ended.answer,
        "tool_calls": [{"name": call.name, "outcome": call.outcome} for call in ended.tool_calls],
        "context_window": canary.window,
        "usage": asdict(ended.usage),
        "timing": {name: round(seconds, 4) for name, seconds in asdict(ended.timing).items()},
        "first_s": canary.first_s,
        "read_tokens_per_s": canary.read_per_s,
        "written_tokens_per_s": canary.written_per_s,
    }


_silent: Callable[[str, int, int], None] = weights.silent
