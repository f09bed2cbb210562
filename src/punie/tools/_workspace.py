"""The directory the tools work on, with what they learn about it."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol
from weakref import ref

from pydantic_ai import ModelRetry

from punie.config import SandboxOptions
from punie.redaction import Redactor
from punie.tools._index import Index
from punie.tools._paths import Tree
from punie.tools._sandbox import Sandbox
from punie.tools._walk import Entry, walk_files


class Journal(Protocol):
    """Keeps what a tool is about to change, so that it can be taken back."""

    def creating(self, directories: Sequence[bytes]) -> None:
        """Directories that do not exist yet will be made, outermost first; paths are from the root."""
        ...

    def changing(self, relative: str, *, before: bytes | None, after: bytes, mode: int | None) -> None:
        """A file with these bytes and this `st_mode` (None: there is none) will be replaced by one with others.

        When this returns, what was there is on the disk a second time.
        """
        ...


class Workspace:
    """What the tools get from the agent: a root they never leave, an index, and a record of what was read.

    `tree` is the root held open, and the way to its files. `seen` maps paths from the root to the SHA-256 of the bytes
    the model saw last. `environment` is the source of the variables that commands get; only harmless ones are handed
    on. `redact` takes secrets out of what the model sees. `journal` is told of every file before it changes. `sandbox`
    says what commands are confined to; `state_dir` is where Punie keeps things of its own, among them output of
    commands that is too long to show. `project` is the root of the project if the user trusts it: commands find its
    Python environment first. Raises ConfigError if a sandbox is required and none works here.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        command_timeout_s: float = 120,
        search_timeout_s: float = 10,
        environment: Mapping[str, str] | None = None,
        sandbox: SandboxOptions | None = None,
        state_dir: Path | None = None,
        project: Path | None = None,
    ) -> None:
        self.root = Path(root).resolve(strict=True)
        if not self.root.is_dir():
            raise NotADirectoryError(str(root))
        self.tree = Tree(self.root)
        self.command_timeout_s = command_timeout_s
        self.search_timeout_s = search_timeout_s
        self.environment: Mapping[str, str] = os.environ if environment is None else environment
        self.redact = Redactor(self.environment)
        self.sandbox = Sandbox(self.root, sandbox, environment=self.environment, state_dir=state_dir, project=project)
        self.seen: dict[str, str] = {}
        self.hidden: Callable[[str], bool] = _nothing
        """Files, by their path from the root, that lists and searches leave out."""
        self.skill: Callable[[str, str], str] = _no_skill
        """The text of a file of a skill, by the skill's name and the path in it. Raises ModelRetry if there is none."""
        self.journal: Journal | None = None
        self.judged: dict[str, str] = {}
        """Paths as the model wrote them, and where each led when somebody, or a rule, allowed what is done there."""

    @cached_property
    def index(self) -> Index:
        """The index of Python definitions; empty until something asks for it."""
        # The index must not hold on to the workspace: the two, and the open directory, would outlive their use.
        this = ref(self)
        return Index(self.tree, hidden=lambda path: (held := this()) is not None and held.hidden(path))

    def warm(self) -> threading.Thread:
        """Fill the index in the background; tools that need it meanwhile wait for it."""
        thread = threading.Thread(target=self.index.refresh, name="punie-index", daemon=True)
        thread.start()
        return thread

    def files(self) -> Iterator[Entry]:
        """The files of the workspace, sorted by path, without ignored and generated ones."""
        return (entry for entry in walk_files(self.tree) if not self.hidden(entry.path))

    def is_judged(self, path: str, relative: str) -> bool:
        """Whether a path still leads where it led when it was judged; also if nobody judged it."""
        return self.judged.get(path, relative) in {relative, str(self.root / relative)}

    def remember(self, relative: str, data: bytes) -> None:
        """Record the bytes of a file the model has seen or written."""
        self.seen[relative] = digest(data)


def _nothing(path: str) -> bool:
    """Nothing is hidden."""
    del path
    return False


def _no_skill(name: str, file: str) -> str:
    """No skill is there."""
    del file
    raise ModelRetry(f"There is no skill named {name}.")


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
