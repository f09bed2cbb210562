"""Skills: folders with a `SKILL.md`, of the user and of a project that the user trusts (agentskills.io/specification).

A model is told their names and what they are for, once, at the beginning. The instructions of one come when they are
asked for, by the model or by the user, and so does every other file of its folder. Nothing in a skill gives a
permission: its scripts are commands like any other.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic_ai import ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models import Model

from punie.agent._effects import Place, is_secret
from punie.agent.memory import DEFAULT_WINDOW, Memory, read_written, seen_by_all, tokens_in
from punie.config import own_skill_places, project_skill_places
from punie.tools import Workspace
from punie.tools._files import plain_ends
from punie.tools._output import clip, fitting, nearest
from punie.tools._paths import held

FILE = "SKILL.md"
MAX_SKILLS = 100
"""Of all places together."""
MAX_ENTRIES = 500
"""Names of one place that are looked at."""
MAX_DESCRIPTION = 1024
MAX_FRONT_MATTER = 16 * 1024
MAX_LOADED = 40_000
"""Bytes of one file of a skill that the model gets."""
MAX_FILES = 40
"""Files of a skill that are named with its instructions."""
SHARE = 50
"""One part in so many of the window is for the names and descriptions."""
MOST_TOKENS = 4096

_NAME = re.compile(r"(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_PLAIN_LINE = re.compile(r"^(name|description):[ \t]*(\S.*)$", re.MULTILINE)
_HIDDEN_DIRECTORIES = re.compile(r"\..*|__pycache__|node_modules")
_PREAMBLE = (
    "Skills are instructions for certain tasks. Before a task that one of these is for, load it with `load_skill`. "
    "They cannot allow what a tool refuses."
)


@dataclass(frozen=True)
class Skill:
    """One skill: a folder below `root`, which is the project for one of a project and the folder itself for others."""

    name: str
    description: str
    root: Path
    folder: str
    """Path from the root, without links; `.` is the root."""
    shown: str
    """Its directory as commands name it, and people."""
    of_project: bool = False
    only_by_user: bool = False
    """Whether the model is not told of it."""

    @property
    def line(self) -> str:
        """What the model is told of it at the beginning."""
        return f"- {self.name}: {self.description}"

    @property
    def directory(self) -> Path:
        """Where its files lie, without links."""
        return self.root / self.folder


def _nothing(skill: Skill, path: str) -> bool:
    """Nothing is refused."""
    del skill, path
    return False


@dataclass(frozen=True)
class Skills:
    """The skills by name, those that the model is told of, and a line about each that is not as it should be.

    `refuses` says of a path from a skill's root that it must not be read.
    """

    found: Mapping[str, Skill] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    told: tuple[Skill, ...] = ()
    refuses: Callable[[Skill, str], bool] = _nothing

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.found)

    @property
    def text(self) -> str:
        """What stands behind the other instructions; empty when there is none."""
        return "\n".join([_PREAMBLE, *(skill.line for skill in self.told)]) if self.told else ""

    @property
    def tokens(self) -> int:
        """About how many tokens that takes in every request."""
        return tokens_in(self.text)

    def load(self, name: str, file: str = FILE) -> str:
        """A file of a skill as the model gets it. Raises ModelRetry with what to do instead."""
        skill = self.found.get(name.strip())
        if skill is None:
            close = nearest(name, self.found) or sorted(self.found)
            raise ModelRetry(f"There is no skill named {clip(name)}. There are: {', '.join(close[:10]) or 'none'}.")
        text = _text_of(skill, file, self.refuses)
        if isinstance(text, _Problem):
            raise ModelRetry(f"Of the skill {skill.name}, {text.why}")
        if file != FILE:
            return f"{clip(file)} of the skill {skill.name}\n{_cut(text)}"
        body = _FRONT.sub("", text, count=1).strip()
        return f'<skill name="{skill.name}">\n{_cut(body)}\n</skill>\n{_beside(skill)}'

    def prompt(self, name: str, request: str) -> str:
        """What the user says who asks for a skill. Raises ModelRetry if it cannot be had."""
        return f"{self.load(name)}\n\n{request or 'Do what this skill is for.'}"


@dataclass(frozen=True)
class _Problem:
    why: str


@dataclass
class Loading(AbstractCapability[Workspace]):
    """Lets the tools of a run load these skills."""

    skills: Skills

    async def for_run(self, ctx: RunContext[Workspace]) -> "Loading":
        """Hand them to the workspace, which tools get everything from."""
        ctx.deps.skill = self.skills.load
        return self


def budget_for(model: Model, *, tokens: int | None) -> int:
    """Tokens that names and descriptions may take: those chosen, else a small part of the model's window."""
    if tokens is not None:
        return tokens
    return min((model.context_window or DEFAULT_WINDOW) // SHARE, MOST_TOKENS)


def find_skills(memory: Memory, *, home: Path | None, budget_tokens: int) -> Skills:
    """The skills of the user, then those of the project, as far as it is trusted; the first one of a name counts.

    Never raises: what cannot be used is a warning. Those that do not fit into the budget are not told to the model.
    """
    if budget_tokens <= 0:
        return Skills()

    def refuses(skill: Skill, path: str) -> bool:
        # By its name alone: the directory of the user's settings counts as a place of keys, and may hold skills.
        return memory.hidden(path) if skill.of_project else is_secret(Place(f"/{path}", f"/{path}"), None)

    found: dict[str, Skill] = {}
    warnings: list[str] = []
    folders: set[Path] = set()
    for each in _everywhere(memory, home):
        if isinstance(each, Skill) and each.directory in folders:  # the same one, by a link
            continue
        if isinstance(each, Skill):
            folders.add(each.directory)
            each = _described(each, refuses, warnings)
        if isinstance(each, _Problem):
            warnings.append(each.why)
        elif each.name in found:
            warnings.append(f"The skill in {each.shown} is not used: that in {found[each.name].shown} has its name.")
        elif len(found) >= MAX_SKILLS:
            warnings.append(f"There are more than {MAX_SKILLS} skills: {each.shown} and those after it are not used.")
            break
        else:
            found[each.name] = each
    told = _fitted([skill for skill in found.values() if not skill.only_by_user], left=budget_tokens)
    out = [name for name, skill in found.items() if skill not in told and not skill.only_by_user]
    if out:
        warnings.append(f"The model is not told of skills for want of room (skills_tokens): {clip(', '.join(out))}.")
    return Skills(found, tuple(warnings), told, refuses)


def _fitted(skills: Sequence[Skill], *, left: int) -> tuple[Skill, ...]:
    left -= tokens_in(_PREAMBLE)
    told: list[Skill] = []
    for skill in skills:
        cost = tokens_in(f"\n{skill.line}")
        if cost <= left:
            left -= cost
            told.append(skill)
    return tuple(told)


# --- where they lie ------------------------------------------------------------------------------------------------


def _everywhere(memory: Memory, home: Path | None) -> "Iterator[Skill | _Problem]":
    """Every folder that may be a skill, under the folder's name and without a description yet."""
    for place in own_skill_places(user=memory.user, home=home):
        for name in _names(place):
            if os.path.lexists(place / name / FILE):
                # The user may keep a skill anywhere, and link to it.
                yield Skill(name, "", Path(os.path.realpath(place / name)), ".", clip(str(place / name)))
    root = memory.project
    for place in project_skill_places(memory.cwd, root) if root else ():
        yield from _of_project(root, place, cwd=memory.cwd) if root else ()


def _of_project(root: Path, place: Path, *, cwd: Path) -> "Iterator[Skill | _Problem]":
    """The folders of one place in a project, as far as they lie in it."""
    if not os.path.lexists(place):
        return
    with held(root) as tree:
        try:
            names = _names(root / tree.resolve(str(place)))
        except OSError:
            yield _Problem(f"The skills in {_shown(place, cwd)} are not read: they lead out of the project.")
            return
        for name in names:
            shown = _shown(place / name, cwd)
            try:
                folder = tree.resolve(str(place / name))
            except OSError:
                yield _Problem(f"The skill in {shown} is not read: it leads out of the project.")
                continue
            if os.path.lexists(root / folder / FILE):
                yield Skill(name, "", root, folder, shown, of_project=True)


def _shown(path: Path, cwd: Path) -> str:
    return clip(str(path.relative_to(cwd) if path.is_relative_to(cwd) else path))


def _names(place: Path) -> list[str]:
    """The names in a directory, sorted; none if it cannot be looked into."""
    try:
        with os.scandir(place) as entries:
            found = [entry.name for entry, _ in zip(entries, range(MAX_ENTRIES), strict=False)]
    except OSError:
        return []
    return sorted(name for name in found if not name.startswith("."))


# --- what stands in them -------------------------------------------------------------------------------------------


def _text_of(skill: Skill, file: str, refuses: Callable[[Skill, str], bool]) -> "str | _Problem":
    """The text of a file in the folder of a skill, without what a person who reads it does not see."""
    inside = f"{skill.folder}/{file}"
    named = clip(file)
    try:
        with held(skill.root) as tree:
            real = tree.resolve(inside)
    except OSError:
        real = ""
    if not real or (skill.folder != "." and not real.startswith(f"{skill.folder}/")):
        return _Problem(f"{named} is not read: it leads out of the skill's folder.")
    if refuses(skill, real):
        return _Problem(f"{named} is not read: it commonly holds keys, or a rule forbids it.")
    read = read_written(skill.root, real, name=named)
    return _Problem(read) if isinstance(read, str) else plain_ends(read.text)


def _described(skill: Skill, refuses: Callable[[Skill, str], bool], warnings: list[str]) -> "Skill | _Problem":
    """The skill with the name and description of its front matter; adds what is odd about them to the warnings."""
    text = _text_of(skill, FILE, refuses)
    front = text if isinstance(text, _Problem) else _front_of(text)
    if isinstance(front, _Problem):
        return _Problem(f"The skill in {skill.shown} is not used: {front.why}")
    description = " ".join(str(front.get("description") or "").split())
    if not description:
        return _Problem(f"The skill in {skill.shown} is not used: it has no description.")
    if len(description) > MAX_DESCRIPTION:
        warnings.append(f"The description in {skill.shown} is cut: it has more than {MAX_DESCRIPTION} characters.")
        description = f"{description[: MAX_DESCRIPTION - 3]}..."
    wanted = str(front.get("name") or skill.name)
    name = wanted if _NAME.fullmatch(wanted) else skill.name
    if not _NAME.fullmatch(name):
        return _Problem(f"The skill in {skill.shown} is not used: a name is small letters, digits and single hyphens.")
    if wanted != skill.name:
        warnings.append(f"The skill in {skill.shown} calls itself {clip(wanted)}: it is used as {name}.")
    only_by_user = front.get("disable-model-invocation") == "true"
    return replace(skill, name=name, description=description, only_by_user=only_by_user)


def _front_of(text: str) -> "Mapping[str, object] | _Problem":
    """The front matter; values are text, whatever YAML would take them for."""
    import yaml  # only where there are skills

    found = _FRONT.match(text)
    if found is None or len(found[1]) > MAX_FRONT_MATTER:
        return _Problem("it does not begin with a front matter between lines of `---`.")
    try:
        value = yaml.load(found[1], Loader=yaml.BaseLoader)  # noqa: S506 - makes nothing but text, lists and tables
    except (yaml.YAMLError, RecursionError, ValueError):
        # Many were written for readers that take everything behind the first colon.
        value = dict(_PLAIN_LINE.findall(found[1]))
    if not isinstance(value, dict) or not value:
        return _Problem("its front matter is no table in YAML.")
    return {str(key): seen_by_all(item) for key, item in value.items() if isinstance(item, str)}


def _cut(text: str) -> str:
    lines = text.split("\n")
    kept = fitting(lines, limit=len(lines), room=MAX_LOADED)
    more = [f"(cut here: {len(lines) - len(kept)} more lines)"] if len(kept) < len(lines) else []
    return "\n".join([*kept, *more])


def _beside(skill: Skill) -> str:
    """Which other files there are, and how to get at them."""
    files: list[str] = []
    for above, directories, names in os.walk(skill.directory):
        directories[:] = sorted(name for name in directories if not _HIDDEN_DIRECTORIES.fullmatch(name))
        files += [os.path.relpath(f"{above}/{name}", skill.directory) for name in sorted(names) if name != FILE]
        if len(files) > MAX_FILES:
            break
    if not files:
        return f"The skill lies in {skill.shown}."
    more = ["- ... and more"] if len(files) > MAX_FILES else []
    head = f"The skill lies in {skill.shown}. `load_skill` reads these files of it, `run_command` runs scripts:"
    return "\n".join([head, *(f"- {clip(file)}" for file in files[:MAX_FILES]), *more])
