"""Putting a new file in the place of an old one, with everything that can go wrong between the two."""

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.tools.project import Project

from punie.tools import _replace
from punie.tools._states import ABSENT, Conflict, State, content_at, oid_of, put

Hook = Callable[[], object]


@pytest.fixture(params=["trades", "named", "replaces"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a file system that has files without names and lets two trade places, and with ones that do not."""
    if request.param != "trades":
        monkeypatch.setattr(_replace, "_can_name", lambda: False)
    if request.param == "replaces":
        monkeypatch.setattr(_replace, "_renameat2", lambda: None)
    return request.param


@pytest.fixture
def before_fsync(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something happen when the new file is whole and does not stand in its place yet, or is just there."""

    def arrange(hook: Hook, *, call: int = 1) -> None:
        calls, fsync = [0], os.fsync

        def hooked(descriptor: int) -> None:
            calls[0] += 1
            if calls[0] == call:
                hook()
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", hooked)

    return arrange


def failing(reason: int) -> Hook:
    def fail() -> None:
        raise OSError(reason, os.strerror(reason))

    return fail


def names(project: Project) -> set[str]:
    return {str(path.relative_to(project.root)) for path in project.root.rglob("*")}


# --- what is kept ---


def test_mode_owner_and_attributes_stay(project: Project):
    place = project.write("run.sh", "echo a\n")
    place.chmod(0o2751)
    if os.getuid() == 0:
        os.chown(place, 65534, 65533)
        place.chmod(0o2751)
    attributes = _marked(place)
    before = place.stat()
    project.call("edit_file", "run.sh", "a", "b")
    project.call("read_file", "run.sh")
    project.call("write_file", "run.sh", "echo c\n")
    after = place.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert _attributes(place) == attributes


def _marked(place: Path) -> dict[str, bytes]:
    """Give a file an attribute and an access list, where the file system has such; all it has then."""
    # In the order of linux/posix_acl_xattr.h: a version, then kind, rights and id of each entry.
    entries = ((0x01, 7, -1), (0x02, 4, 65534), (0x04, 5, -1), (0x10, 5, -1), (0x20, 1, -1))
    access = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    for name, value in (("user.note", b"kept"), ("system.posix_acl_access", access)):
        with suppress(OSError, AttributeError):
            os.setxattr(place, name, value)
    return _attributes(place)


def _attributes(place: Path) -> dict[str, bytes]:
    names = os.listxattr(place) if hasattr(os, "listxattr") else []
    return {name: os.getxattr(place, name) for name in names}


def test_a_private_file_is_private_at_every_moment(project: Project, before_fsync: Callable[..., None]):
    project.write("key", "one").chmod(0o640)
    modes: list[int] = []
    before_fsync(lambda: modes.extend(stat.S_IMODE(path.stat().st_mode) for path in project.root.iterdir()))
    project.call("edit_file", "key", "one", "two")
    assert all(mode & 0o137 == 0 for mode in modes)
    assert modes


def test_what_a_killed_process_left_is_hidden_and_goes_in_time(project: Project, monkeypatch: pytest.MonkeyPatch):
    project.write("a.txt", "one")
    project.write(".punie-0123456789abcdef", "left")
    project.write(".punie-not-one-of-them", "mine")
    assert project.lines("list_files")[1:] == [".punie-not-one-of-them", "a.txt"]
    project.call("edit_file", "a.txt", "one", "two")
    assert names(project) == {"a.txt", ".punie-0123456789abcdef", ".punie-not-one-of-them"}
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 4_000)
    project.call("edit_file", "a.txt", "two", "three")
    assert names(project) == {"a.txt", ".punie-not-one-of-them"}


# --- what others do in the last moment ---


def test_a_text_saved_in_the_last_moment_stays(project: Project, before_fsync: Callable[..., None]):
    place = project.write("a.txt", "one")
    before_fsync(lambda: place.write_text("newer"))
    refusal = project.refusal("edit_file", "a.txt", "one", "two")
    assert refusal == "a.txt changed meanwhile. Read it again with read_file first."
    assert project.bytes_of("a.txt") == b"newer"
    assert names(project) == {"a.txt"}


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "fifo", "other", "nothing"])
def test_whatever_takes_the_place_in_the_last_moment_stays(
    project: Project, before_fsync: Callable[..., None], kind: str
):
    place = project.write("a.txt", "one")
    target = project.write("../outside.txt", "one")

    def swap() -> None:
        place.unlink()
        if kind == "other":
            place.write_text("two")
        elif kind == "directory":
            place.mkdir()
        elif kind == "fifo":
            os.mkfifo(place)
        elif kind != "nothing":
            place.symlink_to(target if kind == "link" else "missing")

    before_fsync(swap)
    refusal = project.refusal("edit_file", "a.txt", "one", "two")
    assert refusal == "a.txt changed meanwhile. Read it again with read_file first."
    assert names(project) == (set() if kind == "nothing" else {"a.txt"})
    assert place.is_symlink() == (kind in {"link", "dangling"})
    assert target.read_text() == "one"


