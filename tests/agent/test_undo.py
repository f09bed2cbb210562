"""Taking back what a turn did to files, by tools and by commands, and never what the user did since."""

import asyncio
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.agent.killing import turn
from tests.stubs import Reply

from punie.agent import Session, SessionStore, Undone
from punie.agent._snapshots import NeverCovered, ShadowGit
from punie.agent.undo import COMMANDS_NOTE, Undo
from punie.tools._states import State, oid_of

Tree = Mapping[str, tuple[int, bytes]]
BINARY = bytes(range(256)) * 40


@dataclass
class Place:
    """A small project, its session, and turns in it."""

    root: Path
    session: Session

    def turn(self, *replies: Reply) -> None:
        asyncio.run(turn(self.session, self.root, *replies, "Done."))

    def command(self, *lines: str) -> None:
        self.turn(("run_command", {"command": "\n".join(("set -e", *lines))}))

    def edit(self, path: str, old: str, new: str) -> None:
        self.turn(("edit_file", {"path": path, "old": old, "new": new}))

    def tree(self) -> Tree:
        """Every path with its mode and what it holds; directories hold nothing."""
        return {
            str(path.relative_to(self.root)): (
                path.lstat().st_mode,
                os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
            )
            for path in self.root.rglob("*")
            if ".git" not in path.parts
        }

    def undo(self) -> Undone:
        done = self.session.undo()
        assert done is not None
        return done

    def redo(self) -> Undone:
        done = self.session.redo()
        assert done is not None
        return done


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    root = tmp_path / "project"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "a.txt").write_text("one\n")
    (root / "b.txt").write_text("bee\n")
    (root / "src" / "deep" / "main.py").write_text("print()\n")
    (root / "logo.png").write_bytes(BINARY)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o750)
    (root / "link").symlink_to("a.txt")
    (root / "empty").mkdir()
    with SessionStore(tmp_path / "state" / "sessions") as store:
        yield Place(root, store.create(root))


def both_ways(place: Place, *lines: str) -> Undone:
    """Run a command, take it back, do it again, take it back: each time everything is as it was."""
    before = place.tree()
    place.command(*lines)
    after = place.tree()
    assert after != before
    undone = place.undo()
    assert undone.conflicts == ()
    assert place.tree() == before
    assert place.redo().conflicts == ()
    assert place.tree() == after
    place.undo()
    assert place.tree() == before
    return undone


def test_an_edit(place: Place):
    before = place.tree()
    place.edit("a.txt", "one", "two")
    assert place.undo().paths == ("a.txt",)
    assert place.tree() == before
    assert place.redo().paths == ("a.txt",)
    assert (place.root / "a.txt").read_text() == "two\n"


def test_several_changes_of_one_turn_go_together(place: Place):
    before = place.tree()
    place.turn(
        ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}),
        ("write_file", {"path": "new/deeper/file.txt", "content": "text"}),
        ("run_command", {"command": "echo three >> a.txt; rm b.txt; echo more >> new/deeper/file.txt"}),
        ("edit_file", {"path": "a.txt", "old": "two", "new": "TWO"}),
    )
    assert set(place.undo().paths) == {"a.txt", "b.txt", "new/deeper/file.txt"}
    assert place.tree() == before


def test_turns_are_taken_back_one_by_one(place: Place):
    states = [place.tree()]
    for number in range(3):
        place.command(f"echo {number} >> a.txt")
        states.append(place.tree())
    for state in states[2::-1]:
        place.undo()
        assert place.tree() == state
    assert place.session.undo() is None
    for state in states[1:]:
        place.redo()
        assert place.tree() == state
    assert place.session.redo() is None


def test_nothing_is_done_again_after_something_new(place: Place):
    place.edit("a.txt", "one", "two")
    place.undo()
    place.edit("b.txt", "bee", "wasp")
    assert place.session.redo() is None
    assert place.undo().paths == ("b.txt",)
    assert place.session.undo() is None


