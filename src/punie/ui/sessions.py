"""`punie sessions`: list, show, export, import, delete and prune stored conversations."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from punie.config import load_settings
from punie.errors import UsageError
from punie.ui._clean import clean
from punie.ui._kept import home_of, line_of, open_store
from punie.ui.options import ExportFormat, Options

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelRequestPart, ModelResponsePart

    from punie.agent.session import SessionStore


def run(
    action: str,
    names: Sequence[str],
    *,
    options: Options,
    everywhere: bool = False,
    form: ExportFormat | None = None,
    output: str | None = None,
) -> int:
    """Do one action of `punie sessions` and return the exit code."""
    with open_store(os.environ) as store:
        for notice in store.notices:
            sys.stderr.write(f"punie: {clean(notice)}\n")
        match action:
            case "show":
                sys.stdout.write(clean(as_markdown(store, _one(names))))
            case "export":
                form = form or form_of(Path(output or ""), "jsonl")
                export_to(store, _one(names), form=form, output=output)
            case "import":
                _import(store, _one(names), options.cwd)
            case "rm" | "delete":
                for name in [store.find(name).id for name in names or [_one(names)]]:
                    store.remove(name)
                    sys.stdout.write(f"deleted {name}\n")
            case "prune":
                _prune(store, options)
            case _:
                _list(store, None if everywhere else options.cwd)
    return 0


def _prune(store: "SessionStore", options: Options) -> None:
    """What happens at every start, now, and the disk gets its room back."""
    kept = load_settings(cwd=options.cwd, env=os.environ, flags={}).settings.sessions
    gone = store.prune(keep_days=kept.keep_days, keep=kept.keep)
    store.compact()
    sys.stdout.write(f"deleted {gone} of {gone + len(store.list())} sessions\n")


def _one(names: Sequence[str]) -> str:
    if len(names) != 1:
        raise UsageError("Name one session.", "`punie sessions list` shows them.")
    return names[0]


def _list(store: "SessionStore", workspace: Path | None) -> None:
    found = store.list(workspace)
    for info in found:
        where = f"  {home_of(info.workspace)}" if workspace is None else ""
        sys.stdout.write(clean(line_of(info) + where) + "\n")
    if not found:
        sys.stderr.write("punie: there are no sessions here; --all shows those of other directories\n")


def form_of(file: Path, otherwise: ExportFormat) -> ExportFormat:
    """How a file of this name is written."""
    by_suffix: Mapping[str, ExportFormat] = {".json": "json", ".jsonl": "jsonl", ".md": "markdown"}
    return by_suffix.get(file.suffix.lower(), otherwise)


def export_to(store: "SessionStore", name: str, *, form: ExportFormat, output: str | None) -> None:
    """Write a session to a new file, or to standard output. UsageError if that cannot be."""
    match form:
        case "markdown":
            text = clean(as_markdown(store, name))
        case "json":
            text = _document(store.export(name))
        case "jsonl":
            text = "".join(f"{line}\n" for line in store.export(name))
    if output is None:
        sys.stdout.write(text)
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(text)
    except OSError as error:
        raise UsageError(f"Cannot write {output}: {error.strerror}.", "Name a new file.") from error


def _document(lines: Iterable[str]) -> str:
    """The lines of an export as one object: the session's own fields, its `messages` and its `calls`."""
    found: dict[str, list[dict[str, object]]] = {"session": [], "message": [], "call": []}
    for line in map(json.loads, lines):
        found[line.pop("type")].append(line)
    messages = [line["message"] for line in found["message"]]
    return json.dumps({**found["session"][0], "messages": messages, "calls": found["call"]}, indent=2) + "\n"


def _lines_of(text: str) -> Sequence[str]:
    """The lines of an export; of a document, as they stood before they were put into one."""
    try:
        found = json.loads(text)
    except ValueError:
        return text.splitlines()
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        return text.splitlines()
    messages = [{"type": "message", "message": message} for message in found["messages"]]
    head = {name: value for name, value in found.items() if name not in {"messages", "calls"}}
    return [json.dumps(each) for each in ({**head, "type": "session"}, *messages)]


def _import(store: "SessionStore", name: str, workspace: Path) -> None:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {name}: {error}.") from error
    session, bad = store.import_lines(_lines_of(text), workspace=workspace)
    session.close()
    if bad:
        sys.stderr.write(f"punie: {bad} lines could not be read and were left out\n")
    sys.stdout.write(f"{session.id}\n")


def as_markdown(store: "SessionStore", name: str) -> str:
    """A session for people to read: what was said, and each tool call with its result."""
    info = store.find(name)
    head = f"# {info.title}\n\nSession {info.id} in {info.workspace}, model {info.model}\n"
    return "\n".join([head, *(text for message in store.messages(name) for text in _blocks(message))])


def _blocks(message: "ModelMessage") -> Iterator[str]:
    from pydantic_ai.messages import UserPromptPart

    from punie.agent._given import CHECKS, is_typed

    heading = "Checks" if CHECKS in (message.metadata or {}) else "Instructions"
    for part in message.parts:
        if isinstance(part, UserPromptPart) and not is_typed(message):
            yield f"{heading}\n\n{fenced(str(part.content))}"
        elif text := _block(part):
            yield text


def _block(part: "ModelRequestPart | ModelResponsePart") -> str:
    from pydantic_ai.messages import TextPart, ToolCallPart, ToolReturnPart, UserPromptPart

    match part:
        case UserPromptPart():
            said = part.content if isinstance(part.content, str) else "\n".join(map(str, part.content))
            return f"## You\n\n{said}\n"
        case TextPart(content=content):
            return f"## Punie\n\n{content}\n"
        case ToolCallPart():
            return f"`{part.tool_name}`\n\n{fenced(part.args_as_json_str())}"
        case ToolReturnPart():
            return fenced(part.model_response_str(wrap_if_error=False))
        case _:
            return ""


def fenced(text: str) -> str:
    """A block of its own, whatever backticks stand in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}\n"
