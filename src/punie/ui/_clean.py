"""What the screen shows of untrusted text: without control sequences, or with everything hidden spelled out."""

from punie.controls import Cleaner, clean, hidden_characters, visible

__all__ = ["Cleaner", "clean", "hidden_characters", "one_line", "visible"]


def one_line(text: str, *, width: int) -> str:
    """Return the first line, cleaned and cut at `width` characters."""
    first = next((line for line in clean(text).splitlines() if line.strip()), "").replace("\t", " ").strip()
    return first if len(first) <= width else first[: max(width - 1, 0)] + "…"