def test_a_turn_that_changed_nothing_is_passed_over(place: Place):
    place.edit("a.txt", "one", "two")
    place.turn(("read_file", {"path": "b.txt"}))
    assert place.undo().paths == ("a.txt",)


def test_undo_works_in_a_resumed_session(place: Place, tmp_path: Path):
    before = place.tree()
    place.edit("a.txt", "one", "two")
    place.command("rm -r src")
    place.session.close()
    with SessionStore(tmp_path / "state" / "sessions") as store:
        again = Place(place.root, store.resume(place.root))
        again.undo()
        again.undo()
        assert again.tree() == before


# --- what commands do ---


def test_a_deleted_directory(place: Place):
    undone = both_ways(place, "rm -r src b.txt empty")
    assert undone.notes == (COMMANDS_NOTE,)


def test_renames(place: Place):
    both_ways(place, "mv a.txt c.txt", "mv src lib", "mv lib/deep/main.py main.py")


def test_modes(place: Place):
    both_ways(place, "chmod 600 a.txt", "chmod -x run.sh", "echo >> run.sh", "chmod 4711 b.txt")


def test_symlinks(place: Place):
    both_ways(place, "ln -sf b.txt link", "ln -s /etc/passwd outside", "rm a.txt", "ln -s src a.txt")


def test_binary_files(place: Place):
    both_ways(place, r"printf '\000\377\r\n' > logo.png", "head -c 100000 /dev/urandom > noise.bin")


def test_a_file_becomes_a_directory_and_back(place: Place):
    both_ways(place, "rm a.txt", "mkdir a.txt", "echo x > a.txt/inside", "rm -r src", "echo file > src")


def test_odd_names(place: Place):
    both_ways(place, r"""touch -- -rf 'a b' $'new\nline' $'\377bad' '"q"' ':(top)x' '*'""", "rm b.txt")


def test_bytes_stay_as_they_are_whatever_attributes_say(place: Place):
    (place.root / ".gitattributes").write_text("* text eol=lf ident filter=evil working-tree-encoding=UTF-16\n")
    (place.root / "dos.txt").write_bytes(b"one\r\ntwo $Id$\r\n")
    both_ways(place, "echo x > dos.txt")


def test_a_command_that_fails_or_is_stopped_is_covered_too(place: Place):
    before = place.tree()
    place.turn(("run_command", {"command": "rm b.txt; false"}))
    place.undo()
    assert place.tree() == before
    place.turn(("run_command", {"command": "rm b.txt; sleep 60", "timeout": 1.0}))
    assert not (place.root / "b.txt").exists()
    place.undo()
    assert place.tree() == before


# --- what the user did since ---


def test_newer_work_of_the_user_stays_and_is_named(place: Place):
    place.turn(
        ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}),
        ("run_command", {"command": "echo x >> b.txt; rm run.sh; echo new > c.txt; mv logo.png l.png"}),
    )
    (place.root / "a.txt").write_text("mine\n")
    (place.root / "run.sh").write_text("my own\n")
    (place.root / "c.txt").unlink()
    (place.root / "l.png").unlink()
    (place.root / "l.png").symlink_to("a.txt")
    undone = place.undo()
    assert {path for path, _ in undone.conflicts} == {"a.txt", "run.sh", "l.png"}
    assert set(undone.paths) == {"b.txt", "logo.png"}
    assert (place.root / "a.txt").read_text() == "mine\n"
    assert (place.root / "run.sh").read_text() == "my own\n"
    assert (place.root / "l.png").is_symlink()
    assert (place.root / "b.txt").read_text() == "bee\n"
    assert (place.root / "logo.png").read_bytes() == BINARY


def test_work_between_two_steps_of_a_turn_stays(place: Place):
    place.turn(
        ("edit_file", {"path": "a.txt", "old": "one", "new": "two"}),
        ("read_file", {"path": "b.txt"}),
        "First.",
    )
    # The next turn's first step sees the user's words; only its own step is taken back.
    (place.root / "a.txt").write_text("two\nand mine\n")
    place.edit("a.txt", "two", "2")
    place.undo()
    assert (place.root / "a.txt").read_text() == "two\nand mine\n"
    undone = place.undo()
    assert undone.paths == ()
    assert undone.conflicts == (("a.txt", "it was changed since, and is left as it is"),)


