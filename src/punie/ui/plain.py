"""`punie -p`: one answer on standard output, as text or JSON; what happens meanwhile goes to standard error."""

import asyncio
import json
import os
import select
import signal
import stat
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol, TextIO, assert_never

from punie.errors import PunieError, UsageError
from punie.redaction import Redactor
from punie.ui._activity import activity_line, call_text, check_line
from punie.ui._clean import clean
from punie.ui._verbose import Detailed
from punie.ui.options import Options, OutputFormat

if TYPE_CHECKING:
    from pydantic_ai import Agent

    from punie.agent.events import Event, TurnEnded
    from punie.agent.session import Session
    from punie.config import AgentConfig
    from punie.tools import Workspace
    from punie.ui._kept import Kept
    from punie.ui._setup import Setup

OUTPUT_CHARACTERS = 4000
"""Characters of a tool's output that JSON carries."""

_MAX_INPUT_BYTES = 16_000_000
_SECONDS_BEFORE_HINT = 3.0


@dataclass(frozen=True)
class About:
    """What the output says about the run besides its events."""

    model: str
    model_id: str
    session_id: str
    cwd: str


class Show(Protocol):
    """Something that draws the events of one turn."""

    def take(self, event: "Event") -> None:
        """Draw one event."""
        ...


def run(options: Options) -> int:
    """Answer the prompt of the command line and return the exit code."""
    prompt = full_prompt(options.prompt, stdin=sys.stdin)
    from punie.ui._kept import Kept
    from punie.ui._setup import prepare

    if options.resume == "":
        raise UsageError(
            "--resume needs an ID with -p.", "`punie sessions list` shows them; --continue takes the last."
        )
    setup = prepare(options, env=os.environ)
    for notice in (*(setup.sources if options.verbose else ()), *setup.notices):
        _note(sys.stderr, notice)
    spec = Redactor(os.environ)(setup.config.model)  # the address of a server may hold a password
    about = About(spec, spec, setup.session_id, str(setup.root))
    kept = Kept(setup)
    try:
        kept.start(options)
        return _answer_with(setup, prompt, options=options, about=about, kept=kept)
    except PunieError as error:
        if options.output_format != "text":
            _write(sys.stdout, json.dumps(_failure(about, error)))
        raise
    finally:
        kept.close()


def full_prompt(argument: str | None, *, stdin: TextIO | None) -> str:
    """Join the argument and what was piped in. Raises UsageError when both are empty."""
    piped = _piped(stdin, waiting=argument is not None).strip() if stdin is not None and not stdin.isatty() else ""
    question = (argument or "").strip()
    if not question and not piped:
        raise UsageError("There is nothing to answer.", 'Ask something: punie -p "where is main defined?"')
    if question and piped:
        return f"{question}\n\n<stdin>\n{piped}\n</stdin>"
    return question or piped


def _piped(stdin: TextIO, *, waiting: bool) -> str:
    """Read standard input to its end; say so when that takes a while, because the pipe may never be closed."""
    try:
        descriptor = stdin.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError):
        return stdin.read() if not stdin.closed else ""
    may_block = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
    if waiting and may_block and not select.select([descriptor], [], [], _SECONDS_BEFORE_HINT)[0]:
        _note(sys.stderr, "waiting for standard input to end; add </dev/null to go on without it")
    data = os.fdopen(descriptor, "rb", closefd=False).read(_MAX_INPUT_BYTES + 1)
    if len(data) > _MAX_INPUT_BYTES:
        raise UsageError(f"Standard input is longer than {_MAX_INPUT_BYTES // 1_000_000} MB.", "Pipe in less of it.")
    return data.decode("utf-8", errors="replace")


