"""Reading a text file for a tool, with an answer in plain words where that fails."""

import codecs
from dataclasses import dataclass

from pydantic_ai import ModelRetry

from punie.tools._output import counted, nearest_paths, printable
from punie.tools._paths import Content, NotRegularFileError, OutsideWorkspaceError, relative_path
from punie.tools._workspace import Workspace

MAX_TEXT_BYTES = 8_000_000
SNIFFED_BYTES = 8_192
_MARKS = (  # the first two bytes of UTF-32 are those of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model is told instead of a file's content: the world said no."""

    text: str
    missing: bool = False


def load(workspace: Workspace, path: str, *, limit: int = MAX_TEXT_BYTES) -> Content | Answer:
    """The bytes of a file in the workspace. A path that leaves it raises ModelRetry."""
    try:
        content = workspace.tree.read(path, limit=limit)
    except OutsideWorkspaceError:
        raise outside(path) from None
    except (FileNotFoundError, NotADirectoryError):
        return missing(workspace, path)
    except (NotRegularFileError, IsADirectoryError):
        return Answer(_not_a_file(workspace, path))
    except OSError as error:
        return Answer(f"Cannot read {printable(path)}: {error.strerror or error}")
    refuse_unjudged(workspace, path, content.relative)
    return content


def refuse_unjudged(workspace: Workspace, path: str, relative: str) -> None:
    """ModelRetry if a link on the way was changed since the call was judged."""
    if not workspace.is_judged(path, relative):
        raise ModelRetry(f"{printable(path)} leads to another place than a moment ago. Try again.")


def outside(path: str) -> ModelRetry:
    """The refusal for a path that leaves the workspace."""
    return ModelRetry(f"{printable(path)} is outside the workspace. Use a path relative to the workspace root.")


def missing(workspace: Workspace, path: str) -> Answer:
    """No such file, with the paths most like it."""
    plain = relative_path(workspace.root, path)
    near = nearest_paths(plain, (entry.path for entry in workspace.files()))
    hint = f" Nearest: {', '.join(map(printable, near))}" if near else ""
    return Answer(f"No such file: {printable(plain)}.{hint}", missing=True)


def _not_a_file(workspace: Workspace, path: str) -> str:
    relative = workspace.tree.resolve(path)
    prefix = "" if relative == "." else f"{relative}/"
    inside = sum(entry.path.startswith(prefix) for entry in workspace.files())
    if not inside:
        return f"{printable(path)} is not a regular file."
    return f"{printable(relative)} is a directory with {counted(inside, 'file')}. Use list_files with glob={prefix}**"


def encoding_of(data: bytes) -> tuple[str, bytes]:
    """The encoding of a text by the mark it starts with, UTF-8 without one; and the mark."""
    return next(((name, mark) for mark, name in _MARKS if data.startswith(mark)), ("utf-8", b""))


def is_binary(data: bytes) -> bool:
    """Whether the start of a file looks like no text."""
    return b"\0" in data[:SNIFFED_BYTES] and encoding_of(data)[0] == "utf-8"


def decode(data: bytes, *, whole: bool = True) -> tuple[str, bool]:
    """The text, and whether every byte of it could be read. One that is not whole may end within a character."""
    encoding, mark = encoding_of(data)
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data[len(mark) :], final=whole), True
    except UnicodeDecodeError:
        return data[len(mark) :].decode(encoding, errors="replace"), False


def plain_ends(text: str) -> str:
    """The text with a newline for every kind of line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: a newline at the end starts no further line."""
    lines = plain_ends(text).split("\n")
    return lines[:-1] if lines[-1] == "" else lines
