"""The C library's memory, told to keep what is freed: a training step takes and frees gigabytes of arrays."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Serve large arrays from the heap and never shrink it; fresh pages cost a quarter of a step. Linux only."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
