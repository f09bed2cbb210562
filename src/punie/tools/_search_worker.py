"""Runs a regular expression over texts, in a process that can be killed when the expression does not end.

Started as a script with the interpreter's isolated mode, so it imports only the standard library. Reads frames from
standard input, a length in decimal on a line and then that many bytes: first the pattern, then one text per frame.
Answers the pattern with `ok`, or `bad` and the end, and each text with a line of matching line numbers.
"""

import re
import sys


def main() -> None:
    """Answer until the input ends."""
    try:
        pattern = re.compile(_frame() or "")
    except (re.error, OverflowError, RecursionError):
        _answer("bad")
        return
    _answer("ok")
    while (text := _frame()) is not None:
        _answer(" ".join(str(number) for number, line in enumerate(text.split("\n"), 1) if pattern.search(line)))


def _answer(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _frame() -> str | None:
    head = sys.stdin.buffer.readline()
    return sys.stdin.buffer.read(int(head)).decode("utf-8", "replace") if head else None


if __name__ == "__main__":
    main()
