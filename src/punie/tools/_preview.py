"""What a tool call would do, for the person who is asked to approve it."""

from collections.abc import Mapping

from pydantic_ai import ModelRetry
from pydantic_ai.exceptions import ToolFailed

from punie.tools._changes import Change, plan_edit, plan_write
from punie.tools._files import Answer
from punie.tools._output import printable
from punie.tools._workspace import Workspace


def preview(workspace: Workspace, name: str, arguments: Mapping[str, object]) -> str | None:
    """The diff of an edit or the text of a command; None for tools that change nothing.

    An edit that cannot be made gives the reason instead. The content an edit was previewed on counts as read, so the
    edit is refused if the file changes before it is approved.
    """
    if name == "run_command":
        return _text(arguments, "command")
    if name not in {"edit_file", "write_file"}:
        return None
    try:
        change = _plan(workspace, name, arguments)
    except ModelRetry as refusal:
        return f"No change: {refusal.message}"
    return f"No change: {change.text}" if isinstance(change, Answer) else _diff(change)


def planned(workspace: Workspace, name: str, arguments: Mapping[str, object]) -> Change | None:
    """The file as it is and as a call would leave it; None if the call changes no file, or cannot. Records nothing."""
    if name not in {"edit_file", "write_file"}:
        return None
    try:
        change = _planned(workspace, name, arguments)
    except ModelRetry:
        return None
    return change if isinstance(change, Change) else None


def refuse_impossible(workspace: Workspace, name: str, arguments: Mapping[str, object]) -> None:
    """Raises ModelRetry or ToolFailed, with the reason, for an edit that cannot be made as things stand."""
    if name not in {"edit_file", "write_file"}:
        return
    change = _plan(workspace, name, arguments)
    if isinstance(change, Answer):
        raise ToolFailed(change.text)


def _plan(workspace: Workspace, name: str, arguments: Mapping[str, object]) -> Change | Answer:
    change = _planned(workspace, name, arguments)
    if name == "edit_file" and isinstance(change, Change) and change.before is not None:
        workspace.remember(change.relative, change.before)
    return change


def _planned(workspace: Workspace, name: str, arguments: Mapping[str, object]) -> Change | Answer:
    path = _text(arguments, "path")
    if name == "write_file":
        return plan_write(workspace, path, _text(arguments, "content"))
    return plan_edit(workspace, path, old=_text(arguments, "old"), new=_text(arguments, "new"))


def _text(arguments: Mapping[str, object], key: str) -> str:
    value = arguments.get(key, "")
    return value if isinstance(value, str) else ""


def _diff(change: Change) -> str:
    path = printable(change.relative)
    source = "/dev/null" if change.before is None else f"a/{path}"
    return "\n".join([f"--- {source}", f"+++ b/{path}", *change.diff])
