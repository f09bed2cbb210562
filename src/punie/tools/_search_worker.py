"""Runs a regular expression over texts, in a process that can be killed when the expression does not end.

Started as a script with the interpreter's isolated mode, so it imports only the standard library. Reads frames from
standard input, a length in decimal on a line and then that many bytes: first the pattern, then one text per frame.
Answers each text with a line of matching line numbers.
"""

import re
import sys


def main() -> None:
    """Answer until the input ends."""
    pattern = re.compile(_frame() or b"")
    while (data := _frame()) is not None:
        matching = [str(number) for number, line in enumerate(data.split(b"\n"), 1) if pattern.search(line)]
        sys.stdout.write(" ".join(matching) + "\n")
        sys.stdout.flush()


def _frame() -> bytes | None:
    head = sys.stdin.buffer.readline()
    return sys.stdin.buffer.read(int(head)) if head else None


if __name__ == "__main__":
    main()