def _answer_with(setup: "Setup", prompt: str, *, options: Options, about: About, kept: "Kept") -> int:
    from punie.ui._progress import PreparationProgress
    from punie.ui._setup import assemble, load_model, open_workspace

    with PreparationProgress(sys.stderr) as on_progress:
        model = load_model(setup, on_progress)
        from punie.agent.approval import refuse  # these imports take time that the model uses for loading

        agent = assemble(setup, model=model, ask=refuse)
        session = kept.session()
        for notice in kept.notices():
            _note(sys.stderr, notice)
        session_id = session.id if session is not None else about.session_id
        about = replace(about, model_id=model.model_name, session_id=session_id)
        show = show_for(options.output_format, about=about, out=sys.stdout, err=sys.stderr, verbose=options.verbose)
        if options.verbose:
            _note(sys.stderr, f"model: {about.model} is {about.model_id}")
            _note(sys.stderr, f"session: {session.id}" if session is not None else "session: nothing is stored")
        workspace = open_workspace(setup)
        return answer(
            agent,
            prompt,
            workspace=workspace,
            config=setup.config,
            show=show,
            session=session,
            close=setup.extensions.close,
        )


def show_for(output_format: OutputFormat, *, about: About, out: TextIO, err: TextIO, verbose: bool = False) -> Show:
    """Return what draws the events in the asked format."""
    shows: Mapping[OutputFormat, Callable[[], Show]] = {
        "text": lambda: TextShow(out, err),
        "json": lambda: JsonShow(out, err, about=about),
        "stream-json": lambda: StreamShow(out, err, about=about),
    }
    show = shows[output_format]()
    return Detailed(show, err, calls=output_format != "text") if verbose else show


