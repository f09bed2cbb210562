"""Run a shell command."""

from pydantic_ai import ModelRetry, RunContext

from punie.controls import plain
from punie.redaction import Redactor
from punie.tools._output import MAX_BYTES, MAX_ITEMS, clip, counted, fitting, printable
from punie.tools._process import MAX_OUTPUT_BYTES, Outcome, Spill, run
from punie.tools._sandbox import MAX_PROCESSES
from punie.tools._workspace import Workspace

MAX_LINE = 1_000
MIN_TIMEOUT_S = 0.1


async def run_command(ctx: RunContext[Workspace], command: str, timeout: float | None = None) -> str:  # noqa: ASYNC109 - for the model
    """Run a shell command in the workspace.

    Args:
        command: Command for bash.
        timeout: Seconds after which it is stopped.
    """
    if not command.strip():
        raise ModelRetry("command is empty. Give a shell command.")
    if "\0" in command or command != printable(command):
        raise ModelRetry("command holds a null byte or half a character. Leave it out.")
    ceiling = ctx.deps.command_timeout_s
    limit = ceiling if timeout is None else min(max(timeout, MIN_TIMEOUT_S), ceiling)
    return told(await ran(command, workspace=ctx.deps, timeout_s=limit), limit=limit, redact=ctx.deps.redact)


async def ran(command: str, *, workspace: Workspace, timeout_s: float) -> Outcome:
    """Run a command in the sandbox of a workspace; output too long to keep goes to a file of Punie's own."""
    sandbox = workspace.sandbox
    return await run(
        command,
        sandbox=sandbox,
        timeout_s=timeout_s,
        network=sandbox.network_for(command),
        save_to=Spill(sandbox.new_output, workspace.redact) if sandbox.state_dir else None,
    )


def told(outcome: Outcome, *, limit: float, redact: Redactor) -> str:
    """How a command ended and what it printed, as the model is told; `limit` are the seconds that it had."""
    restored = [f"put back as it was: {printable(str(path))}" for path in outcome.restored]
    return "\n".join([_header(outcome, limit=limit), *_lines(outcome, redact), *restored])


def _header(outcome: Outcome, *, limit: float) -> str:
    match outcome.stopped:
        case "timeout":
            return f"timed out after {limit:g} s (partial output kept)"
        case "output":
            return f"stopped at {MAX_OUTPUT_BYTES >> 30} GiB of output (partial output kept)"
        case "processes":
            return f"stopped at {MAX_PROCESSES} processes (partial output kept)"
    return f"exit {outcome.status} in {outcome.seconds:.1f} s"


def _lines(outcome: Outcome, redact: Redactor) -> list[str]:
    """The start and the end of the output. The end matters most: errors and summaries stand there."""
    lines, rest = _split(outcome.head, redact), _split(outcome.tail, redact)
    if not outcome.dropped:
        lines, rest = _split(outcome.head + outcome.tail, redact), []
        if len(fitting(lines)) == len(lines):
            return lines
    first = _half(lines)
    rest = lines[len(first) :] + rest
    last = _half(rest[::-1])[::-1]
    left = len(rest) - len(last)
    amounts = [counted(left, "line")] if left else []
    amounts += [counted(outcome.dropped, "byte")] if outcome.dropped else []
    where = _where(outcome)
    return [*first, f"... {' and '.join(amounts)} left out here; narrow with | grep, | head or | tail{where}", *last]


def _where(outcome: Outcome) -> str:
    """The file with the output, and how much of it that is: the file is bounded, and the disk may be full."""
    saved = outcome.save()
    try:
        kept = saved.path.stat().st_size if saved else 0
    except OSError:
        return ""
    if saved is None or not kept:
        return ""
    amount = "all" if saved.whole else f"the first {counted(kept, 'byte')}"
    return f"; {amount} of it: {printable(str(saved.path))}"


def _split(data: bytes, redact: Redactor) -> list[str]:
    lines = redact(plain(data.decode("utf-8", errors="replace"))).split("\n")  # before a line is cut within a secret
    lines = lines[:-1] if lines[-1] == "" else lines
    return [clip(line, limit=MAX_LINE) for line in lines]


def _half(lines: list[str]) -> list[str]:
    # With the header and the line between the two parts, that is what a result may have.
    return fitting(lines, limit=MAX_ITEMS // 2 - 1, room=MAX_BYTES // 2)
