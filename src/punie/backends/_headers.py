"""What files of weights say about themselves, read without the weights: seconds after a download, not after a crash.

`gguf.GGUFReader` reads every word of a vocabulary into Python, which takes seconds; the walk here skips them.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from punie.errors import WeightsDamaged, WeightsMissing

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]

FETCH_AGAIN = "Fetch the file again (`punie models pull NAME`) or copy it once more: a cut download looks like this."


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    shape: tuple[int, ...]
    """As the format has it: outermost first in safetensors, innermost first in GGUF."""
    kind: str
    """`F16`, `U32`, ... in safetensors; the number of the type in GGUF."""
    size_bytes: int


# --- safetensors ---------------------------------------------------------------------------------------------------

_ITEM_BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def safetensors_tensors(path: Path) -> Mapping[str, Tensor]:
    """Every tensor by name. Raises WeightsMissing, or WeightsDamaged for a file that is cut off or is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
            return {name: _tensor(tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except FileNotFoundError as error:
        raise WeightsMissing(f"There is no file {path}.", "Check the path.") from error
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix("Error while deserializing header: ")
        raise WeightsDamaged(f"{path} is not a complete safetensors file: {reason}.", FETCH_AGAIN) from error


def _tensor(shape: tuple[int, ...], kind: str) -> Tensor:
    bits = _ITEM_BITS.get(kind) or int(re.sub(r"^\D+|_.*", "", kind))
    return Tensor(shape, kind, prod(shape) * bits // 8)


# --- GGUF ----------------------------------------------------------------------------------------------------------

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT_ITEMS = 1024
"""Longer arrays are vocabularies; what says something for each layer is shorter."""

# gguf.constants.GGML_QUANT_SIZES, whose import costs half a second: type -> (elements, bytes) of a block.
# fmt: off
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}
# fmt: on


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors of one GGUF file; values of long arrays are left out."""

    metadata: Mapping[str, Value]
    lengths: Mapping[str, int]
    """Of every array."""
    tensors: Mapping[str, Tensor]


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = self.number("<Q")
        end = self.at + size
        if end > len(self.data):
            raise ValueError("a text goes on behind the end of the file")
        raw, self.at = self.data[self.at : end], end
        return raw.decode("utf-8", "replace")

    def skip_texts(self, count: int) -> None:
        at, data, unpack = self.at, self.data, struct.Struct("<Q").unpack_from
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at

    def value(self, kind: int) -> Scalar:
        return self.text() if kind == _STRING else self.number(_SCALARS[kind])

    def array(self) -> tuple[int, tuple[Scalar, ...] | None]:
        """Return how many items, and the items if they are few."""
        kind, count = self.number("<I"), self.number("<Q")
        if count <= _KEPT_ITEMS:
            return count, tuple(self.value(kind) for _ in range(count))
        if kind == _STRING:
            self.skip_texts(count)
        else:
            self.at += count * struct.calcsize(_SCALARS[kind])
        return count, None


def gguf_header(path: Path) -> GgufHeader:
    """Metadata and tensors. Raises WeightsMissing, or WeightsDamaged for a file that is cut off or is no such file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_gguf(_Cursor(data))
    except FileNotFoundError as error:
        raise WeightsMissing(f"There is no model file {path}.", "Check the path after `gguf:`.") from error
    except (ValueError, KeyError, struct.error, OSError) as error:
        raise WeightsDamaged(f"{path} is not a complete GGUF file ({error}).", FETCH_AGAIN) from error


def _read_gguf(cursor: _Cursor) -> GgufHeader:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.at = 4
    cursor.number("<I")
    tensor_count, pairs = cursor.number("<Q"), cursor.number("<Q")
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(pairs):
        _read_pair(cursor, metadata, lengths)
    offsets = [_read_tensor(cursor) for _ in range(tensor_count)]
    _refuse_cut(cursor, offsets, alignment=metadata.get("general.alignment", 32))
    return GgufHeader(metadata, lengths, {name: tensor for name, tensor, _ in offsets})


def _read_pair(cursor: _Cursor, metadata: dict[str, Value], lengths: dict[str, int]) -> None:
    key, kind = cursor.text(), cursor.number("<I")
    if kind != _ARRAY:
        metadata[key] = cursor.value(kind)
        return
    lengths[key], items = cursor.array()
    if items is not None:
        metadata[key] = items


def _read_tensor(cursor: _Cursor) -> tuple[str, Tensor, int]:
    name = cursor.text()
    shape = tuple(cursor.number("<Q") for _ in range(cursor.number("<I")))
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    elements, size = _BLOCKS.get(kind, (1, 0))
    return name, Tensor(shape, str(kind), prod(shape) // elements * size), offset


def _refuse_cut(cursor: _Cursor, tensors: list[tuple[str, Tensor, int]], *, alignment: Value) -> None:
    step = alignment if isinstance(alignment, int) and alignment > 0 else 32
    start = -(-cursor.at // step) * step
    end = max((start + offset + tensor.size_bytes for _, tensor, offset in tensors), default=start)
    if end > len(cursor.data):
        raise ValueError(f"it has {len(cursor.data):,} of {end:,} bytes")
