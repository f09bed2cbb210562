"""Files of one JSON object a line, read one by one, so that a set larger than memory can be gone through."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from punie.errors import UsageError

Record = dict[str, Any]
_CHUNK = 1 << 16
_DECODER = json.JSONDecoder()


def records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, object). Raises UsageError that names the file, and the line if there is one.

    A file that holds one array of objects is read too, as public sets often come; nothing but the object at hand and
    the piece of text it ends in is kept.
    """
    found = False
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = _first_character(file)
            for number, value in _array(file, path) if first == "[" else _lines(file, path):
                if not isinstance(value, dict):
                    raise UsageError(f"{path}:{number}: not a JSON object.", "Every row is one object: {...}")
                found = True
                yield number, value
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Name a JSON lines file.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason}.", "Save it as UTF-8 JSON lines.") from error
    if not found:
        raise UsageError(f"{path}:1: the file holds no row.", "It should hold one JSON object a line.")


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add an object on a line of its own, also after a line that was torn."""
    with path.open("a+b") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + json.dumps(record).encode() + b"\n")


def whole(path: Path) -> Iterator[Record]:
    """The objects of a file that is appended to; a torn line, and a file that is not there, are nothing."""
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield cast("Record", record)


def _first_character(file: TextIO) -> str:
    first = next((line.lstrip()[:1] for line in iter(lambda: file.readline(_CHUNK), "") if line.strip()), "")
    file.seek(0)
    return first


def _lines(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _corrupt(path, number, error) from error


def _array(file: TextIO, path: Path) -> Iterator[tuple[int, object]]:
    """The elements of one array, each with the line it begins on."""
    text, number = file.read(_CHUNK), 1
    start = text.index("[") + 1
    number, text = number + text[:start].count("\n"), text[start:]
    while True:
        rest = text.lstrip(" \t\r\n,")
        number, text = number + text[: len(text) - len(rest)].count("\n"), rest
        if text.startswith("]"):
            return
        try:
            value, end = _DECODER.raw_decode(text)
        except RecursionError as error:
            raise _corrupt(path, number, error) from error
        except ValueError as error:
            more = file.read(max(_CHUNK, len(text)))
            if not more:
                raise _corrupt(path, number, error) from error
            text += more
            continue
        yield number, value
        number, text = number + text[:end].count("\n"), text[end:]


def _corrupt(path: Path, number: int, error: ValueError | RecursionError) -> UsageError:
    return UsageError(f"{path}:{number}: not valid JSON: {error}.", "Mend or delete that line.")
