"""The one place where calls are judged: `authorize(call)` decides on what a call would really do.

Rules come first: deny, then ask, then allow, and how narrow a rule is does not matter. Then the mode decides. What
loses work, and what other programs take for instructions, is asked about even where a rule allows it. What cannot be
known is asked about, and asking without anybody there to answer means no.
"""

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from punie.agent import _covers
from punie.agent._dangers import Danger, dangers
from punie.agent._effects import (
    Call,
    Effects,
    Place,
    effects_of,
    holds_secret_places,
    is_inside,
    is_run_by_others,
    is_secret,
    may_be_secret,
    place_of,
    protected_in,
    words_as_places,
)
from punie.agent._safe import is_reader, is_safe, operands_of, searched_by
from punie.agent._suggestions import suggestions
from punie.config import PermissionMode
from punie.rules import COMMANDS, Rule, RuleSet, parse_rule

__all__ = ["Call", "Permissions", "Verdict", "authorize", "grant", "hides"]


@dataclass(frozen=True)
class Permissions:
    """What somebody may do: a mode, rules, and what is known about where it happens."""

    mode: PermissionMode = "default"
    rules: RuleSet = field(default_factory=RuleSet)
    uses_sandbox: bool = False
    """Whether a sandbox that works makes reading commands free, and in `auto` all the others too."""
    trusted: bool = False
    """Whether the user trusts the workspace, so that its git may be asked what is not committed."""
    home: Path | None = None
    """The home directory, for rules with `~/` and for the places where keys lie."""

    def with_allowed(self, texts: Iterable[str]) -> "Permissions":
        """The same with more rules that allow."""
        rules = tuple(parse_rule(text, source="allowed for good") for text in texts)
        return replace(self, rules=self.rules.with_allowed(rules))


@dataclass(frozen=True)
class Verdict:
    """What becomes of a call, and what a person who is asked about it should know."""

    kind: Literal["allow", "ask", "deny"]
    reason: str = ""
    """Why it is denied, or why an allowed call is asked about after all."""
    dangers: tuple[Danger, ...] = ()
    rules: tuple[str, ...] = ()
    """The rules that would allow it from now on; none if it is asked about every time."""
    every_time: bool = False
    """Whether no grant lets it through: it loses work, or changes what others take for instructions."""
    unseen: bool = False
    """Whether the model may not even be told why an edit cannot be made, because that quotes the file."""
    resolved: tuple[str, ...] = ()
    """The commands in it as the programs would get them, where they are written in another way."""
    real: str = field(default="", compare=False)
    """Where the path of a file tool led when the call was judged; it must still lead there when the call is made."""


_ALLOW = Verdict("allow")
_MOST_SEARCHED = 50_000
"""Files that are looked at, by their names, before a command that reads them all is let through."""


def authorize(
    call: Call, *, root: Path, permissions: Permissions, sandbox_works: bool = False, granted: Collection[str] = ()
) -> Verdict:
    """Judge one call. Looks at the disk, changes nothing, never raises.

    `sandbox_works` says that commands run in a sandbox that was tried out; `granted` are the grants of this session.
    """
    effects = effects_of(call, root=root)
    judging = _Judging(effects, root, permissions, sandboxed=sandbox_works and permissions.uses_sandbox)
    denied = judging.first(permissions.rules.deny)
    if denied:
        return Verdict("deny", f"Not allowed: the rule {denied} denies it.")
    verdict = judging.verdict(is_granted=grant(call) in granted)
    if verdict.kind == "ask" and permissions.mode == "dontAsk":
        return _unasked(effects, verdict)
    return replace(verdict, real=effects.places[0].real) if effects.places else verdict


def grant(call: Call) -> str:
    """What a grant for the session covers: the tool, and for commands only the very same one."""
    return f"{call.tool} {call.arguments.get('command')}" if call.tool in COMMANDS else call.tool


def hides(root: Path, permissions: Permissions) -> Callable[[str], bool]:
    """Whether a file, by its path from the root, must not turn up in lists and searches.

    It is asked about every file of a workspace, so what most files are not is found out first.
    """
    home = permissions.home
    reading = [r for r in (*permissions.rules.deny, *permissions.rules.ask) if "read_file" in r.tools]
    forbidden = _covers.files_of(reading, root=root, home=home)
    near = holds_secret_places(root, home)

    def hidden(relative: str) -> bool:
        if forbidden(relative):
            return True
        if not (near or may_be_secret(relative)):
            return False
        place = Place(f"{root}/{relative}", f"{root}/{relative}")
        judging = _Judging(Effects("read_file", "read", (place,)), root, permissions)
        return judging.read().kind != "allow"

    return hidden


