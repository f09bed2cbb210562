"""Glob patterns over workspace paths: `*`, `?`, `[...]`, `{a,b}` and `**`."""

import fnmatch
import re
from collections.abc import Callable

_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
MAX_ALTERNATIVES = 64


def compile_glob(pattern: str) -> Callable[[str], bool]:
    """A test for relative posix paths.

    A pattern without a slash is matched against the last component at any depth; one without wildcards also
    names everything below that directory.
    """
    plain = pattern.strip().removeprefix("./").strip("/")
    if plain in {"", "."}:
        return lambda path: True
    tests = [_compile_one(alternative) for alternative in _alternatives(plain)]
    return lambda path: any(test(path) for test in tests)


def _alternatives(pattern: str) -> list[str]:
    done: list[str] = []
    pending = [pattern]
    while pending:
        current = pending.pop()
        braces = _BRACES.search(current)
        if braces is None or len(done) + len(pending) > MAX_ALTERNATIVES:
            done.append(current)
            continue
        head, tail = current[: braces.start()], current[braces.end() :]
        pending += [head + choice + tail for choice in braces[1].split(",")]
    return done


def _compile_one(pattern: str) -> Callable[[str], bool]:
    if not any(character in pattern for character in "*?["):
        if "/" in pattern:
            return lambda path: f"{path}/".startswith(f"{pattern}/")
        return lambda path: f"/{pattern}/" in f"/{path}/"
    if "/" not in pattern and pattern != "**":
        name = _segment(pattern)
        return lambda path: name(path.rpartition("/")[2])
    segments = [None if part == "**" else _segment(part) for part in pattern.split("/")]
    if segments[-1] is None:
        segments.append(_segment("*"))
    return lambda path: _matches(segments, path.split("/"))


def _segment(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(fnmatch.translate(pattern))
    return lambda text: compiled.match(text) is not None


def _matches(segments: list[Callable[[str], bool] | None], parts: list[str]) -> bool:
    """Match left to right, going back only to the last `**`, so the time stays bounded."""
    at = part = 0
    star, resume = -1, 0
    while part < len(parts):
        test = segments[at] if at < len(segments) else False
        if test is None:
            star, resume = at, part
            at += 1
        elif test is not False and test(parts[part]):
            at, part = at + 1, part + 1
        elif star >= 0:
            resume += 1
            at, part = star + 1, resume
        else:
            return False
    return all(test is None for test in segments[at:])
