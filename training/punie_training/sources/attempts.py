"""What a teacher said to each task, kept one by one: a run that was cut off loses the conversation it was in."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from punie_training import jsonl
from punie_training.sources.cost import Tokens


@dataclass(frozen=True)
class Attempt:
    """One conversation about one task, as it stands in the file of attempts."""

    task: str
    plan: str
    """Digest of the whole task, expectations included."""
    number: int
    family: str
    reason: str
    """Why it gives no row; empty if it gives one."""
    said: str
    """The last answer as the teacher wrote it."""
    row: Mapping[str, Any] | None
    tokens: Tokens
    total_s: float

    @property
    def name(self) -> tuple[str, int]:
        """What is not asked again."""
        return self.plan, self.number


def stored(store: Path, *, key: str) -> Mapping[tuple[str, int], Attempt]:
    """Read the attempts that were kept under a key, by name; a torn line is ignored."""
    return {attempt.name: attempt for attempt in _read(store, key)}


def _read(store: Path, key: str) -> Iterator[Attempt]:
    for record in jsonl.whole(store):
        if record.pop("key", None) == key:
            with suppress(ValidationError):
                yield _ATTEMPT.validate_python(record)


def append(store: Path, attempt: Attempt, *, key: str) -> None:
    """Keep an attempt."""
    jsonl.append(store, {"key": key, **asdict(attempt)})


_ATTEMPT = TypeAdapter(Attempt)
