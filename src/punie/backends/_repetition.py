"""Notices a model that says the same thing over and over."""

_WINDOW = 4000
_PROBE = 40
_LINES = 4
_MIN_LINE = 3
_LONG_PERIOD = 20
_FEW, _MANY = 4, 12
_MANY_CHARACTERS = 240


class Repetition:
    """Fed with generated text; says when its end is one piece of text repeated.

    That is: four equal lines in a row, or the last characters being the same 20 or more characters four times, or
    a shorter piece so often that it fills 240 characters (a ruler or a row of zeros is shorter than that).
    """

    def __init__(self) -> None:
        self._tail = ""

    def feed(self, text: str) -> bool:
        """Whether the text repeats itself now."""
        self._tail = (self._tail + text)[-_WINDOW:]
        return self._equal_lines() or self._equal_pieces()

    def _equal_lines(self) -> bool:
        lines = self._tail.rsplit("\n", _LINES + 1)[-_LINES - 1 : -1]
        return len(lines) == _LINES and len(set(lines)) == 1 and sum(map(str.isalnum, lines[0])) >= _MIN_LINE

    def _equal_pieces(self) -> bool:
        tail = self._tail
        probe = tail[-_PROBE:]
        earlier = tail.rfind(probe, 0, len(tail) - 1)
        if len(probe) < _PROBE or earlier < 0 or probe.isspace():
            return False
        period = len(tail) - _PROBE - earlier
        times = _FEW if period >= _LONG_PERIOD else max(_MANY, -(-_MANY_CHARACTERS // period))
        run = tail[-period * times :]
        return len(run) == period * times and run[period:] == run[:-period]
