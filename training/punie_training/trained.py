"""A trained adapter and the model it belongs to: read, checked against each other, and described."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from punie.backends import _weights
from punie.backends._files import write_text
from punie.backends._merge import Adapter
from punie.backends._mlx import nn
from punie.backends.catalogue import EMBEDDED, Entry, entries
from punie.errors import ModelError, UsageError, WeightsDamaged
from punie_training import corpora

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="ignore")

    rank: int


class _Config(BaseModel):
    model_config = ConfigDict(extra="ignore")

    lora_parameters: _Parameters


@dataclass(frozen=True)
class Trained:
    """An adapter directory as training writes it."""

    directory: Path
    lora: Adapter
    rank: int
    template: str
    """Its chat template; "" if it brings none."""
    manifest: Mapping[str, object]
    """What training noted about it; empty if it did not."""

    @classmethod
    def load(cls, directory: Path) -> "Trained":
        """Read it. Raises what `Adapter.load` raises, and WeightsDamaged where no rank is noted."""
        lora = Adapter.load(directory)
        try:
            config = _Config.model_validate_json((directory / "adapter_config.json").read_bytes())
        except ValidationError as error:
            raise WeightsDamaged(f"{directory}: its adapter_config.json names no rank.") from error
        rank = config.lora_parameters.rank
        return cls(directory, lora, rank, _weights.template_of(directory) or "", _manifest(directory))

    @property
    def base_name(self) -> str:
        """What its recipe calls its base: a model of the catalogue or a path; the embedded one where nobody said."""
        settings = self.manifest.get("settings")
        name = settings.get("base") if isinstance(settings, dict) else None
        return name if isinstance(name, str) else EMBEDDED

    @property
    def alpha(self) -> float:
        """What PEFT and llama.cpp divide by the rank to get the scale."""
        return self.lora.scale * self.rank


def _manifest(directory: Path) -> Mapping[str, object]:
    path = directory / "manifest.json"
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise WeightsDamaged(f"{path} is not valid JSON: {error}.") from error
    return found if isinstance(found, dict) else {}


def linear_layers(model: Any) -> Mapping[str, Any]:
    """The layers that an adapter may change."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.QuantizedLinear)}


def shape_of(layer: Any) -> tuple[int, int]:
    """(in, out)."""
    rows, columns = layer.weight.shape
    return (columns * 32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else columns), rows


@contextmanager
def filling(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its place when the block ends well. Raises UsageError or ModelError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already and not empty.", "Choose another --out.")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except OSError as error:
        cause = f"The result cannot be stored in {out.parent}: {error.strerror or error}."
        raise ModelError(cause, "Free some space, or choose another --out.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- the card ------------------------------------------------------------------------------------------------------

_RATES = ("tool_recall", "direct_rate", "valid_calls", "first_call_right", "answer_right", "looped", "invented_paths")


def write_card(trained: Trained, directory: Path, *, form: str, use: str) -> None:
    """Write chat template and README: what it is made from, under which licences, and how well it did."""
    if trained.template:
        write_text(directory / "chat_template.jinja", trained.template)
    write_text(directory / "README.md", card(trained, form=form, use=use))


def card(trained: Trained, *, form: str, use: str) -> str:
    """The text of the README."""
    lines = [f"# {trained.manifest.get('name', trained.directory.name)}", "", f"{form}. Made by `punie train`.", ""]
    lines += [*_base_lines(trained), *_recipe_lines(trained), *_data_lines(trained), *_score_lines(trained)]
    return "\n".join([*lines, "", "## Use", "", *(f"    {line}" for line in use.splitlines()), ""])


def named_base(trained: Trained) -> Entry | None:
    """The model of the catalogue that it was trained on, by the hash of its weights or by its recipe."""
    settings = cast("Mapping[str, object]", trained.manifest.get("settings", {}))
    name, sha256 = settings.get("base"), trained.manifest.get("base")
    return next((e for e in entries().values() if e.name == name or (e.file and e.file.sha256 == sha256)), None)


def _base_lines(trained: Trained) -> list[str]:
    model = named_base(trained)
    title, licence = (model.title, model.licence) if model else ("unnamed", "that of its base")
    sha256 = trained.manifest.get("base", "not recorded")
    return [f"- Base: {title}; SHA-256 of its weights: {sha256}", f"- Licence: {licence}"]


def _recipe_lines(trained: Trained) -> list[str]:
    noted = trained.manifest
    kind = "DoRA" if trained.lora.magnitudes else "LoRA"
    lines = [
        f"- Adapter: {kind} of rank {trained.rank}, scale {trained.lora.scale:g}, {len(trained.lora.factors)} layers"
    ]
    if "recipe" in noted:
        rows, updates = noted.get("rows", "?"), noted.get("update", "?")
        lines.append(f"- Recipe: `{noted['recipe']}`, {rows} rows, {updates} updates")
    return lines


def _data_lines(trained: Trained) -> list[str]:
    if "data" not in trained.manifest:
        return []
    licences = sorted({project.licence for project in corpora.manifest() if project.split == "train"})
    return [
        f"- Data: `{trained.manifest['data']}`: conversations of Punie's own agent about public Python projects,",
        f"  and general questions with short answers. Licences of the projects: {', '.join(licences)}",
    ]


def _score_lines(trained: Trained) -> list[str]:
    scores = cast("Mapping[str, Any]", trained.manifest.get("scores"))
    if not scores:
        return ["- Scores: none recorded; `punie train eval` measures them"]
    lines = [f"- Scores: {scores['n']} cases about projects that training never saw, before this export", ""]
    lines += ["| figure | value | 95% | n |", "|---|---|---|---|"]
    for name in _RATES:
        rate = scores[name]
        interval = f"{rate['low']:.1%} to {rate['high']:.1%}"
        lines.append(f"| {name.replace('_', ' ')} | {rate['value']:.1%} | {interval} | {rate['n']} |")
    return [*lines, f"| answer F1 | {scores['f1']:.3f} | | {scores['answer_right']['n']} |"]
