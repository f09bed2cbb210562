"""`<think>` in a text: what a model says to itself is shown, and is no part of its answer and calls no tool."""

import re
from dataclasses import dataclass, field

_OPENINGS = ("<think>", "<thinking>", "<|begin_of_thought|>", "[THINK]")
_OPEN = r"(?:<think(?:ing)?>|<\|begin_of_thought\|>|\[THINK\])"
_CLOSE = r"(?:</think(?:ing)?>|<\|end_of_thought\|>|\[/THINK\])"
_WHOLE = re.compile(
    rf"\A\s*+(?:{_OPEN}(?P<inside>.*?)(?:{_CLOSE}|\Z)|(?P<before>(?:(?!{_OPEN}).)*?){_CLOSE})", re.DOTALL
)
_BEGIN = re.compile(rf"\A\s*{_OPEN}")
_END = re.compile(_CLOSE)
_LONGEST_CLOSE = len("<|end_of_thought|>")


def without_thinking(text: str) -> tuple[str, str]:
    """(what was thought, what was said). A template may have opened the thinking, so its end alone counts too."""
    thought: list[str] = []
    while match := _WHOLE.match(text):
        thought.append((match["inside"] if match["inside"] is not None else match["before"]).strip())
        text = text[match.end() :].lstrip()
    return "\n".join(thought), text


@dataclass
class Thoughts:
    """Parts a stream that begins with thinking: what is thought, and what is said after it."""

    _held: str = ""
    _state: str = field(default="start")

    def feed(self, delta: str) -> tuple[str, str]:
        """(thought, said) as far as it is certain."""
        self._held += delta
        thought = ""
        if self._state == "start" and not self._begin():
            return "", ""
        if self._state == "thinking":
            thought = self._think()
        if self._state == "after" and (rest := self._held.lstrip()):
            self._held, self._state = rest, "saying"
        said, self._held = (self._held, "") if self._state == "saying" else ("", self._held)
        return thought, said

    def flush(self) -> tuple[str, str]:
        """What was held back at the end of the stream."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "thinking" else ("", held)

    def _begin(self) -> bool:
        """Whether it is known if the text begins with thinking."""
        if match := _BEGIN.match(self._held):
            self._held, self._state = self._held[match.end() :], "thinking"
            return True
        beginning = self._held.lstrip()
        if any(opening.startswith(beginning) for opening in _OPENINGS):
            return False
        self._state = "saying"
        return True

    def _think(self) -> str:
        if match := _END.search(self._held):
            thought = self._held[: match.start()]
            self._held, self._state = self._held[match.end() :], "after"
            return thought
        keep = min(len(self._held), _LONGEST_CLOSE)
        tail = self._held[len(self._held) - keep :]
        cut = len(self._held) - keep + (at if (at := max(tail.rfind("<"), tail.rfind("["))) >= 0 else keep)
        thought, self._held = self._held[:cut], self._held[cut:]
        return thought
