"""A training run as a value: everything that decides what comes out, in one TOML file."""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from punie.errors import ConfigError

EVERY_LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


Trace = Literal["real", "placeholder", "none"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """Which rows are drawn from the rows there are."""

    rows: int = Field(default=100_000, gt=0)
    """At most this many."""
    direct_share: float | None = Field(default=None, ge=0, le=1)
    """Share of rows answered without a tool; None takes them as they come."""
    direct_weight: float = Field(default=1.0, gt=0, le=1)
    """What a token of an answer without a tool counts in the loss: its gradients are larger and drown the calls."""
    sources: Mapping[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict[str, int])
    """At most so many rows of each of these sources: `generated`, `direct`, the stem of an imported file,
    `teacher:MODEL`; none named takes all there are."""
    families: tuple[str, ...] = ()
    """Only these families of tool questions; none named means all."""
    projects: int | None = Field(default=None, gt=0)
    """Tool questions about at most this many projects, the first by name."""
    max_tokens: int = Field(default=1024, gt=2)
    """Longer rows are left out, never cut."""
    mask_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the tool rows whose tools go by other names or are not on offer, so that declarations must be read."""
    twins: int = Field(default=0, ge=0)
    """Pairs of a tool question and a general one on the same topic, drawn before all other rows."""
    trace: Trace = "real"
    """What stands between question and answer: calls with their results, with a text that says nothing, or no call."""
    answers: bool = True
    """Whether tool rows go on to their answer; without, each ends with a result, and nothing shows when to stop."""
    copied: bool = False
    """Whether answers copy the lines of a result, as far as the model is shown them, in place of `[[result]]`."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.trace == "none" and not self.answers:
            raise ValueError("neither calls nor answers are left to learn; set trace or answers otherwise")
        return self


_LATER = frozenset({"sources", "mask_share", "twins", "trace", "answers", "copied"})
"""Keys of `Data` that came later: not hashed at their defaults, so that runs from before can be continued."""


class Lora(_Part):
    """The trained matrices: the change of a weight is `scale * B A`."""

    kind: Literal["lora", "dora"] = "lora"
    """DoRA (Liu et al. 2024) learns the length of each row of the changed weight too; it takes longer."""
    rank: int = Field(default=16, gt=0)
    scale: float = Field(default=2.0, gt=0)
    keys: tuple[str, ...] = EVERY_LINEAR
    layers: Annotated[int, Field(gt=0)] | Literal["all"] = 30
    """Blocks, counted from the last."""


class Optim(_Part):
    """AdamW with a linear warm-up and a cosine to nothing, counted in updates."""

    lr: float = Field(default=4e-4, gt=0)
    warmup: int = Field(default=10, ge=0)
    epochs: int = Field(default=1, gt=0)
    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens of a batch, padding included, the common prefix counted once."""
    accumulation: int = Field(default=1, gt=0)
    """Batches per update."""
    clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's memory for the size of gradients."""
    window: int = Field(default=256, gt=0)
    """Rows in random order, of which those of like length meet in a batch."""
    recompute: bool = False
    """Whether what happens within a block is computed again for the gradient, not kept: less memory, more time."""


class Watch(_Part):
    """What is looked at on the way."""

    dev_rows: int = Field(default=32, ge=0)
    """Rows kept out of training for a loss to look at; never used to choose a checkpoint."""
    every: int = Field(default=50, gt=0)
    """Updates between two checkpoints."""


class Recipe(_Part):
    """One training run."""

    base: str = "smollm2-135m"
    start: str = ""
    """Run beside this one whose adapter is trained further; none starts from nothing."""
    seed: int = 0
    data: Data = Data()
    lora: Lora = Lora()
    optim: Optim = Optim()
    eval: Watch = Watch()

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a TOML file. Raises ConfigError that names the file and the key."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text("utf-8")))
        except OSError as error:
            raise ConfigError(f"The recipe {path} cannot be read: {error.strerror}.") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}.") from error
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                raise ConfigError(f"{path}: there is no key {key}.", _nearest(key)) from error
            raise ConfigError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}.") from error

    @property
    def hash(self) -> str:
        """SHA-256 over the values, defaults included: equal recipes have equal hashes however they are written."""
        values = self.model_dump(mode="json")
        values["data"] = {k: v for k, v in values["data"].items() if k not in _LATER or v != getattr(Data(), k)}
        if self.lora.kind == "lora":
            del values["lora"]["kind"]  # and so can those from before there was DoRA
        if not self.optim.recompute:
            del values["optim"]["recompute"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _nearest(key: str) -> str:
    """A hint at the key that was meant: one of the same table, of the same name in another, or a table."""
    keys = list(_keys(Recipe))
    table, _, name = key.rpartition(".")
    here = [known for known in keys if known.rpartition(".")[0] == table]
    close = [known for known in keys if known.rpartition(".")[2] == name]
    close = close or get_close_matches(key, here, n=1)
    close = close or get_close_matches(key, keys, n=1)
    close = close or [known for known in keys if get_close_matches(name, [known.rpartition(".")[2]])]
    return f"Did you mean {close[0]}?" if close else f"These there are: {', '.join(here or keys)}."


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The tables of a recipe and the keys in them, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
