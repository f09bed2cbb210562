"""Create a file, or replace all of it."""

from pydantic_ai import RunContext

from punie.tools._changes import apply, plan_write
from punie.tools._files import Answer, lines_of
from punie.tools._output import counted, printable
from punie.tools._workspace import Workspace


def write_file(ctx: RunContext[Workspace], path: str, content: str) -> str:
    """Create a file or replace its content.

    Args:
        path: Path from the workspace root.
        content: The whole text of the file.
    """
    change = plan_write(ctx.deps, path, content)
    if isinstance(change, Answer):
        return change.text
    refusal = apply(ctx.deps, change)
    if refusal is not None:
        return refusal.text
    return f"wrote {printable(change.relative)} ({counted(len(lines_of(content)), 'line')})"
