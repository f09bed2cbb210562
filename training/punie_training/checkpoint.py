"""The state of a run in one file that is replaced in one step: weights, optimizer, and what happened so far."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mlx.utils import tree_flatten, tree_unflatten

from punie.backends._files import replacing
from punie.backends._mlx import mx
from punie.errors import ModelError, UsageError
from punie.wire import Example
from punie_training.adapter import weights, write_arrays

_WEIGHTS, _OPTIMIZER = "weights/", "optimizer/"


@contextmanager
def storing(out: Path) -> Iterator[None]:
    """Turn a failed write into a ModelError that says how the run in `out` goes on."""
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"The run cannot be stored in {out}: {error.strerror or error}.",
            "Its last state is whole. Free some space, then give the same command with --resume.",
        ) from error


@dataclass(frozen=True)
class Point:
    """One update of the loss curve. There is one per update done, so their number is the cursor into the plan."""

    update: int
    loss: float
    dev_loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens: int


@dataclass(frozen=True)
class Checkpoint:
    """Where a run's state is kept; `identity` says which recipe, data and base it belongs to."""

    path: Path
    identity: Mapping[str, str]

    def save(self, model: Any, optimizer: Any, *, history: Sequence[Point]) -> None:
        """Replace the file; a crash at any moment leaves the old or the new one."""
        arrays = {_WEIGHTS + name: value for name, value in weights(model).items()}
        arrays |= {_OPTIMIZER + name: value for name, value in dict(tree_flatten(optimizer.state)).items()}
        points = json.dumps([asdict(point) for point in history])
        for left_over in self.path.parent.glob(f"{self.path.name}.*.part"):  # of a process that was killed
            left_over.unlink()
        with replacing(self.path) as part:
            write_arrays(part, arrays, metadata={**self.identity, "history": points})

    def restore(self, model: Any, optimizer: Any) -> tuple[Point, ...]:
        """Put the saved state into model and optimizer; returns the history. Raises UsageError for another run's."""
        loaded = mx.load(str(self.path), format="safetensors", return_metadata=True)
        arrays, metadata = cast("tuple[dict[str, mx.array], dict[str, str]]", loaded)
        other = [name for name, value in self.identity.items() if metadata.get(name) != value]
        if other:
            raise UsageError(
                f"{self.path} was made with another {' and '.join(other)}.", "Choose another --out for this run."
            )
        model.load_weights(_under(_WEIGHTS, arrays), strict=False)
        optimizer.state = tree_unflatten(_under(_OPTIMIZER, arrays))
        mx.eval(model.parameters(), optimizer.state)
        return tuple(Point(**point) for point in json.loads(metadata["history"]))


def _under(prefix: str, arrays: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name.removeprefix(prefix), value) for name, value in arrays.items() if name.startswith(prefix)]


def fingerprint(rows: Sequence[Example]) -> str:
    """SHA-256 over tokens and masks of the rows, in order."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(struct.pack(f"<I{len(row.tokens)}I", len(row.tokens), *row.tokens))
        whole.update(repr(row.mask).encode())
    return whole.hexdigest()
