"""The lines of a file."""

from pydantic_ai import ModelRetry, RunContext

from punie.redaction import without_private_keys
from punie.tools._files import Answer, decode, is_binary, lines_of, load
from punie.tools._output import MAX_ITEMS, clip, counted, fitting, printable
from punie.tools._paths import Content
from punie.tools._workspace import Workspace

MAX_LINE = 1_000


def read_file(ctx: RunContext[Workspace], path: str, start: int = 1, end: int | None = None) -> str:
    """Read a file, or some of its lines.

    Args:
        path: Path from the workspace root.
        start: First line, from 1.
        end: Last line, included.
    """
    first = max(start, 1)
    if end is not None and end < first:
        raise ModelRetry(f"end={end} lies before start={start}. Give end as a line number at or after start.")
    content = load(ctx.deps, path)
    if isinstance(content, Answer):
        return content.text
    shown = printable(content.relative)
    if is_binary(content.data):
        return f"{shown} is a binary file of {counted(content.size, 'byte')}."
    text, readable = decode(content.data, whole=content.whole)
    lines = lines_of(without_private_keys(text))
    if content.whole:
        ctx.deps.remember(content.relative, content.data)
    if not lines:
        return f"{shown} is empty"
    if first > len(lines):
        return f"{shown} has {counted(len(lines), 'line')}; start={start} lies past the end."
    last = min(end or len(lines), len(lines))
    page = ctx.deps.redact("\n".join(lines[first - 1 : last][:MAX_ITEMS])).split("\n")
    return _page(content, page, first=first, last=last, count=len(lines), readable=readable)


def _page(content: Content, page: list[str], *, first: int, last: int, count: int, readable: bool) -> str:
    numbered = [f"{number}\t{clip(line, limit=MAX_LINE)}" for number, line in enumerate(page, first)]
    kept = fitting(numbered)
    reached = first + len(kept) - 1
    header = f"{printable(content.relative)} lines {first}-{reached} of {count}"
    more = [f"... {last - reached} more; read on with start={reached + 1}"] if reached < last else []
    return "\n".join([header, *kept, *more, *_notes(content, count, readable=readable)])


def _notes(content: Content, count: int, *, readable: bool) -> list[str]:
    notes = [] if readable else ["(not valid UTF-8: unreadable bytes are shown as \N{REPLACEMENT CHARACTER})"]
    if not content.whole:
        size = f"{content.size / 1e6:.0f} MB"
        notes.append(f"(only the first {len(content.data) / 1e6:.0f} MB of {size} can be read: {count} lines)")
    return notes