def test_a_file_made_in_the_last_moment_is_not_written_over(project: Project, before_fsync: Callable[..., None]):
    before_fsync(lambda: project.write("new/a.txt", "theirs"))
    assert "changed meanwhile" in project.refusal("write_file", "new/a.txt", "mine")
    assert project.bytes_of("new/a.txt") == b"theirs"
    assert names(project) == {"new", "new/a.txt"}


def test_undo_leaves_what_came_in_the_last_moment(project: Project, before_fsync: Callable[..., None]):
    place, tree = project.write("a.txt", "two"), project.workspace.tree
    now = content_at(tree, b"a.txt")[0]
    before_fsync(lambda: place.write_text("newer"))
    with pytest.raises(Conflict, match="changed since"):
        put(tree, b"a.txt", expected=now, wanted=State(0o100644, oid_of(b"one")), content=lambda: b"one")
    with pytest.raises(Conflict, match="changed since"):
        put(tree, b"a.txt", expected=now, wanted=ABSENT, content=bytes)
    assert project.bytes_of("a.txt") == b"newer"
    assert names(project) == {"a.txt"}


def test_undo_that_deletes_looks_at_what_it_deletes(project: Project, monkeypatch: pytest.MonkeyPatch):
    place, tree, rename = project.write("a.txt", "two"), project.workspace.tree, os.rename

    def late(*arguments: str, **named: int) -> None:
        place.write_text("newer")
        rename(*arguments, **named)

    now = content_at(tree, b"a.txt")[0]
    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(Conflict, match="changed since"):
        put(tree, b"a.txt", expected=now, wanted=ABSENT, content=bytes)
    assert project.bytes_of("a.txt") == b"newer"
    assert names(project) == {"a.txt"}


def test_a_stranger_under_the_name_of_the_new_file_is_not_deleted(
    project: Project, before_fsync: Callable[..., None], way: str
):
    place = project.write("a.txt", "one")

    def swap() -> None:
        for mine in [path for path in project.root.iterdir() if path != place]:
            mine.unlink()
            mine.write_text("somebody's only copy")
        place.write_text("newer")

    before_fsync(swap)
    assert "changed meanwhile" in project.refusal("edit_file", "a.txt", "one", "two")
    assert project.bytes_of("a.txt") == b"newer"
    assert {path.read_text() for path in project.root.iterdir()} == (
        {"newer"} if way == "trades" else {"newer", "somebody's only copy"}
    )


# --- what disks do ---


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("reason", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_leaves_the_old_file(
    project: Project, before_fsync: Callable[..., None], way: str, call: int, reason: int
):
    project.write("a.txt", "one")
    before_fsync(failing(reason), call=call)
    said = project.call("edit_file", "a.txt", "one", "two")
    assert said == f"Cannot write a.txt: {os.strerror(reason)}"
    if call == 1 or way != "replaces":
        assert project.bytes_of("a.txt") == b"one"
    assert project.bytes_of("a.txt") in {b"one", b"two"}
    assert names(project) == {"a.txt"}


@pytest.mark.parametrize("call", [1, 2])
def test_a_disk_that_fails_leaves_no_new_file_and_no_directory(
    project: Project, before_fsync: Callable[..., None], call: int
):
    project.write("old/a.txt", "one")
    before_fsync(failing(errno.EIO), call=call)
    assert project.call("write_file", "old/new/deep/b.txt", "two") == (
        "Cannot write old/new/deep/b.txt: Input/output error"
    )
    assert names(project) == {"old", "old/a.txt"}


def test_a_full_disk(project: Project, monkeypatch: pytest.MonkeyPatch):
    place, write = project.write("a.txt", "one" * 10), os.write
    room = [20]

    def full(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    project.call("read_file", "a.txt")
    monkeypatch.setattr(os, "write", full)
    assert project.call("write_file", "a.txt", "two" * 10) == "Cannot write a.txt: No space left on device"
    assert project.call("write_file", "new/a.txt", "two") == "Cannot write new/a.txt: No space left on device"
    monkeypatch.undo()
    assert place.read_text() == "one" * 10
    assert names(project) == {"a.txt"}


def test_a_file_system_that_cannot_sync_directories_is_written_to(project: Project, before_fsync: Callable[..., None]):
    project.write("a.txt", "one")
    before_fsync(failing(errno.EINVAL), call=2)
    assert project.call("edit_file", "a.txt", "one", "two").startswith("edited")
    assert project.bytes_of("a.txt") == b"two"
