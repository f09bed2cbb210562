"""What people wrote down for agents: `AGENTS.md` of the user, and of a project that the user trusts.

What holds for the whole work stands at the beginning of every request, read once. What lies in a directory below comes
with the first result of a file tool from there, as a message of its own, so that no earlier message ever changes. What
was given is known from the conversation alone: one that was resumed needs nothing again, one that was cut gets it
again.
"""

import asyncio
import os
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolCallPart, ToolReturn
from pydantic_ai.models import Model
from pydantic_ai.tools import ToolDefinition

from punie import controls
from punie.agent._given import GIVEN, given_in
from punie.agent.compaction import sent
from punie.backends._notices import tell
from punie.config import directories_down_to, instruction_files
from punie.tools import Workspace
from punie.tools._files import decode, is_binary
from punie.tools._output import clip
from punie.tools._paths import Content, NotRegularFileError, OutsideWorkspaceError, located, read_beneath

MOST_TOKENS = 8192
DEFAULT_WINDOW = 16_384
"""Of a model that does not say how long its context window is."""
SHARE = 8
"""One part in so many of the window is for instructions."""
BYTES_PER_TOKEN = 3
"""Prose and Markdown have 3.0 to 3.6 bytes a token in the embedded model's vocabulary, the smallest there is; larger
ones have more."""
MAX_FILE_BYTES = 256 * 1024
"""A larger file was not written for a model to read whole."""
_FILE_TOOLS = frozenset({"read_file", "edit_file", "write_file"})
_PREAMBLE = (
    "The files below are instructions of the user and of this project: follow them. Where two disagree, the later one "
    "holds. They cannot allow what a tool refuses."
)


@dataclass(frozen=True)
class Written:
    """One file as the model gets it."""

    name: str
    """Its path from the project's root, or `the user's AGENTS.md`."""
    text: str

    @property
    def block(self) -> str:
        """The text between tags that name the file."""
        return f'<instructions file="{self.name}">\n{self.text}\n</instructions>'

    @property
    def tokens(self) -> int:
        """About how many tokens it takes, rather too many than too few."""
        return tokens_in(self.block)


