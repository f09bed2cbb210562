"""Rows of a data file as token ids: rendered by the same code, with the same tools, as when the model is served."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from punie import tools, wire
from punie.backends import _gguf, _weights
from punie.config import AgentConfig
from punie.errors import UsageError
from punie_training.recipe import Data, Recipe


class _Call(BaseModel):
    name: str
    arguments: dict[str, object]


class _Message(BaseModel):
    role: wire.Role
    content: str = ""
    calls: tuple[_Call, ...] = ()

    def plain(self) -> wire.Message:
        calls = tuple(wire.call(c.name, c.arguments) for c in self.calls)
        return wire.Message(self.role, self.content, calls)


class Row(BaseModel):
    """What training needs of a line of the data file."""

    model_config = ConfigDict(frozen=True)

    id: str
    family: str
    project: str = ""
    messages: tuple[_Message, ...]


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
    renderer = wire.Wire(_tokenizer(path), template=template, view=wire.View())
    rows = choose(read(data), recipe.data, seed=recipe.seed)
    offered = declarations()
    examples = tuple(
        _weighted(renderer.example([m.plain() for m in row.messages], offered), loss_weight(row, recipe.data))
        for row in rows
    )
    return Prepared(examples, path, template)


def loss_weight(row: Row, data: Data) -> float:
    """What the learned tokens of a row count in the loss."""
    return 1.0 if row.project else data.direct_weight


def _weighted(example: wire.Example, weight: float) -> wire.Example:
    return replace(example, mask=tuple(counts * weight for counts in example.mask))


def _tokenizer(base: Path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(base / "tokenizer.json")) if base.is_dir() else _gguf.tokenizer(base)


def declarations() -> tuple[dict[str, object], ...]:
    """The tools as the agent offers them by default."""
    known = tools.toolset(AgentConfig().tools).tools.values()
    return wire.declarations([tool.tool_def for tool in known])


def read(path: Path) -> tuple[Row, ...]:
    """Read a JSON lines file. Raises UsageError when it is not there."""
    if not path.is_file():
        raise UsageError(f"There is no data file {path}.", "Make it: punie train data")
    with path.open(encoding="utf-8") as lines:
        return tuple(Row.model_validate(json.loads(line)) for line in lines if line.strip())


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
