"""Attacks on the way to a file, against the kernel, through both ways that files are opened."""

import builtins
import io
import os
import socket
from pathlib import Path

import pytest
from tests.tools.project import Project

from punie.tools import _beneath, preview
from punie.tools._beneath import READ, OutsideWorkspaceError, open_beneath
from punie.tools._paths import Tree, plain_name
from punie.tools._states import ABSENT, Conflict, State, content_at, oid_of, put

CANARY = "canary"


@pytest.fixture(params=["openat2", "names"], autouse=True)
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "names":
        monkeypatch.setattr(_beneath, "has_openat2", lambda: False)
    return request.param


@pytest.fixture
def outside(project: Project) -> Path:
    """A directory beside the workspace, with a file nobody may see or change."""
    project.write("../outside/file.txt", CANARY)
    project.write("../outside/sub/file.txt", CANARY)
    return project.root.parent / "outside"


def _seen(place: Path) -> list[tuple[object, ...]]:
    return sorted(
        (str(path), path.lstat().st_ino, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in place.rglob("*")
    )


@pytest.mark.parametrize(
    ("links", "path"),
    [
        ({"link": "../outside/file.txt"}, "link"),
        ({"link": "{outside}/file.txt"}, "link"),
        ({"link": "../outside"}, "link/file.txt"),
        ({"link": "{outside}"}, "link/sub/file.txt"),
        ({"link": "{outside}"}, "link/new.txt"),
        ({"link": "../outside"}, "link/new/deep.txt"),
        ({"link": ".."}, "link/outside/file.txt"),
        ({"link": "dir/../.."}, "link/outside/file.txt"),
        ({"one": "two", "two": "three", "three": "../outside"}, "one/file.txt"),
        ({"one": "dir/two", "dir/two": "../../outside/file.txt"}, "one"),
        ({"link": "/proc/self/root{outside}"}, "link/file.txt"),
        ({"link": "/proc/self/cwd"}, "link/file.txt"),
        ({"link": "/proc/self/fd/0"}, "link"),
        ({"link": "../outside/missing"}, "link"),
        ({"link": "."}, "link/../../outside/file.txt"),
        ({}, "../outside/file.txt"),
        ({}, "dir/../../outside/file.txt"),
        ({}, "missing/../../outside/file.txt"),
        ({}, "dir/../dir/.././../outside/file.txt"),
        ({}, "{outside}/file.txt"),
        ({}, "{root}/../outside/file.txt"),
        ({}, "{root}-2/file.txt"),
        ({}, "/proc/self/root{outside}/file.txt"),
    ],
)
def test_no_way_leads_out(project: Project, outside: Path, links: dict[str, str], path: str):
    project.write("dir/file.txt", "x")
    for name, target in links.items():
        (project.root / name).symlink_to(target.format(outside=outside))
    path = path.format(outside=outside, root=project.root)
    before = _seen(outside)
    for tool, arguments in (("read_file", ()), ("edit_file", (CANARY, "gone")), ("write_file", ("gone",))):
        assert "is outside the workspace" in project.refusal(tool, path, *arguments)
    assert CANARY not in project.call("search", "can[a]ry")
    assert _seen(outside) == before
    assert {name: str((project.root / name).readlink()) for name in links} == {
        name: target.format(outside=outside) for name, target in links.items()
    }


def test_magic_links_are_never_followed():
    process = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    for path in ("root/etc/passwd", "cwd/pyproject.toml", "exe", "fd/0"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            open_beneath(process, path, READ)
    os.close(process)
    tree = Tree(Path(f"/proc/{os.getpid()}"))
    for path in ("root/etc/passwd", "cwd/pyproject.toml", "exe"):
        with pytest.raises(OutsideWorkspaceError):
            tree.read(path, limit=10)
    assert len(tree.read("status", limit=10).data) == 10
    tree.close()


@pytest.mark.parametrize("path", ["", "..", "a/..", "../a", "/etc/passwd", "a//b", "a/./b", "a\0b", "."])
def test_the_door_takes_names_only(tmp_path: Path, path: str):
    (tmp_path / "a").mkdir()
    directory = os.open(tmp_path / "a", os.O_RDONLY)
    if path == ".":
        os.close(open_beneath(directory, path, _beneath.DIRECTORY))
    else:
        with pytest.raises(OutsideWorkspaceError):
            open_beneath(directory, path, READ)
    os.close(directory)


def test_only_regular_files_and_nothing_blocks(project: Project, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(project.root / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(project.root)  # the path of a socket must be short
        bound.bind("socket")
        for path in ("fifo", "socket"):
            assert project.call("read_file", path) in {
                f"{path} is not a regular file.",
                f"Cannot read {path}: No such device or address",
            }
            assert project.call("edit_file", path, "a", "b").startswith((f"{path} is not", f"Cannot read {path}"))
            assert project.call("write_file", path, "b").startswith((f"{path} is not", f"Cannot read {path}"))
    devices = Tree(Path("/dev"))
    for path in ("null", "zero", "tty0"):
        with pytest.raises(OSError, match=r"not a regular file|denied|No such"):
            devices.read(path, limit=10)
    devices.close()


def test_an_edit_of_a_file_with_another_name_elsewhere_leaves_that_one(project: Project, outside: Path):
    os.link(outside / "file.txt", project.root / "hard.txt")
    project.call("read_file", "hard.txt")
    project.call("edit_file", "hard.txt", CANARY, "mine")
    project.call("write_file", "hard.txt", "mine again")
    assert (outside / "file.txt").read_text() == CANARY
    assert project.bytes_of("hard.txt") == b"mine again"


def test_links_inside_are_followed_and_stay(project: Project):
    project.write("real/dir/file.txt", "one")
    (project.root / "relative").symlink_to("real/dir")
    (project.root / "absolute").symlink_to(project.root / "real")
    (project.root / "file").symlink_to("absolute/dir/file.txt")
    (project.root / "dangling").symlink_to("real/new.txt")
    for path in ("relative/file.txt", "absolute/dir/file.txt", "file", "relative/../dir/file.txt"):
        assert project.lines("read_file", path)[0] == "real/dir/file.txt lines 1-1 of 1"
    assert project.call("edit_file", "file", "one", "two").startswith("edited real/dir/file.txt")
    assert project.call("write_file", "dangling", "new") == "wrote real/new.txt (1 line)"
    assert project.call("write_file", "relative/more/new.txt", "new") == "wrote real/dir/more/new.txt (1 line)"
    assert all((project.root / name).is_symlink() for name in ("relative", "absolute", "file", "dangling"))
    assert project.bytes_of("real/dir/file.txt") == b"two"


@pytest.mark.parametrize(
    "path", [".git/x", ".GIT/x", "sub/.Git/x", ".g\u200bit/x", ".git. /x", "GIT~1/x", "alias/new/x", "\u200d.git"]
)
def test_the_repository_is_not_touched_under_any_of_its_names(project: Project, path: str):
    project.write(".git/config", "a")
    (project.root / "alias").symlink_to(".git")
    before = _seen(project.root)
    assert ".git are not for editing" in project.refusal("write_file", path, "x")
    assert _seen(project.root) == before, "not even a directory is made"


def test_names_are_compared_as_the_most_forgiving_file_system_does():
    assert {plain_name(name) for name in (".git", ".GIT", ".g\u200bit", ".git. .", "\ufeff.gIt", ".g\u00adit")} == {
        ".git"
    }
    assert plain_name("e\u0301") == plain_name("\u00e9") == plain_name("\u00c9")
    assert plain_name("git") != ".git"


def test_undo_goes_through_the_same_door(project: Project, outside: Path):
    project.write("dir/file.txt", "one")
    (project.root / "link").symlink_to(outside)
    (project.root / "dir" / "gone.txt").symlink_to(outside / "file.txt")
    os.mkfifo(project.root / "fifo")
    before = _seen(outside)
    tree, wanted = project.workspace.tree, State(0o100600, oid_of(b"two"))
    for path in (b"link/file.txt", b"link/new.txt"):
        with pytest.raises(Conflict, match="link is no directory now"):
            content_at(tree, path)
        with pytest.raises(Conflict, match="link is no directory now"):
            put(tree, path, expected=ABSENT, wanted=wanted, content=lambda: b"two")
    with pytest.raises(OutsideWorkspaceError):
        put(tree, b"../outside/file.txt", expected=ABSENT, wanted=ABSENT, content=bytes)
    with pytest.raises(Conflict, match="a pipe"):
        content_at(tree, b"fifo")
    link, target = content_at(tree, b"dir/gone.txt")
    assert target == os.fsencode(outside / "file.txt")
    put(tree, b"dir/gone.txt", expected=link, wanted=wanted, content=lambda: b"two")
    assert project.bytes_of("dir/gone.txt") == b"two"
    put(tree, b"dir/gone.txt", expected=content_at(tree, b"dir/gone.txt")[0], wanted=link, content=lambda: target)
    assert (project.root / "dir" / "gone.txt").readlink() == outside / "file.txt"
    assert _seen(outside) == before


def test_the_root_is_held_where_it_moves_and_found_again_when_it_is_made_anew(project: Project):
    project.write("a.txt", "one")
    assert "1\tone" in project.call("read_file", "a.txt")
    moved = project.root.rename(project.root.with_name("moved"))
    project.root.symlink_to("outside")
    assert "1\tone" in project.call("read_file", "a.txt")
    project.root.unlink()
    (moved / "a.txt").unlink()
    moved.rmdir()
    assert project.call("read_file", "a.txt") == "No such file: a.txt."
    assert project.call("list_files") == "0 files"
    project.write("a.txt", "two")
    assert "1\ttwo" in project.call("read_file", "a.txt")


def test_a_path_longer_than_one_call_takes(project: Project):
    path = "/".join(["d" * 250] * 17)
    with project.workspace.tree.place(f"{path}/a.txt", making=lambda _: None) as place:
        descriptor = os.open("a.txt", os.O_WRONLY | os.O_CREAT, dir_fd=place.directory)
    os.write(descriptor, b"deep")
    os.close(descriptor)
    assert project.call("read_file", f"{path}/a.txt").endswith("1\tdeep")
    assert project.call("edit_file", f"{path}/a.txt", "deep", "deeper").startswith("edited")


def test_every_file_is_opened_through_the_door(project: Project, monkeypatch: pytest.MonkeyPatch, door: str):
    project.write("d/a.py", "x = 'one'\n")
    (project.root / "link").symlink_to("d")
    opened: list[tuple[object, int, int | None]] = []
    plain, flags = os.open, os.O_NOFOLLOW | os.O_CLOEXEC

    def recorded(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append((path, flags, dir_fd))
        return plain(path, flags, mode, dir_fd=dir_fd)

    def refused(*arguments: object, **named: object) -> None:
        raise AssertionError(f"opened by its path: {arguments} {named}")

    assert project.workspace.index is not None
    monkeypatch.setattr(os, "open", recorded)
    monkeypatch.setattr(builtins, "open", refused)
    monkeypatch.setattr(io, "open", refused)
    for tool, *arguments in (
        *(("list_files",), ("search", "one"), ("find_symbol", "x"), ("find_references", "x"), ("read_file", "d")),
        *(("read_file", "link/a.py"), ("edit_file", "link/a.py", "one", "two"), ("read_file", "d/b.py")),
        *(("write_file", "d/a.py", "x = 3\n"), ("write_file", "new/deep/b.py", "y = 4\n")),
    ):
        assert project.call(tool, *arguments)
    preview(project.workspace, "edit_file", {"path": "d/a.py", "old": "3", "new": "4"})
    tree = project.workspace.tree
    put(tree, b"d/a.py", expected=content_at(tree, b"d/a.py")[0], wanted=ABSENT, content=bytes)
    monkeypatch.undo()
    assert all(dir_fd is not None for _, _, dir_fd in opened)
    assert all("/" not in str(path) for path, _, _ in opened)
    new = [each for each in opened if each[1] & (os.O_WRONLY | os.O_RDWR)]
    assert len(new) == 3
    assert all(path == "." or flags & os.O_EXCL for path, flags, _ in new)
    if door == "names":
        assert all(each[1] & flags == flags for each in opened if each not in new)
        assert len(opened) > 20
    elif _beneath.has_openat2():
        assert opened == new