@dataclass(frozen=True)
class Instructions:
    """The files that were read, outermost first, and one line about each that was not, or not whole."""

    files: tuple[Written, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """About how many tokens they take in every request."""
        return tokens_in(self.text)

    @property
    def text(self) -> str:
        """What stands after the built-in instructions; empty when there is no file."""
        return "\n\n".join([_PREAMBLE, *(file.block for file in self.files)]) if self.files else ""


def _nothing(path: str) -> bool:
    """Nothing is hidden."""
    del path
    return False


@dataclass(frozen=True)
class Memory:
    """Where instructions may come from.

    `project` is the root of a project that is trusted; without it, nothing of a project is looked for. `user` is the
    directory of the user's own settings. `hidden` says of a path from the project's root that it must not be shown.
    `tokens` is what the user wants to spend at most, None what suits the model.
    """

    cwd: Path
    project: Path | None = None
    user: Path | None = None
    hidden: Callable[[str], bool] = _nothing
    tokens: int | None = None

    def budget_for(self, model: Model) -> int:
        """Tokens that may be spent: those chosen, else an eighth of the model's window, of an embedded model's none.

        An embedded model was trained on one beginning, which instructions would take the place of.
        """
        if self.tokens is not None:
            return self.tokens
        if getattr(model, "compact", False):
            return 0
        return min((model.context_window or DEFAULT_WINDOW) // SHARE, MOST_TOKENS)

    def read(self, *, budget_tokens: int) -> Instructions:
        """What holds for all work in `cwd`: the user's file, then the project's from its root down to `cwd`.

        The file that does not fit any more is cut at the end of a line, and what comes after it is left out. Never
        raises: what cannot be read is a warning.
        """
        return _fitted([*self._beginning()], left=budget_tokens) if budget_tokens > 0 else Instructions()

    def below(self, path: str, *, workspace: Workspace, given: Iterable[str], budget_tokens: int) -> Instructions:
        """What the directories from the workspace down to the file at `path` add, but for what was `given` already.

        `given` are names as they stand in `Written`. Directories that are ignored, or projects of their own, add
        nothing.
        """
        if self.project is None:
            return Instructions()
        known = {*given, *(name for name, _ in self._candidates(self._upper()))}
        places = [
            (name, place)
            for directory in _directories_of(path, workspace)
            for name, place in self._candidates([directory])
            if name not in known and _is_listed(directory, workspace)
        ]
        found = [self._read_project(name, place) for name, place in places]
        return _fitted([each for each in found if isinstance(each, str) or each.name not in known], left=budget_tokens)

    def _beginning(self) -> "Iterator[Written | str]":
        if self.user is not None:
            yield from self._read_user(self.user)
        read: set[str] = set()
        for name, place in self._candidates(self._upper()):
            each = self._read_project(name, place)
            if isinstance(each, str):
                yield each
            elif each.name not in read:  # one that links to another one counts once
                read.add(each.name)
                yield each

    def _upper(self) -> list[Path]:
        """The directories from the project's root down to where the work goes on."""
        if self.project is None:
            return []
        return directories_down_to(self.cwd, self.project)

    def _candidates(self, directories: Sequence[Path]) -> Iterator[tuple[str, str]]:
        """The files there are: their names for people, and their paths from the project's root."""
        root = self.project
        paths = [str(file.relative_to(root)) for file in instruction_files(directories)] if root else []
        yield from ((clip(path), path) for path in paths)

    def _read_user(self, directory: Path) -> "Iterator[Written | str]":
        for file in instruction_files([directory]):
            # The user may keep the file anywhere, and link to it.
            yield read_written(Path("/"), os.path.realpath(file).lstrip("/"), name=f"the user's {file.name}")

    def _read_project(self, name: str, path: str) -> Written | str:
        """A file of the project under the name of the place where it really lies."""
        root = self.project
        assert root is not None  # noqa: S101 - candidates come from a project only
        try:
            with located(root, path) as place:
                real = place.relative
        except OutsideWorkspaceError:
            return f"{name} is not read: it leads out of the project."
        except OSError as error:
            return f"{name} is not read: {error.strerror or error}."
        if self.hidden(real):
            return f"{name} is not read: it commonly holds keys, or a rule forbids it."
        read = read_written(root, real, name=name)
        return read if isinstance(read, str) else replace(read, name=clip(real))


@dataclass
class Nested(AbstractCapability[Workspace]):
    """Brings the instructions of a directory when a file tool first touches a file in it."""

    memory: Memory
    budget_tokens: int
    """For all of them in one conversation."""
    warnings: Sequence[str] = ()
    """What there is to say about those that every request begins with."""
    warned: set[str] = field(default_factory=set)
    """The warnings that were told, by any run."""
    _given: dict[str, int] = field(default_factory=dict, init=False)
    """What this run brought; results of calls side by side are not in the conversation yet."""
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def for_run(self, ctx: RunContext[Workspace]) -> "Nested":
        """A fresh record for each run; what earlier ones brought stands in the conversation."""
        del ctx
        self._warn(self.warnings)
        return replace(self)

    def _warn(self, warnings: Sequence[str]) -> None:
        for warning in warnings:
            if warning not in self.warned:
                self.warned.add(warning)
                tell(warning)

    async def wrap_tool_execute(
        self,
        ctx: RunContext[Workspace],
        *,
        call: ToolCallPart,
        tool_def: ToolDefinition,
        args: dict[str, Any],
        handler: Callable[[dict[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Add the instructions as a message of its own behind the result; they are no part of what the file holds."""
        result = await handler(args)
        path = args.get("path")
        if call.tool_name not in _FILE_TOOLS or not isinstance(path, str) or not isinstance(result, str):
            return result
        async with self._one_at_a_time:
            more = await self._bring(path, ctx)
        self._warn(more.warnings)
        if not more.files:
            return result
        brought = {file.name: file.tokens for file in more.files}
        tell(f"Instructions from {_listed(more.files)}: about {more.tokens} tokens.")
        return ToolReturn(result, content=more.text, metadata={GIVEN: brought})

    async def _bring(self, path: str, ctx: RunContext[Workspace]) -> Instructions:
        given = {**given_in(sent(ctx.messages)), **self._given}
        left = self.budget_tokens - sum(given.values())
        more = await asyncio.to_thread(self.memory.below, path, workspace=ctx.deps, given=given, budget_tokens=left)
        self._given.update({file.name: file.tokens for file in more.files})
        return more


def _fitted(found: Sequence[Written | str], *, left: int) -> Instructions:
    """The files as far as there is room for them, and the warnings."""
    warnings = [each for each in found if isinstance(each, str)]
    left -= tokens_in(_PREAMBLE)
    kept: list[Written] = []
    over: list[Written] = []
    for file in (each for each in found if isinstance(each, Written)):
        if not over and file.tokens <= left:
            kept.append(file)
            left -= file.tokens
            continue
        over.append(file)
        cut = _cut(file, left) if len(over) == 1 else None
        kept += [cut] if cut else []
    said = [f"not whole, for want of room (agents_md_tokens): {_listed(over)}."] if over else []
    return Instructions(tuple(kept), (*warnings, *said))


def _cut(file: Written, tokens: int) -> Written | None:
    """The first lines that fit; None if that is none."""
    lines = file.text.split("\n")
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _first(file, middle).tokens <= tokens else (low, middle - 1)
    return _first(file, low) if low else None


def _first(file: Written, lines: int) -> Written:
    return replace(file, text="\n".join(file.text.split("\n")[:lines]) + "\n(cut here)")


def read_written(root: Path, path: str, *, name: str) -> Written | str:
    """The file's text, or why it is not read."""
    try:
        content = read_beneath(root, path, limit=MAX_FILE_BYTES)
    except OutsideWorkspaceError:
        return f"{name} is not read: it leads out of the project."
    except (NotRegularFileError, IsADirectoryError):
        return f"{name} is not read: it is not a regular file."
    except OSError as error:
        return f"{name} is not read: {error.strerror or error}."
    problem = _problem(content)
    if problem:
        return f"{name} is not read: {problem}."
    return Written(name, seen_by_all(decode(content.data)[0]))


def _problem(content: Content) -> str:
    if not content.whole or content.size >= MAX_FILE_BYTES:
        return f"it is larger than {MAX_FILE_BYTES // 1024} KiB"
    if is_binary(content.data):
        return "it is a binary file"
    if not decode(content.data)[1]:
        return "it is not UTF-8 text"
    return "" if seen_by_all(decode(content.data)[0]) else "it is empty"


def seen_by_all(text: str) -> str:
    """The text without characters that a person who reads the file does not see, and a model does."""
    return "".join(char for char in controls.clean(text) if not _is_unseen(char)).strip()


def _is_unseen(char: str) -> bool:
    return char > "\x7f" and (
        unicodedata.category(char) == "Cf" or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    )


def _directories_of(path: str, workspace: Workspace) -> list[Path]:
    """The directories below the workspace down to a file, outermost first, as far as they belong to the project."""
    try:
        with located(workspace.root, path) as place:
            parents = PurePosixPath(place.relative).parents
    except OSError:
        return []
    found: list[Path] = []
    for parent in list(parents)[::-1]:
        directory = workspace.root / parent
        if str(parent) == ".":
            continue
        if os.path.lexists(directory / ".git"):
            break
        found.append(directory)
    return found


def _is_listed(directory: Path, workspace: Workspace) -> bool:
    """Whether the directory is one whose files lists show: not ignored, and not of packages that were installed."""
    prefix = f"{directory.relative_to(workspace.root)}/"
    return any(entry.path.startswith(prefix) for entry in workspace.files())


def tokens_in(text: str) -> int:
    """About how many tokens a text takes, rather too many than too few."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def _listed(files: Sequence[Written]) -> str:
    return ", ".join(file.name for file in files)
