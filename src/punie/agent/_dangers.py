"""Commands that lose work: which ones they are, and what would be lost.

To name one is cheap and happens for every command; to count what it would take is bounded by a number of files and by
time, and happens only when a person is about to be asked.
"""

import os
import re
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from punie.agent._shell import Analysis, Argv, Word, program, without_options
from punie.tools._programs import find_program

MAX_COUNTED = 10_000
SECONDS = 0.5
GIT_SECONDS = 2.0

Loses = Literal["files", "content", "changes", "untracked", "history", "device"]
_DEVICES = re.compile(r"mkfs(\..*)?|mke2fs|mkswap|wipefs|blkdiscard|fdisk|sfdisk|cfdisk|parted|shred|wipe|srm")
_OVERWRITERS = frozenset({"cp", "install", "mv", "ln", "rsync"})
_GIT = (
    *("git", "--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "core.pager=cat", "-c", "safe.bareRepository=explicit", "-c", "protocol.ext.allow=never"),
)
_SAID: dict[Loses, str] = {
    "files": "deletes files",
    "content": "writes over what is in a file",
    "changes": "throws away changes that are not committed",
    "untracked": "deletes files that git does not know",
    "history": "throws away commits or stashed changes",
    "device": "destroys what is on a device or in a file",
}


@dataclass(frozen=True)
class Danger:
    """A command that loses work; `paths` are the files it names, None where they are only known when it runs."""

    program: str
    loses: Loses
    paths: tuple[Word, ...] = ()

    def __str__(self) -> str:
        return f"`{self.program}` {_SAID[self.loses]}"


def dangers(analysis: Analysis, *, root: Path) -> tuple[Danger, ...]:
    """What in a command line loses work, without looking further than whether a file is there."""
    found = [danger for argv in analysis.commands for danger in _of(argv, root)]
    found += [
        Danger(">", "content", (write.target,))
        for write in analysis.writes
        if not write.appends and _is_there(write.target, root)
    ]
    return tuple(dict.fromkeys(found))


def _of(argv: Argv, root: Path) -> Iterator[Danger]:
    name, operands = program(argv), without_options(argv)[1:]
    if name in {"rm", "unlink", "trash"}:
        yield Danger(name, "files", operands)
    elif _DEVICES.fullmatch(name):
        yield Danger(name, "device", operands)
    elif name == "truncate":
        yield Danger(name, "content", operands)
    elif name == "dd":
        targets = tuple(word[3:] for word in argv if word is not None and word.startswith("of="))
        if targets or None in argv:
            yield Danger(name, "device", targets)
    elif name in {"find", "fd", "fdfind"} and any(word == "-delete" for word in argv):
        yield Danger(f"{name} -delete", "files", operands[:1] or (".",))
    elif name == "tee" and not _has(argv, "a", "append"):
        there = tuple(word for word in operands if _is_there(word, root))
        yield from (Danger(name, "content", (word,)) for word in there)
    elif name == "crontab" and _has(argv, "r", "remove"):
        yield Danger("crontab -r", "content")
    elif name in _OVERWRITERS:
        yield from _over(argv, name, operands=operands, root=root)
    elif name == "git":
        yield from _git(operands, argv, root)


def _has(argv: Argv, short: str, long: str) -> bool:
    """Whether an option is given, alone or in a bundle; one that is only known when it runs counts."""
    return any(
        word is not None and (re.fullmatch(rf"-[a-zA-Z]*{short}[a-zA-Z]*", word) or word.startswith(f"--{long}"))
        for word in argv[1:]
    )


def _over(argv: Argv, name: str, *, operands: Argv, root: Path) -> Iterator[Danger]:
    if name == "rsync":
        if any(word is not None and word.startswith(("--delete", "--remove-source")) for word in argv):
            yield Danger("rsync --delete", "files", operands[-1:])
        return
    if (name == "ln" and not _has(argv, "f", "force")) or _has(argv, "n", "no-clobber"):
        return
    if None in operands:
        if name == "mv":
            yield Danger(name, "content", (None,))
        return
    known = [word for word in operands if word is not None]
    targets = _targets(known, root)
    if targets:
        yield Danger(name, "content", tuple(targets))


def _targets(operands: list[str], root: Path) -> list[Word]:
    """The existing files that moving or copying would write over."""
    if len(operands) < 2:
        return []
    *sources, last = operands
    into = _at(last, root).is_dir()
    names = [str(Path(last) / Path(source).name) if into else last for source in sources]
    return [name for name in names if _is_there(name, root) and not _at(name, root).is_dir()]


def _git(operands: Argv, argv: Argv, root: Path) -> Iterator[Danger]:
    if not operands:
        return
    command, rest = operands[0], operands[1:]
    unsure = None in argv
    options = {word for word in argv if word is not None and word.startswith("-")}

    def given(*names: str) -> bool:
        short = {name[1] for name in names if re.fullmatch("-[a-zA-Z]", name)}
        bundles = {char for word in options if not word.startswith("--") for char in word[1:]}
        long = [name for name in names if name.startswith("--")]
        return bool(short & bundles) or any(word.startswith(name) for word in options for name in long)

    if command == "reset" and (given("--h", "--me", "--k") or unsure):
        yield Danger("git reset --hard", "changes")
    elif command == "clean" and not given("-n", "--dry-run"):
        yield Danger("git clean", "untracked", rest)
    elif command in {"checkout", "switch"}:
        named = tuple(word for word in rest if word is None or word == "." or _is_there(word, root))
        if given("-f", "--force", "--discard-changes") or "--" in argv or named:
            yield Danger(f"git {command}", "changes", named)
    elif command == "restore" and not (given("-S", "--staged") and not given("-W", "--worktree")):
        yield Danger("git restore", "changes", rest)
    elif command == "rm" and not given("--cached"):
        yield Danger("git rm", "files", rest)
    elif command in {"checkout-index", "read-tree"} and (given("-f", "--force", "--reset", "-u") or unsure):
        yield Danger(f"git {command}", "changes")
    else:
        yield from _git_history(str(command), rest, given_force=given("-f", "--force", "-d", "-D", "--delete"))


def _git_history(command: str, rest: Argv, *, given_force: bool) -> Iterator[Danger]:
    first = rest[0] if rest else None
    forced_ref = any(word is not None and word.startswith(("+", ":")) for word in rest)
    losing = {
        "stash": first in {"drop", "clear"},
        "branch": given_force,
        "tag": given_force,
        "push": given_force or forced_ref,
        "update-ref": given_force,
        "reflog": first in {"expire", "delete"},
        "worktree": first == "remove",
        "gc": False,
        "prune": True,
        "filter-branch": True,
        "filter-repo": True,
    }
    if losing.get(command, False):
        yield Danger(" ".join(["git", command, *([first] if first and command == "stash" else [])]), "history")


def _at(word: str, root: Path) -> Path:
    return root / word


def _is_there(word: Word, root: Path) -> bool:
    """Whether a file is there; one that is only known when the command runs might be."""
    return word is None or (word != "" and "\0" not in word and os.path.lexists(root / word))


def losses(found: tuple[Danger, ...], *, root: Path, trusted: bool) -> str:
    """What would be lost, in a few lines for the person who is asked. Git is only asked in a trusted project."""
    return "\n".join(_said(danger, root=root, trusted=trusted) for danger in found[:5])


def _said(danger: Danger, *, root: Path, trusted: bool) -> str:
    parts = [str(danger)]
    named = [word for word in danger.paths if word is not None]
    if len(named) < len(danger.paths):
        parts.append("which files is only known when it runs")
    if danger.loses in {"files", "content", "device"} and named:
        parts.append(_counted(named, root))
    if danger.loses in {"files", "content", "changes", "untracked"}:
        parts += _uncommitted(danger, named, root=root) if trusted else []
    return f"{parts[0]}: {'; '.join(parts[1:])}." if parts[1:] else f"{parts[0]}."


def _counted(paths: list[str], root: Path) -> str:
    """How many files stand at these paths, and how large they are."""
    deadline = time.monotonic() + SECONDS
    files = size = 0
    for status in _files(paths, root):
        files, size = files + 1, size + status.st_size
        if files >= MAX_COUNTED or time.monotonic() > deadline:
            return f"more than {files} files, {_bytes(size)} and more"
    return f"{files} file{'' if files == 1 else 's'}, {_bytes(size)}" if files else "nothing is there yet"


def _files(paths: list[str], root: Path) -> Iterator[os.stat_result]:
    for path in paths:
        place = root / path
        try:
            status = place.lstat()
        except (OSError, ValueError):
            continue
        if stat.S_ISDIR(status.st_mode):
            for directory, _, names in os.walk(place, followlinks=False):
                for name in names:
                    try:
                        yield (Path(directory) / name).lstat()
                    except OSError:
                        continue
        else:
            yield status


def _without_filters(command: list[str], *, root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that switch off the filters a repository's configuration names: comparing a file would run them."""
    asked = [*command, "-z", "--name-only", "--get-regexp", r"^filter\."]
    done = subprocess.run(asked, cwd=root, env=environment, capture_output=True, timeout=GIT_SECONDS, check=False)
    names = {os.fsdecode(key).rpartition(".")[0] for key in done.stdout.split(b"\0") if key}
    off = [(f"{name}.{key}", "") for name in sorted(names) for key in ("clean", "process", "smudge")]
    off += [(f"{name}.required", "false") for name in sorted(names)]
    settings = {f"GIT_CONFIG_KEY_{number}": key for number, (key, _) in enumerate(off)}
    values = {f"GIT_CONFIG_VALUE_{number}": value for number, (_, value) in enumerate(off)}
    return {**settings, **values, "GIT_CONFIG_COUNT": str(len(off))}


def _bytes(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size //= 1000
    return f"{size} GB"


def _uncommitted(danger: Danger, paths: list[str], *, root: Path) -> list[str]:
    """What git says would be lost for good, in words; nothing where there is no repository."""
    git = find_program("git", path=os.environ.get("PATH", ""), workspace=root)
    if git is None:
        return []
    inside = [path for path in paths if (root / path).is_relative_to(root)]
    command = [git, *_GIT[1:], "status", "--porcelain", "-z", "--untracked-files=all", "--ignore-submodules=all", "--"]
    environment = {"PATH": os.environ.get("PATH", ""), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    environment |= {"HOME": os.environ.get("HOME", ""), "LC_ALL": "C"}
    try:
        environment |= _without_filters([*command[: len(_GIT)], "config"], root=root, environment=environment)
        done = subprocess.run(
            [*command, *inside], cwd=root, env=environment, capture_output=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    states = [line[:2] for line in done.stdout.split(b"\0") if len(line) > 3 and line[2:3] == b" "]
    untracked = sum(state == b"??" for state in states)
    changed = len(states) - untracked
    wanted = {"untracked": [(untracked, "untracked")], "changes": [(changed, "changed")]}
    both = [(changed, "changed"), (untracked, "untracked")]
    counts = wanted.get(danger.loses, both)
    said = [f"{count} {what}" for count, what in counts if count]
    return [f"not committed: {', '.join(said)}"] if said else ["nothing in it is uncommitted"]