def answer(
    agent: "Agent[Workspace, str]",
    prompt: str,
    *,
    workspace: "Workspace",
    config: "AgentConfig",
    show: Show,
    session: "Session | None" = None,
    close: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run one turn to its end, drawing every event; SIGINT and SIGTERM stop it and keep what there is.

    `close` ends in the same event loop what was started for the turn.
    """

    async def run() -> int:
        try:
            return await _turn(agent, prompt, workspace=workspace, config=config, show=show, session=session)
        finally:
            if close is not None:
                await close()

    return asyncio.run(run())


async def _turn(
    agent: "Agent[Workspace, str]",
    prompt: str,
    *,
    workspace: "Workspace",
    config: "AgentConfig",
    show: Show,
    session: "Session | None",
) -> int:
    from pydantic_ai import CancellationToken

    from punie.agent.events import TurnEnded
    from punie.agent.loop import run_turn

    stopped: list[int] = []
    cancellation = CancellationToken()

    def stop(signal_number: int) -> None:
        if stopped:  # Asked twice: whatever holds the turn up is not worth waiting for.
            os._exit(128 + signal_number)
        stopped.append(signal_number)
        cancellation.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    code = 1
    async for event in run_turn(
        agent,
        prompt,
        workspace=workspace,
        config=config,
        history=session.messages if session is not None else (),
        cancellation=cancellation,
        session=session,
    ):
        show.take(event)
        if isinstance(event, TurnEnded):
            code = event.exit_code
    return 128 + stopped[0] if stopped else code


class TextShow:
    """The answer as text; one line on standard error for every tool that ran."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._calls: dict[str, str] = {}

    def take(self, event: "Event") -> None:
        """Draw one event."""
        from punie.agent import events

        match event:
            case events.ToolCalled():
                self._calls[event.id] = call_text(event.name, event.arguments)
            case events.ToolReturned():
                call = self._calls.pop(event.id, clean(event.name))
                line = activity_line(call, event.output, outcome=event.outcome, seconds=event.duration_s)
                _write(self._err, line)
            case events.Notice():
                _note(self._err, event.text)
            case events.TurnEnded():
                self._end(event)
            case events.CheckEnded():
                _write(self._err, check_line(event))
            case events.CheckStarted():
                pass  # How it ended is what matters where nobody watches.
            case events.Text() | events.TextReplaced() | events.Thinking() | events.UsageUpdated():
                pass  # The answer is printed when it is final; what was streamed may still be withdrawn.
            case _:
                assert_never(event)

    def _end(self, ended: "TurnEnded") -> None:
        if ended.answer.strip():
            _write(self._out, clean(ended.answer).strip("\n"))
        if ended.error:
            _note(self._err, ended.error)
        elif ended.stop_reason != "done":
            _note(self._err, f"stopped: {ended.stop_reason}")


class JsonShow:
    """One JSON object when the turn has ended."""

    def __init__(self, out: TextIO, err: TextIO, *, about: About) -> None:
        self._out = out
        self._err = err
        self._about = about

    def take(self, event: "Event") -> None:
        """Draw one event."""
        from punie.agent import events

        if isinstance(event, events.Notice):
            _note(self._err, event.text)
        elif isinstance(event, events.CheckEnded):
            _write(self._err, check_line(event))
        elif isinstance(event, events.TurnEnded):
            _write(self._out, json.dumps(result(self._about, event)))


class StreamShow:
    """One JSON object a line, as things happen; the last one holds what `json` would have printed."""

    def __init__(self, out: TextIO, err: TextIO, *, about: About) -> None:
        self._out = out
        self._err = err
        self._about = about
        self._line("session", asdict(about))

    def take(self, event: "Event") -> None:
        """Draw one event."""
        from punie.agent import events

        match event:
            case events.Text():
                self._line("text", {"text": event.delta})
            case events.Thinking():
                self._line("thinking", {"text": event.delta})
            case events.TextReplaced():
                self._line("text", {"text": event.text, "replaces": True})
            case events.ToolCalled():
                self._line("tool_call", {"id": event.id, "name": event.name, "arguments": dict(event.arguments)})
            case events.ToolReturned():
                fields = asdict(event)
                self._line("tool_result", {**fields, "output": event.output[:OUTPUT_CHARACTERS]})
            case events.UsageUpdated():
                self._line("usage", asdict(event))
            case events.CheckStarted():
                self._line("check_started", asdict(event))
            case events.CheckEnded():
                self._line("check_ended", {**asdict(event), "output": event.output[:OUTPUT_CHARACTERS]})
            case events.Notice():
                _note(self._err, event.text)
            case events.TurnEnded():
                self._line("done", result(self._about, event))
            case _:
                assert_never(event)

    def _line(self, kind: str, fields: Mapping[str, object]) -> None:
        _write(self._out, json.dumps({"type": kind, **fields}))


def result(about: About, ended: "TurnEnded") -> dict[str, object]:
    """The object that `--output-format json` prints; its keys are stable."""
    return {
        "answer": ended.answer,
        "model": about.model,
        "model_id": about.model_id,
        "session_id": about.session_id,
        "stop_reason": ended.stop_reason,
        "turns": ended.turns,
        "tool_calls": [
            {
                "name": call.name,
                "arguments": dict(call.arguments),
                "outcome": call.outcome,
                "output": call.output[:OUTPUT_CHARACTERS],
                "duration_s": round(call.duration_s, 4),
            }
            for call in ended.tool_calls
        ],
        "usage": asdict(ended.usage),
        "timing": {name: round(seconds, 4) for name, seconds in asdict(ended.timing).items()},
        "error": ended.error,
    }


def _failure(about: About, error: PunieError) -> dict[str, object]:
    """The same object for a run that ended before its first turn."""
    from punie.agent.events import Timing, TurnEnded, UsageUpdated

    nothing = UsageUpdated(input_tokens=0, output_tokens=0, cached_tokens=0)
    told = Redactor(os.environ)(str(error))
    return result(about, TurnEnded("error", "", (), 0, Timing(), nothing, error=told, exit_code=error.exit_code))


def _note(stream: TextIO, text: str) -> None:
    _write(stream, "punie: " + clean(text).strip().replace("\n", "\n  "))


def _write(stream: TextIO, line: str) -> None:
    stream.write(line + "\n")
    stream.flush()
