"""`[[result]]` in a stream of text, and calls kept out of one."""

import re
from collections.abc import Sequence

from punie.wire._messages import CALL_OPEN, Message

RESULT = "[[result]]"
NOTHING_LOOKED_UP = " (nothing was looked up)"


def result_lines(messages: Sequence[Message]) -> tuple[str, ...]:
    """Return the item lines of the last tool result: all but its header line, or the header if it stands alone."""
    for message in reversed(messages):
        if message.role == "tool":
            lines = message.content.splitlines()
            return tuple(lines[1:] or lines)
    return ()


class Expander:
    """Replaces `[[result]]` in a stream of text by the exact lines, indented as a Markdown code block."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._block = "\n\n" + "\n".join(f"    {line}".rstrip() for line in lines) if lines else NOTHING_LOOKED_UP
        self._held = ""

    def feed(self, delta: str) -> str:
        """Return what can be shown now; a possible beginning of the marker is held back."""
        text = self._held + delta
        text = re.sub(r"\s*" + re.escape(RESULT), lambda _: self._block, text)
        keep = next((n for n in range(min(len(text), len(RESULT) + 1), 0, -1) if _may_begin(text[-n:])), 0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text

    def flush(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return held


def _may_begin(tail: str) -> bool:
    stripped = tail.lstrip()
    return tail[0] in " \n[" and RESULT.startswith(stripped)


def expand(text: str, messages: Sequence[Message]) -> str:
    """Return `text` with every `[[result]]` replaced from the last tool result in `messages`."""
    expander = Expander(result_lines(messages))
    return expander.feed(text) + expander.flush()


class CallFilter:
    """Keeps tool-call text out of a stream: gives prose as it comes, holds everything from `<tool_call>` on."""

    def __init__(self) -> None:
        self._held = ""
        self.in_call = False

    def feed(self, delta: str) -> str:
        """Return the prose that is certain not to be part of a call."""
        self._held += delta
        if self.in_call:
            return ""
        start = self._held.find(CALL_OPEN)
        if start >= 0:
            self.in_call = True
            prose, self._held = self._held[:start], self._held[start:]
            return prose
        keep = next((n for n in range(len(CALL_OPEN) - 1, 0, -1) if self._held.endswith(CALL_OPEN[:n])), 0)
        cut = len(self._held) - keep
        prose, self._held = self._held[:cut], self._held[cut:]
        return prose

    def flush(self) -> str:
        """Return held prose at the end of the stream; text of a call is left to `parse`."""
        held, self._held = self._held, ""
        return "" if self.in_call else held
