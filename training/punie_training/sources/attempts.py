"""What a teacher said to each task, kept one by one: a run that was cut off loses the conversation it was in."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
    for line in store.read_bytes().splitlines() if store.is_file() else ():
        try:
            record = json.loads(line)
            if record.pop("key") == key:
                yield _ATTEMPT.validate_python(record)
        except (ValueError, AttributeError, LookupError, ValidationError):
            continue


def append(store: Path, attempt: Attempt, *, key: str) -> None:
    """Keep an attempt, on a line of its own also after a torn one."""
    line = json.dumps({"key": key, **asdict(attempt)}) + "\n"
    with store.open("a+b") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        torn = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * torn + line.encode())


_ATTEMPT = TypeAdapter(Attempt)
