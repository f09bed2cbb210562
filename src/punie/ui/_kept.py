"""Which stored session a conversation goes on with, and what the user is told about sessions and undoing."""

import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from punie.errors import SessionError, UsageError
from punie.trust import state_directory
from punie.ui._clean import one_line
from punie.ui._setup import Setup
from punie.ui.options import Options

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

    from punie.agent.difference import Difference
    from punie.agent.session import Session, SessionInfo, SessionStore
    from punie.agent.undo import Undone

_LISTED = 20
_NAMED = 8
NOT_STORED = UsageError("Sessions are not stored here.", "--no-session or save_sessions = false says so.")


def open_store(env: Mapping[str, str]) -> "SessionStore":
    """The user's sessions. SessionError if they cannot be written."""
    from punie.agent.session import SessionStore

    return SessionStore(state_directory(env) / "sessions", environment=env)


def require_state(env: Mapping[str, str]) -> None:
    """Raise SessionError where nothing of a conversation can be kept; a chat begins like that only if told to."""
    directory = state_directory(env)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        writable = os.access(directory, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise SessionError(
            f"{directory} cannot be written, so nothing of the conversation can be kept.",
            "Make it writable, choose another with XDG_STATE_HOME, or go on without: --no-session.",
        )


class Kept:
    """The session of a conversation. The store is opened when it is first needed: that takes longer than a prompt."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._store: SessionStore | None = None
        self._session: Session | None = None
        self._pruned = False
        self._notices: tuple[str, ...] = ()

    @property
    def on(self) -> bool:
        """Whether conversations are stored at all."""
        return self._setup.settings.save_sessions

    def notices(self) -> tuple[str, ...]:
        """What had to be mended when the store was opened; told once."""
        told, self._notices = self._notices, ()
        return told

    def start(self, options: Options) -> "Sequence[ModelMessage]":
        """The conversation the flags ask to go on with. UsageError if there is none."""
        if not options.goes_on:
            if options.fork:
                raise UsageError("--fork needs a session to copy.", "Add --continue, or --resume ID.")
            return ()
        if options.fork:
            return self.fork(options.resume or "")
        return self.resume(options.resume or "")

    def session(self) -> "Session | None":
        """The session to store the next turn in; None if nothing is stored. SessionError if that cannot be."""
        if not self.on:
            return None
        if self._session is None:
            self._session = self._opened().create(self._setup.root, id=self._setup.session_id)
        self._prune_once()
        return self._session

    def resume(self, id: str) -> "Sequence[ModelMessage]":  # noqa: A002 - the field's name
        """Go on with the session that this, or its number in the list, names; with the last one if empty."""
        return self._switch(self._opened().resume(self._setup.root, self._id(id)))

    def fork(self, id: str = "") -> "Sequence[ModelMessage]":  # noqa: A002 - the field's name
        """Go on with a copy of a session; of the present one if none is named and there is one."""
        source = self._id(id) or (self._session.id if self._session is not None else "")
        return self._switch(self._opened().fork(self._setup.root, source))

    def forget(self) -> None:
        """Begin a new session with the next turn."""
        if self._session is not None:
            self._session.close()
            self._session = None
            self._setup = replace(self._setup, session_id="")

    def close(self) -> None:
        """Let another process go on with the session."""
        if self._session is not None:
            self._session.close()
        if self._store is not None:
            self._store.close()

    def listed(self) -> list[str]:
        """The sessions of this directory, one a line."""
        found = self._opened().list(self._setup.root)
        lines = [f"{number:>3}  {line}" for number, line in enumerate(map(line_of, found[:_LISTED]), start=1)]
        return lines or ["There is no session of this directory yet."]

    def turned(self, direction: str) -> list[str]:
        """Take back what the last turn did to files, or do it again, and say so."""
        session = self.session()
        if session is None:
            raise NOT_STORED
        return told(session.undo() if direction == "undo" else session.redo(), direction)

    def current(self) -> str:
        """The id of the conversation. UsageError if nothing of it is stored yet."""
        if self._session is None or not self._session.messages:
            raise NOT_STORED if not self.on else UsageError("Nothing is stored of this conversation yet.")
        return self._session.id

    def rename(self, title: str) -> None:
        """Give the conversation another title."""
        self._opened().rename(self.current(), title)

    def export(self, name: str) -> Path:
        """Write the conversation to a new file of the workspace; its name says how, Markdown if it says nothing.

        UsageError if that cannot be.
        """
        from punie.ui.sessions import export_to, form_of

        path = self._setup.root / Path(name or f"punie-{self.current()[:_NAMED]}.md").expanduser()
        export_to(self._opened(), self.current(), form=form_of(path, "markdown"), output=str(path))
        return path

    def difference(self) -> "Difference":
        """What the conversation changed in files."""
        from punie.agent.difference import Difference, difference

        return Difference("") if self._session is None else difference(self._session.journal)

    def choices(self) -> list[tuple[str, str]]:
        """The sessions of this directory for a completion: the beginning of the id, and the title."""
        found = self._opened().list(self._setup.root)[:_LISTED] if self.on else []
        return [(info.id[:_NAMED], one_line(info.title, width=50)) for info in found]

    def _prune_once(self) -> None:
        """Delete old conversations while this one goes on; it is the present one's already, or has no row yet."""
        store, kept = self._opened(), self._setup.settings.sessions

        def prune() -> None:
            with suppress(SessionError):  # there will be another time
                store.prune(keep_days=kept.keep_days, keep=kept.keep)

        if not self._pruned:
            self._pruned = True
            threading.Thread(target=prune, name="punie-prune", daemon=True).start()

    def _id(self, given: str) -> str:
        if not given.isdigit() or int(given) > _LISTED:
            return given
        found = self._opened().list(self._setup.root)
        if not 1 <= int(given) <= len(found):
            raise UsageError(f"There is no session number {given}.", "/sessions lists them.")
        return found[int(given) - 1].id

    def _switch(self, session: "Session") -> "Sequence[ModelMessage]":
        if self._session is not None and self._session.id != session.id:
            self._session.close()
        self._session = session
        return session.messages

    def _opened(self) -> "SessionStore":
        if not self.on:
            raise NOT_STORED
        if self._store is None:
            self._store = open_store(os.environ)
            self._notices = self._store.notices
        return self._store


def line_of(info: "SessionInfo") -> str:
    """A session in one line."""
    changed = datetime.fromtimestamp(info.changed, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    return f"{info.id[:_NAMED]}  {changed}  {info.messages:>4} messages  {one_line(info.title, width=60)}"


def told(undone: "Undone | None", direction: str) -> list[str]:
    """What was taken back or done again, what was left, and what is not covered."""
    if undone is None:
        return ["Nothing to take back." if direction == "undo" else "Nothing to do again."]
    what = "Taken back" if undone.direction == "undo" else "Done again"
    names = [one_line(path, width=60) for path in undone.paths]
    shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    lines = [f"{what}: {shown or 'nothing'}"]
    lines += [f"left as it is: {one_line(path, width=60)}: {reason}" for path, reason in undone.conflicts[:_LISTED]]
    if len(undone.conflicts) > _LISTED:
        lines.append(f"left as they are: {len(undone.conflicts) - _LISTED} more")
    return [*lines, *undone.notes]


def last_words(messages: "Sequence[ModelMessage]") -> tuple[str, str]:
    """The last prompt, and the text of the last answer; empty where there is none."""
    from pydantic_ai.messages import TextPart, UserPromptPart

    from punie.agent._given import is_typed

    parts = [part for message in messages for part in message.parts]
    typed = [part for message in messages if is_typed(message) for part in message.parts]
    asked = next((part.content for part in reversed(typed) if isinstance(part, UserPromptPart)), "")
    answered = next((part.content for part in reversed(parts) if isinstance(part, TextPart)), "")
    return asked if isinstance(asked, str) else "", answered


def home_of(workspace: Path) -> str:
    """A directory for a list, with ~ for the home."""
    return one_line(str(workspace).replace(str(Path.home()), "~", 1), width=60)
