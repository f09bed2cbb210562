"""Replace a piece of a file."""

from pydantic_ai import RunContext

from punie.tools._changes import apply, changed_lines, plan_edit
from punie.tools._files import Answer
from punie.tools._output import counted, listing, printable
from punie.tools._workspace import Workspace


def edit_file(ctx: RunContext[Workspace], path: str, old: str, new: str) -> str:
    """Replace exact text in a file.

    Args:
        path: Path from the workspace root.
        old: Text to replace, exactly as in the file and found only once.
        new: Text to put there.
    """
    change = plan_edit(ctx.deps, path, old=old, new=new)
    if isinstance(change, Answer):
        return change.text
    refusal = apply(ctx.deps, change)
    if refusal is not None:
        return refusal.text
    count, first = changed_lines(change)
    header = f"edited {printable(change.relative)}: {counted(count, 'line')} changed at line {first}"
    return listing(header, change.diff, narrow="read the rest with read_file")
