"""Reads rows as JSON lines, each with its project's directory, and writes a verdict on each."""

import json
import sys

from pydantic import BaseModel

from punie_training.second.project import project
from punie_training.second.questions import Doubt, Turn, Unknown, judge


class _Call(BaseModel):
    name: str
    arguments: dict[str, object]


class _Expect(BaseModel):
    kind: str
    values: tuple[str, ...] = ()


class _Turn(BaseModel):
    question: str
    calls: tuple[_Call, ...]
    answer: str
    expect: _Expect | None = None


class _Row(BaseModel):
    root: str
    turns: tuple[_Turn, ...]


def verdict(row: _Row) -> dict[str, str]:
    """The verdict on one row: agrees, differs or unknown, with the reason of its first turn that is not confirmed."""
    before: Turn | None = None
    confirmed: list[str] = []
    try:
        for raw in row.turns:
            file = raw.expect.values if raw.expect and raw.expect.kind == "file" else ()
            turn = Turn(raw.question, [(c.name, c.arguments) for c in raw.calls], raw.answer, before, file)
            before = turn
            try:
                confirmed.append(judge(project(row.root), turn))
            except Unknown as error:
                if turn.calls:
                    return {"verdict": "unknown", "reason": str(error)}
    except Doubt as error:
        return {"verdict": "differs", "reason": str(error)}
    return {"verdict": "agrees" if confirmed else "unknown", "reason": "; ".join(confirmed) or "nothing to derive"}


def main() -> None:
    """Read rows as JSON lines, write verdicts as JSON lines, in the same order."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(verdict(_Row.model_validate_json(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
