"""How a base model is served, which is how it has to be trained: its chat template, system text and view of results."""

from dataclasses import dataclass
from pathlib import Path

from punie import wire
from punie.agent.instructions import prompt
from punie.backends import _gguf, _mlx_files, _weights
from punie.backends.catalogue import EMBEDDED, entries
from punie.errors import ModelError, UsageError


@dataclass(frozen=True)
class Served:
    """What stands around a conversation when the model is asked."""

    template: str
    """The chat template's source."""
    system: str = ""
    """The first turn of a conversation that brings no system text; "" where the template has its own."""
    view: wire.View = wire.WHOLE

    def messages(self, turns: tuple[wire.Message, ...]) -> tuple[wire.Message, ...]:
        """The turns behind the system text."""
        if not self.system or any(turn.role == "system" for turn in turns):
            return turns
        return (wire.Message("system", self.system), *turns)


def find_base(name: str, *, cache_dir: Path) -> Path:
    """The weights of a model of the catalogue (MLX's, of all but the embedded one), or of that path.

    Raises WeightsMissing that says how they get there, or UsageError for what is neither.
    """
    if name == EMBEDDED:
        return _weights.ensure_base(cache_dir)
    if name in entries():
        return _weights.find_weights(entries()[name], engine="mlx", cache_dir=cache_dir)
    path = Path(name).expanduser()
    if not path.exists():
        raise UsageError(f"There is no base model {name}.", f"Name a directory, or one of {', '.join(entries())}.")
    return path


def served(name: str, base: Path | None = None) -> Served:
    """How a model of the catalogue, or any other one, is served from these weights; None for the embedded one's own.

    Raises ModelError for weights without a chat template.
    """
    known = entries().get(name)
    if known and known.dialect == "compact":
        return compact()
    if base is None:
        raise ValueError(f"{name} is served with the template of its weights")
    template = _mlx_files.directory_files(str(base)).template if base.is_dir() else _gguf.chat_template(base)
    if not template:
        raise ModelError(f"{base} has no chat template.", "Train an instruct or chat model.")
    return Served(template, system=prompt("system"))


def compact() -> Served:
    """The embedded model: its template has a system text, and long results are shortened."""
    return Served(_weights.shipped_template(), view=wire.View())
