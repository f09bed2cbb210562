"""Rows of a data file as token ids: rendered by the same code, with the same tools, as when the model is served."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from punie import tools, wire
from punie.backends import _gguf, _weights
from punie.config import AgentConfig
from punie.errors import UsageError
from punie_training import jsonl
from punie_training.recipe import Data, Recipe


class _Strict(BaseModel):
    """Refuses what it does not know: `tool_calls` would be lost without a word."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Call(_Strict):
    """A call in a row."""

    name: str
    arguments: dict[str, object]


class Function(BaseModel):
    """What a declaration says about a tool."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str = ""
    parameters: Mapping[str, Any]


class Declaration(BaseModel):
    """A tool as `wire.declarations` gives it."""

    model_config = ConfigDict(frozen=True)

    type: str = "function"
    function: Function


class Turn(_Strict):
    """A turn of a row."""

    role: wire.Role
    content: str = ""
    calls: tuple[Call, ...] = ()

    def plain(self) -> wire.Message:
        """The turn as it is rendered."""
        calls = tuple(wire.call(c.name, c.arguments) for c in self.calls)
        return wire.Message(self.role, self.content, calls)


class Row(BaseModel):
    """What training needs of a line of the data file."""

    model_config = ConfigDict(frozen=True)

    id: str
    family: str
    project: str = ""
    messages: tuple[Turn, ...]
    tools: tuple[Declaration, ...] | None = None
    """The tools on offer in this conversation; None means Punie's own."""

    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools as the chat template gets them."""
        return declarations() if self.tools is None else tuple(tool.model_dump() for tool in self.tools)


@dataclass(frozen=True)
class Prepared:
    """Everything a run of the trainer needs besides its recipe."""

    examples: tuple[wire.Example, ...]
    base: Path
    template: str


def prepare(recipe: Recipe, *, data: Path, base: Path | None = None) -> Prepared:
    """Choose the rows the recipe asks for and tokenise them for its base model."""
    path = base or _weights.ensure_base(_weights.default_cache_dir())
    template = _weights.shipped_template()
    renderer = renderer_for(path, template=template)
    rows = choose(read(data), recipe.data, seed=recipe.seed)
    examples = tuple(_weighted(example(row, renderer), loss_weight(row, recipe.data)) for row in rows)
    return Prepared(examples, path, template)


def example(row: Row, renderer: wire.Wire) -> wire.Example:
    """The row as token ids with the loss on every assistant turn."""
    return renderer.example([m.plain() for m in row.messages], row.offered())


def loss_weight(row: Row, data: Data) -> float:
    """What the learned tokens of a row count in the loss."""
    return 1.0 if row.project else data.direct_weight


def _weighted(example: wire.Example, weight: float) -> wire.Example:
    return replace(example, mask=tuple(counts * weight for counts in example.mask))


def renderer_for(base: Path, *, template: str) -> wire.Wire:
    """What turns conversations into token ids of a base model, with the view of results that it is served with."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json")) if base.is_dir() else _gguf.tokenizer(base)
    return wire.Wire(tokenizer, template=template, view=wire.View())


@cache
def declarations() -> tuple[dict[str, Any], ...]:
    """The tools as the agent offers them by default."""
    known = tools.toolset(AgentConfig().tools).tools.values()
    return wire.declarations([tool.tool_def for tool in known])


def read(path: Path) -> tuple[Row, ...]:
    """Read a JSON lines file. Raises UsageError that names file and line of what is no row."""
    if not path.is_file():
        raise UsageError(f"There is no data file {path}.", "Make it: punie train data")
    return tuple(_row(record, f"{path}:{number}") for number, record in jsonl.records(path))


def _row(record: jsonl.Record, place: str) -> Row:
    try:
        return Row.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"{place}: `{where}`: {first['msg']}.", "See all of it: punie train data check FILE"
        ) from error


def choose(rows: Sequence[Row], data: Data, *, seed: int) -> tuple[Row, ...]:
    """Draw rows: the families and projects named, at most `rows` of them, with the share of direct answers wanted."""
    shuffled = random.Random(seed).sample(list(rows), len(rows))
    direct = [row for row in shuffled if not row.project]
    asked = [row for row in shuffled if row.project and (not data.families or row.family in data.families)]
    if data.projects is not None:
        kept = sorted({row.project for row in asked})[: data.projects]
        asked = [row for row in asked if row.project in kept]
    if data.direct_share is None:
        both = random.Random(seed + 1).sample(asked + direct, len(asked) + len(direct))
        return tuple(both[: data.rows])
    total = min(data.rows, *_possible(len(asked), len(direct), share=data.direct_share))
    plain = round(total * data.direct_share)
    return (*asked[: total - plain], *direct[:plain])


def _possible(asked: int, direct: int, *, share: float) -> tuple[int, ...]:
    """Totals that the rows of either kind suffice for."""
    by_asked = (int(asked / (1 - share)),) if share < 1 else ()
    by_direct = (int(direct / share),) if share > 0 else ()
    return (*by_asked, *by_direct)
