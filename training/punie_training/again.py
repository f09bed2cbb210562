"""A run's own training questions as cases of an evaluation: what a model has learned by heart, it answers here."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from punie.errors import UsageError
from punie_training import examples, jsonl, plan
from punie_training.recipe import Recipe
from punie_training.suite import Case
from punie_training.tasks import Expect, Step, Task, Turn

MOST = 200
_EXPECT = TypeAdapter(Expect)


def cases(recipe: Recipe, *, data: Path, base: Path | None = None, most: int = MOST) -> tuple[Case, ...]:
    """The questions about projects that `recipe` trains on, in the order drawn, those with a single question.

    Rows kept out of training for the dev loss are not asked. Raises UsageError where no question is left.
    """
    rows = examples.choose(examples.read(data), recipe.data, seed=recipe.seed)
    prepared = examples.prepare(recipe, data=data, base=base).examples
    trained = {id(example) for example in plan.select(prepared, recipe).train}
    learned = [row.id for row, example in zip(rows, prepared, strict=True) if row.project and id(example) in trained]
    records = {str(record.get("id")): record for _, record in jsonl.records(data)}
    found = tuple(case for name in learned for case in _cases(name, records[name]))[:most]
    if not found:
        raise UsageError(f"{data} has no question about a project that the recipe trains on.")
    return found


def _cases(name: str, record: Mapping[str, Any]) -> Iterator[Case]:
    asked = [message["content"] for message in record["messages"] if message["role"] == "user"]
    if len(asked) != 1 or not record.get("expect"):
        return
    calls = [call for message in record["messages"] for call in message.get("calls", ())]
    steps = tuple(Step(call["name"], call["arguments"]) for call in calls)
    expect = _EXPECT.validate_python(record["expect"])
    turn = Turn(record.get("template", ""), asked[0], steps, record["messages"][-1]["content"], expect)
    yield Case(f"again-{name}", Task(record["family"], record["project"], (turn,)))