def test_work_the_journal_did_not_see_between_two_steps_is_kept(place: Place):
    place.session.begin(model="m", title="t")
    journal = place.session
    journal.changing("a.txt", before=b"one\n", after=b"two\n", mode=0o100644)
    journal.changing("a.txt", before=b"two, mine\n", after=b"three\n", mode=0o100644)
    (place.root / "a.txt").write_text("three\n")
    undone = place.undo()
    assert (place.root / "a.txt").read_text() == "two, mine\n"
    assert undone.conflicts[0][0] == "a.txt"


def test_a_directory_that_holds_the_users_files_stays(place: Place):
    place.turn(("write_file", {"path": "new/file.txt", "content": "x"}))
    (place.root / "new" / "mine.txt").write_text("mine")
    assert place.undo().conflicts == ()
    assert [path.name for path in (place.root / "new").iterdir()] == ["mine.txt"]


def test_a_link_in_the_way_is_not_followed(place: Place, tmp_path: Path):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "deep" / "main.py").write_text("theirs\n")
    place.edit("src/deep/main.py", "print()", "print(1)")
    shutil.rmtree(place.root / "src")
    (place.root / "src").symlink_to(tmp_path / "outside")
    undone = place.undo()
    assert undone.paths == ()
    assert undone.conflicts == (("src/deep/main.py", "src is no directory now"),)
    assert (tmp_path / "outside" / "deep" / "main.py").read_text() == "theirs\n"


def test_undoing_twice_after_an_interruption_is_harmless(place: Place):
    before = place.tree()
    place.command("echo x > a.txt", "rm b.txt", "echo new > c.txt")
    after = place.tree()
    place.undo()
    place.redo()
    (place.root / "b.txt").write_text("bee\n")  # as if an earlier undo had come this far
    shutil.copystat(place.root / "c.txt", place.root / "b.txt")
    assert place.undo().conflicts == ()
    assert place.tree().keys() == before.keys() != after.keys()
    assert (place.root / "a.txt").read_text() == "one\n"


# --- the user's own repository ---


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def test_the_users_repository_is_not_touched(place: Place):
    git(place.root, "init", "-q")
    git(place.root, "config", "core.fsmonitor", "touch evil-fsmonitor; false")
    hook = place.root / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch evil-hook\n")
    hook.chmod(0o755)
    git(place.root, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "add", "a.txt")
    files = {path: path.read_bytes() for path in (place.root / ".git").rglob("*") if path.is_file()}
    place.command("echo x > a.txt", "rm b.txt", "echo new > c.txt")
    place.undo()
    assert {path: path.read_bytes() for path in (place.root / ".git").rglob("*") if path.is_file()} == files
    assert not list(place.root.glob("evil*"))
    assert (place.root / "a.txt").read_text() == "one\n"


def test_ignored_files_are_not_covered_and_that_is_said(place: Place):
    git(place.root, "init", "-q")
    (place.root / ".gitignore").write_text("*.log\n")
    (place.root / ".git" / "info").mkdir(exist_ok=True)
    (place.root / ".git" / "info" / "exclude").write_text("private\n")
    (place.root / "x.log").write_text("log\n")
    (place.root / "private").write_text("secret\n")
    place.command("echo x > x.log", "echo x > private", "echo x > a.txt")
    undone = place.undo()
    assert undone.paths == ("a.txt",)
    assert undone.notes == (COMMANDS_NOTE,)
    assert (place.root / "x.log").read_text() == "x\n"
    shadow = place.session.journal.shadow.directory
    assert place.session.journal.shadow.read("0" * 64) is None
    listed = subprocess.run(
        ["git", "ls-files"], env={**os.environ, "GIT_DIR": str(shadow)}, capture_output=True, text=True, check=True
    )
    assert "private" not in listed.stdout


