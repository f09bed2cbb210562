"""Which AGENTS.md files there are, and about what they cost: found out before any of them is opened."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from punie.config import Resolved, directories_down_to, instruction_files
from punie.errors import ConfigError
from punie.ui._clean import visible

_BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class AgentFiles:
    """The user's own, and those of the project from its root down to where the work goes on."""

    own: tuple[Path, ...]
    of_project: tuple[Path, ...]
    root: Path
    trusted: bool

    @property
    def line(self) -> str:
        """What every request begins with, and about how long it is; empty when there is nothing."""
        files = (*self.own, *(self.of_project if self.trusted else ()))
        names = ", ".join(visible(self._name(file)) for file in files)
        return f"{names}: about {sum(map(_tokens, files)):,} tokens in every request" if files else ""

    @property
    def refusal(self) -> str:
        """Why those of the project are not read; empty when they are."""
        if self.trusted or not self.of_project:
            return ""
        names = ", ".join(visible(self._name(file)) for file in self.of_project)
        isnt = "is not" if len(self.of_project) == 1 else "are not"
        return f"{names} {isnt} read: {self.root} is not trusted. `punie trust` trusts it."

    def _name(self, file: Path) -> str:
        return f"your {file.name}" if file in self.own else str(file.relative_to(self.root))


def agent_files(resolved: Resolved, cwd: Path) -> AgentFiles:
    """The files that the settings let a model have. None for an embedded model, unless tokens are set aside for it."""
    tokens = resolved.settings.agents_md_tokens
    if tokens == 0 or (tokens is None and is_embedded(resolved)):
        return AgentFiles((), (), resolved.root, resolved.trusted)
    return AgentFiles(
        own=instruction_files([resolved.user_file.parent]),
        of_project=instruction_files(directories_down_to(cwd.resolve(), resolved.root)),
        root=resolved.root,
        trusted=resolved.trusted,
    )


def is_embedded(resolved: Resolved) -> bool:
    """Whether the settings name the model that comes with Punie, which was trained on one fixed beginning."""
    from punie.backends.catalogue import entry, split_name

    config = resolved.settings.agent_config()
    kind, _, name = config.model.partition(":")
    with suppress(ConfigError):
        return kind == "local" and bool(entry(split_name(name)[0], config.models).package)
    return False


def _tokens(file: Path) -> int:
    try:
        return -(-os.stat(file).st_size // _BYTES_PER_TOKEN)  # noqa: PTH116 - a link that leads nowhere is nothing
    except OSError:
        return 0
