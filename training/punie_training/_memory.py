"""Memory of a training run: what it takes, what it may take, and the C library told to keep what is freed."""

import ctypes
import sys
from dataclasses import dataclass

from pydantic import ByteSize, TypeAdapter, ValidationError

from punie.backends._mlx import mx
from punie.errors import NotEnoughMemory, UsageError
from punie_training.rss import resident_peak

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SHARE = 0.9
"""Of the tokens that the figures allow, what is proposed: the next run does not place its arrays in the same way."""
_ROUND = 10


def keep_freed_memory() -> None:
    """Serve large arrays from the heap and never shrink it; fresh pages cost a quarter of a step. Linux only."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def parse_size(text: str) -> int:
    """Bytes from a number with a unit: 4GB, 3.5 GiB, 800MB. Raises UsageError."""
    try:
        size = TypeAdapter(ByteSize).validate_python(text)
    except ValidationError:
        size = 0
    if not size or text.strip()[-1].isdigit():
        raise UsageError(f"{text!r} is no amount of memory.", "Write a number with its unit: 4GB, 3.5GiB or 800MB.")
    return int(size)


def peak_bytes() -> int:
    """The most memory this process has held at once since it began, in bytes.

    As the system counts it, the interpreter and the loading of the model included; or as MLX does, if that is more:
    not every system counts what a GPU holds.
    """
    return max(resident_peak(), mx.get_peak_memory())


@dataclass(frozen=True)
class Measured:
    """What the largest batch of a run was found to take."""

    peak_bytes: int
    """Of all processes of the run together."""
    batch_bytes: int
    """The part of it that grows with a batch, as a batch of `batch_tokens` has it."""
    batch_tokens: int
    longest: int
    """Tokens of a batch of the longest row alone: no batch can be smaller."""
    recompute: bool = False
    """Whether the recipe saves memory that way already."""

    def refuse_over(self, limit: int) -> None:
        """Raise NotEnoughMemory that names what would fit into `limit` bytes."""
        if self.peak_bytes <= limit:
            return
        cause = f"The run would take {self.peak_bytes / 1e9:.2f} GB, and may take {limit / 1e9:.2f} GB."
        tokens, other = self.fitting(limit), "" if self.recompute else " or try recompute = true"
        if tokens:
            raise NotEnoughMemory(cause, f"Set batch_tokens = {tokens}{other} under [optim] in the recipe.")
        raise NotEnoughMemory(
            cause,
            f"{self.least / 1e9:.2f} GB go to the model and the longest row, of {self.longest} tokens, alone.\n"
            "Allow more memory, or lower max_tokens under [data] in the recipe.",
        )

    @property
    def least(self) -> float:
        """Bytes that a run with the smallest possible batches takes."""
        return self.peak_bytes - self.batch_bytes * (1 - min(1.0, self.longest / self.batch_tokens))

    def fitting(self, limit: int) -> int:
        """Tokens of a batch that would fit into `limit` bytes; 0 if no batch would."""
        room = limit - (self.peak_bytes - self.batch_bytes)
        tokens = int(_SHARE * self.batch_tokens * room / max(1, self.batch_bytes)) // _ROUND * _ROUND
        return tokens if self.longest <= tokens < self.batch_tokens else 0