def test_a_repository_inside_is_not_looked_into(place: Place):
    inner = place.root / "vendor" / "lib"
    inner.mkdir(parents=True)
    (inner / "x.c").write_text("int x;\n")
    git(inner, "init", "-q")
    place.command("echo x > a.txt", "echo y > vendor/lib/x.c")
    assert place.undo().paths == ("a.txt",)
    assert (inner / "x.c").read_text() == "y\n"


# --- what is too much ---


def test_without_git_the_file_tools_are_still_covered(place: Place, tmp_path: Path):
    shadow = place.session.journal.shadow
    (tmp_path / "bin").mkdir()
    shadow.environment = {"PATH": f"{tmp_path / 'bin'}:relative:{place.root}"}
    (place.root / "git").write_text("#!/bin/sh\ntouch evil\n")
    (place.root / "git").chmod(0o755)
    place.turn(("edit_file", {"path": "a.txt", "old": "one", "new": "two"}), ("run_command", {"command": "rm b.txt"}))
    undone = place.undo()
    assert undone.paths == ("a.txt",)
    assert "not covered: commands of this turn: git is not installed, and snapshots need it" in undone.notes
    assert not (place.root / "b.txt").exists()
    assert not (place.root / "evil").exists()


def test_a_tree_that_is_too_large_is_not_covered_and_costs_little(place: Place):
    place.session.journal.shadow.max_files = 3
    place.command("rm b.txt")
    place.command("rm a.txt")
    undone = place.undo()
    assert undone.paths == ()
    assert f"not covered: commands of this turn: {place.root} has more than 3 files" in undone.notes


def test_a_snapshot_that_takes_too_long_is_given_up(place: Place):
    shadow = place.session.journal.shadow
    shadow.budget_s = 0.0
    with pytest.raises(NeverCovered, match="takes more than 0 s"):
        shadow.take()
    shadow.budget_s = 60.0
    (shadow.directory / "index.lock").write_text("")  # what a git leaves that was killed
    assert b"a.txt" in shadow.take().entries


def test_a_large_file_that_changed_is_named(place: Place):
    place.session.journal.shadow.max_file = 1000
    (place.root / "big.bin").write_bytes(b"x" * 2000)
    (place.root / "same.bin").write_bytes(b"x" * 2000)
    place.command("echo more >> big.bin", "echo x > a.txt")
    undone = place.undo()
    assert undone.paths == ("a.txt",)
    assert [note for note in undone.notes if "bin" in note] == ["not covered: big.bin: too large, or not readable"]


def test_too_many_new_bytes_are_refused(place: Place):
    place.session.journal.shadow.max_new = 100
    with pytest.raises(NeverCovered, match="MB of files"):
        place.session.journal.shadow.take()


