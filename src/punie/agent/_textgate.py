"""What of a reply can be shown while it is written: prose at once, what may become a call only when it did not."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from punie import wire

_TAGS = (
    r"<tool_call>|<tools>|<function|<invoke |<start_function_call>|<minimax:|<[|\uff5c]|</s>"
    r"|\[TOOL_CALLS\]|\bfunctools\["
)
_LINES = r"^[ \t]*(?:\{|\[\s*(?:\{|\w{0,24}\Z))|^Action:"
_FENCE = r"^[ \t]*```(?:json5?|tool_\w+|tool|xml|python|py)?[ \t]*(?:\n\s*(?:[\[{<]|\w{0,24}\Z)|\Z)"
_BEGINNINGS = r"<[|\uff5c]?[\w=:]{0,20}\Z|\[[A-Z_]{0,11}\Z|^[ \t]*`{1,3}\w*\Z"
"""What may still become one of the others."""
_OTHER_LINES = ("functools[", "Action:", "print(")
_FENCES = re.compile(r"^[ \t]*```", re.MULTILINE)


@dataclass
class TextGate:
    """Lets the prose of one reply through as it is written and holds back what may become a call."""

    names: Sequence[str]
    _text: str = ""
    _shown: int = 0

    def feed(self, delta: str) -> str:
        """What can be shown now."""
        self._text += delta
        end = self._held_from()
        shown, self._shown = self._text[self._shown : end], end
        return shown

    def close(self) -> str:
        """What was held back, unless it was a call."""
        reply = wire.parse(self._text, names=self.names)
        if reply.broken and not reply.calls:
            return ""
        return reply.text[self._shown :] if reply.text.startswith(self._text[: self._shown].rstrip()) else ""

    def _held_from(self) -> int:
        """Where what may be a call begins, else the end of the text. A fence that closes another opens nothing."""
        at = self._shown
        while opening := self._opening.search(self._text, at):
            fence = opening[0].lstrip().startswith("```")
            if not fence or len(_FENCES.findall(self._text[: opening.start()])) % 2 == 0:
                return opening.start()
            at = opening.start() + opening[0].index("```") + 3
        return self._line_that_may_be_python()

    @cached_property
    def _opening(self) -> "re.Pattern[str]":
        python = rf"(?:{'|'.join(map(re.escape, self.names))})\(" if self.names else r"(?!)"
        lines = rf"^[ \t]*(?:print\(|\[)?{python}|{_FENCE}|^[ \t]*```\w*[ \t]*\n\s*{python}"
        return re.compile(f"{_TAGS}|{_LINES}|{lines}|{_BEGINNINGS}", re.MULTILINE)

    def _line_that_may_be_python(self) -> int:
        """Where the last line begins if it may become `read_file(...)`, else the end of the text."""
        start = max(self._text.rfind("\n") + 1, self._shown)
        line = self._text[start:].lstrip()
        held = bool(line) and any(name.startswith(line) for name in (*self.names, *_OTHER_LINES))
        return start if held else len(self._text)