@dataclass(frozen=True)
class _Judging:
    """One call, with all that is needed to judge it."""

    effects: Effects
    root: Path
    permissions: Permissions
    sandboxed: bool = False

    def first(self, rules: Iterable[Rule]) -> Rule | None:
        """The first rule of `deny` or `ask` that covers the call."""
        home = self.permissions.home
        return next((rule for rule in rules if _covers.forbids(rule, self.effects, root=self.root, home=home)), None)

    def verdict(self, *, is_granted: bool) -> Verdict:
        """What the rules that ask and allow, and then the mode, make of it."""
        if self.permissions.mode == "bypassPermissions":
            return self._ask(f"{self.hidden}, and there are rules that deny") if self._may_be_denied() else _ALLOW
        if self.permissions.mode == "plan" and self.effects.kind != "read":
            return self._planned()
        match self.effects.kind:
            case "read":
                return self.read()
            case "edit":
                return self._edit(is_granted=is_granted)
            case "command":
                return self._command(is_granted=is_granted)
            case "other":
                return self._other(is_granted=is_granted)

    def _planned(self) -> Verdict:
        """While planning no rule and no grant lets anything through: only commands run that would run unasked."""
        reads = self.sandboxed and self.effects.kind == "command"
        if reads and self._only_reads():
            return _ALLOW
        but = ", but for commands that only read in the workspace" if reads else ""
        return Verdict("deny", f"{self.effects.tool} is off while planning{but}.")

    @property
    def hidden(self) -> str:
        """Why the programs of a command are not known, empty if they are."""
        return self.effects.analysis.opaque if self.effects.analysis else ""

    def _may_be_denied(self) -> bool:
        denied = any(rule.spec is not None and rule.tools & COMMANDS for rule in self.permissions.rules.deny)
        return bool(self.hidden) and denied

    def read(self) -> Verdict:
        """Reading is free, but for what a rule asks about and for what commonly holds keys."""
        rule = self.first(self.permissions.rules.ask)
        if rule:
            return self._ask(f"the rule {rule} asks about it", every_time=True)
        secret = any(is_secret(place, self.permissions.home) for place in self.effects.places)
        if secret and not self._is_allowed(spec_only=True):
            return self._ask("it commonly holds keys or passwords")
        return _ALLOW

    def _edit(self, *, is_granted: bool) -> Verdict:
        mode, places = self.permissions.mode, self.effects.places
        rule = self.first(self.permissions.rules.ask)
        if rule:
            return self._ask(f"the rule {rule} asks about it", every_time=True)
        part = next((part for place in places if (part := protected_in(place, self.root))), "")
        if part:
            return self._ask(f"other programs take {part} for instructions", every_time=True)
        if self.effects.links > 1:
            return self._ask("the file has another name elsewhere", every_time=True)
        if any(is_secret(place, self.permissions.home) for place in places) and not self._is_allowed(spec_only=True):
            return replace(self._ask("it commonly holds keys or passwords"), unseen=True)
        inside = all(is_inside(place, self.root) for place in places)
        if inside and (is_granted or self._is_allowed()):
            return _ALLOW
        if inside and mode in {"acceptEdits", "auto"} and not any(map(is_run_by_others, places)):
            return _ALLOW
        return self._ask("")

    def _other(self, *, is_granted: bool) -> Verdict:
        rule = self.first(self.permissions.rules.ask)
        if rule:
            return self._ask(f"the rule {rule} asks about it", every_time=True)
        return _ALLOW if is_granted or self._is_allowed() else self._ask("")

    def _is_allowed(self, *, spec_only: bool = False) -> bool:
        rules = (rule for rule in self.permissions.rules.allow if rule.spec is not None or not spec_only)
        home = self.permissions.home
        return any(_covers.allows(rule, self.effects, root=self.root, home=home) for rule in rules)

    # --- commands ---

    def _command(self, *, is_granted: bool) -> Verdict:
        rule = self.first(self.permissions.rules.ask)
        if rule:
            return self._ask(f"the rule {rule} asks about it", every_time=True)
        analysis = self.effects.analysis
        if analysis is None:
            return self._ask("")
        found = dangers(analysis, root=self.root)
        if found:
            return replace(self._ask("", every_time=True), dangers=found)
        touched = "" if analysis.opaque else self._touched()
        if touched:
            return self._ask(touched, every_time=True)
        if is_granted or self._runs_freely():
            return _ALLOW
        return self._ask(analysis.opaque or analysis.unplain)

    def _touched(self) -> str:
        """What a command names that no rule lets it have unasked."""
        analysis = self.effects.analysis
        for name, place in words_as_places(analysis, root=self.root) if analysis else ():
            if is_secret(place, self.permissions.home):
                return f"it names {place.lexical}, which commonly holds keys or passwords"
            part = "" if is_reader(name) or name == "git" else protected_in(place, self.root)
            if part and name != "cd":
                return f"it names {part}, which other programs take for instructions"
        return ""

    def _runs_freely(self) -> bool:
        """Whether rules, or the mode, let the command run unasked."""
        analysis = self.effects.analysis
        if analysis is None or not analysis.commands or analysis.opaque:
            return False
        if not analysis.plain and self._is_shadowed():
            return False
        allow = self.permissions.rules.allow
        if any(rule.spec is None and rule.tools & COMMANDS for rule in allow):
            return True
        if self.sandboxed and self.permissions.mode == "auto":
            return True
        if not analysis.plain:
            return False
        return all(
            any(_covers.allows_command(rule, argv) for rule in allow) or self._is_free(argv)
            for argv in analysis.commands
        )

    def _only_reads(self) -> bool:
        """Whether a command, by its words alone, changes nothing and reads only what may be read unasked."""
        analysis = self.effects.analysis
        if analysis is None or not analysis.commands or analysis.opaque or not analysis.plain:
            return False
        if self.first(self.permissions.rules.ask) or dangers(analysis, root=self.root) or self._touched():
            return False
        return all(map(self._is_free, analysis.commands))

    def _is_shadowed(self) -> bool:
        """Whether there are rules that a part which is only known when it runs might fall under."""
        rules = (*self.permissions.rules.deny, *self.permissions.rules.ask)
        return any(rule.spec is not None for rule in rules)

    def _is_free(self, argv: tuple[str | None, ...]) -> bool:
        """Whether a command only reads what is in the workspace, in a sandbox."""
        if not self.sandboxed or self.permissions.mode == "dontAsk" or not is_safe(argv):
            return False
        words = (word for word in operands_of(argv) if not word.startswith("-"))
        inside = all(is_inside(place_of(word, root=self.root), self.root) for word in words)
        return inside and not any(map(self._holds_hidden, searched_by(argv)))

    def _holds_hidden(self, directory: str) -> bool:
        """Whether searching a directory would show what may not be read unasked; also if it holds too much to say."""
        hidden, left = hides(self.root, self.permissions), _MOST_SEARCHED
        for above, names, files in os.walk(place_of(directory, root=self.root).real):
            names[:] = [name for name in names if name != ".git"]
            left -= len(files) + 1
            if left < 0 or any(hidden(os.path.relpath(f"{above}/{name}", self.root)) for name in files):
                return True
        return False

    def _ask(self, reason: str, *, every_time: bool = False) -> Verdict:
        rules = () if every_time else suggestions(self.effects, self.permissions.rules.allow, root=self.root)
        return Verdict("ask", reason, rules=rules, every_time=every_time, resolved=self._resolved())

    def _resolved(self) -> tuple[str, ...]:
        analysis = self.effects.analysis
        if analysis is None or analysis.plain:
            return ()
        shown = (" ".join("?" if word is None else word or "''" for word in argv) for argv in analysis.commands)
        return tuple(dict.fromkeys(shown))[:10]


def _unasked(effects: Effects, verdict: Verdict) -> Verdict:
    """Nobody is asked: the model is told no, and the user which rule would allow it."""
    why = f": {verdict.reason or ', '.join(map(str, verdict.dangers))}" if verdict.reason or verdict.dangers else ""
    rule = f" The user can allow it with {' and '.join(verdict.rules)}." if verdict.rules else ""
    return Verdict("deny", f"{effects.tool} is not allowed here{why}.{rule}", rules=verdict.rules)