def test_a_state_directory_inside_the_workspace_is_left_out(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\n")
    shadow = ShadowGit(tmp_path / "state" / "shadow" / "x", tmp_path, os.environ)
    shadow.take()
    assert set(shadow.take().entries) == {b"a.txt"}


def test_contents_that_nobody_needs_are_deleted_with_their_session(place: Place, tmp_path: Path):
    place.edit("a.txt", "one", "two")
    place.undo()
    state = tmp_path / "state" / "sessions"
    assert list((state / "blobs").glob("??/*"))
    place.session.close()
    with SessionStore(state) as store:
        store.remove(place.session.id)
    assert not list((state / "blobs").glob("??/*"))


def test_kept_contents_are_for_the_user_alone(place: Place, tmp_path: Path):
    place.edit("a.txt", "one", "two")
    (blob,) = (tmp_path / "state" / "sessions" / "blobs").glob("??/*")
    assert stat.S_IMODE(blob.stat().st_mode) == 0o600
    assert blob.read_bytes() == b"one\n"


def test_an_undo_that_was_broken_off_can_be_finished_or_taken_back(place: Place, monkeypatch: pytest.MonkeyPatch):
    before = place.tree()
    place.command("echo x > a.txt", "rm -r src", "echo flat > src", "rm b.txt", "mkdir b.txt")
    after = place.tree()

    def broken_off(undo: Undo, path: bytes, *, expected: State, wanted: State) -> bool:
        if path == b"src":
            (place.root / "src").unlink()  # a file that is to become a directory is away for a moment
            raise KeyboardInterrupt
        return put(undo, path, expected=expected, wanted=wanted)

    put = Undo._put
    for finish in (place.undo, place.redo):
        monkeypatch.setattr(Undo, "_put", broken_off)
        with pytest.raises(KeyboardInterrupt):
            place.session.undo()
        monkeypatch.setattr(Undo, "_put", put)
        assert place.tree() not in (before, after)
        assert finish().conflicts == ()
        assert place.tree() == (before if finish == place.undo else after)
        if finish == place.undo:
            place.redo()
    assert place.session.redo() is None


def test_what_a_killed_process_left_beside_a_file_goes_with_the_next_session(tmp_path: Path):
    root, state = tmp_path / "project", tmp_path / "state" / "sessions"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.txt").write_text("one\n")
    with SessionStore(state) as store:
        killed = Place(root, store.create(root))
        killed.edit("src/a.txt", "one", "two")
        left = {
            "old": root / "src" / ".punie-0123456789abcdef",
            "new": root / "src" / ".punie-fedcba9876543210",
            "somebody's": root / "src" / ".punie-00000000000000aa",
            "elsewhere": root / ".punie-00000000000000bb",
        }
        for name, text in {"old": "one\n", "new": "two\n", "somebody's": "dear diary\n", "elsewhere": "one\n"}.items():
            left[name].write_text(text)
        Place(root, store.create(root)).edit("src/a.txt", "two", "three")
        assert all(path.exists() for path in left.values()), "the process is still there"
        with killed.session._database.writing() as write:
            write.execute("UPDATE locks SET started = 'before the last start'")
        Place(root, store.create(root)).edit("src/a.txt", "three", "four")
    assert [name for name, path in left.items() if path.exists()] == ["somebody's", "elsewhere"]


def test_what_has_been_left_for_an_hour_goes_with_the_next_edit_beside_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
):
    old, link = place.root / ".punie-0123456789abcdef", place.root / ".punie-fedcba9876543210"
    old.write_text("half of a file")
    link.symlink_to("a.txt")
    place.edit("a.txt", "one", "two")
    assert old.exists()
    monkeypatch.setattr("punie.tools._replace._STALE_S", -1)
    place.edit("a.txt", "two", "three")
    assert not os.path.lexists(old)
    assert not os.path.lexists(link)
    assert (place.root / "a.txt").read_text() == "three\n"


def kept(place: Place, text: bytes) -> bool:
    """Whether the state holds a content, as a whole file; git keeps what it keeps compressed."""
    store = place.session._database.directory
    oid = oid_of(text)
    blobs = [path.parent.name + path.name for path in (store / "blobs").glob("??/*")]
    return oid in blobs or place.session.journal.shadow.read(oid) is not None


def test_what_stood_in_a_file_with_keys_is_kept_for_as_long_as_the_session_is_open(place: Place):
    (place.root / ".env").write_text("KEY=before\n")
    place.edit(".env", "before", "after")
    place.edit("a.txt", "one", "two")
    place.command("echo three >> a.txt; echo KEY=other > .env")
    assert kept(place, b"KEY=before\n")
    assert not kept(place, b"KEY=after\n"), "no snapshot is made of it"
    (place.root / ".env").write_text("KEY=after\n")
    place.undo()
    place.undo()
    assert place.undo().paths == (".env",)
    assert (place.root / ".env").read_text() == "KEY=before\n"
    place.redo()
    place.session.close()
    assert not kept(place, b"KEY=before\n")
    assert not kept(place, b"KEY=after\n")
    assert kept(place, b"one\n")
    place.session.take()
    assert place.undo().conflicts == ((".env", "what stood there is no longer kept"),)
    assert (place.root / ".env").read_text() == "KEY=after\n"
