import os
import stat

import pytest
from tests.tools.project import Project


def test_a_new_file_with_its_directories(project: Project):
    assert project.call("write_file", "new/deep/a.py", "one\ntwo\n") == "wrote new/deep/a.py (2 lines)"
    assert project.bytes_of("new/deep/a.py") == b"one\ntwo\n"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((project.root / "new/deep/a.py").stat().st_mode) == 0o666 & ~umask
    assert project.call("write_file", str(project.root / "x/b.txt"), "") == "wrote x/b.txt (0 lines)"


def test_an_existing_file_must_have_been_read(project: Project):
    project.write("a.txt", "precious\n")
    assert "Read it with read_file" in project.refusal("write_file", "a.txt", "new")
    assert project.bytes_of("a.txt") == b"precious\n"
    project.call("read_file", "a.txt")
    assert project.call("write_file", "a.txt", "new") == "wrote a.txt (1 line)"
    assert project.call("write_file", "a.txt", "newer") == "wrote a.txt (1 line)"


def test_a_file_changed_since_it_was_read_is_refused(project: Project):
    project.write("a.txt", "one")
    project.call("read_file", "a.txt")
    project.write("a.txt", "two")
    assert "changed since it was read" in project.refusal("write_file", "a.txt", "x")
    assert project.bytes_of("a.txt") == b"two"


@pytest.mark.parametrize("path", ["../a", "/tmp/punie-outside", "out/a", "out/new/a", "dangling"])
def test_outside_is_refused(project: Project, path: str):
    (project.root / "out").symlink_to("..")
    (project.root / "dangling").symlink_to("../missing")
    assert "outside the workspace" in project.refusal("write_file", path, "x")
    assert not (project.root.parent / "a").exists()
    assert not (project.root.parent / "new").exists()
    assert not (project.root.parent / "missing").exists()


@pytest.mark.parametrize("path", [".git/hooks/pre-commit", ".Git/x", "a/../.git/x", "alias/new/x"])
def test_the_repository_is_not_for_writing(project: Project, path: str):
    project.write(".git/config", "a")
    (project.root / "a").mkdir()
    (project.root / "alias").symlink_to(".git")
    assert ".git are not for editing" in project.refusal("write_file", path, "x")
    assert not list(project.root.glob(".git/**/x"))


def test_what_cannot_be_written(project: Project):
    (project.root / "dir").mkdir()
    project.write("dir/file", "x")
    project.write("a.bin", b"\0")
    project.write("big.txt", b"a" * 8_000_001)
    os.mkfifo(project.root / "fifo")
    assert project.call("write_file", "dir", "x").startswith("dir is a directory")
    assert project.call("write_file", "fifo", "x") == "fifo is not a regular file."
    assert project.call("write_file", "dir/file/x", "x") == "Cannot write dir/file/x: Not a directory"
    assert "binary" in project.refusal("write_file", "a.bin", "x")
    assert "too large" in project.refusal("write_file", "big.txt", "x")
    assert "would be over 8 MB" in project.refusal("write_file", "new.txt", "a" * 8_000_001)
    assert "UTF-8 cannot write" in project.refusal("write_file", "new.txt", "\ud800")


def test_a_full_or_locked_directory_is_told(project: Project):
    if os.geteuid() != 0:
        (project.root / "locked").mkdir(mode=0o500)
        assert project.call("write_file", "locked/a", "x") == "Cannot write locked/a: Permission denied"
    assert project.call("write_file", "x" * 300, "x").endswith("File name too long")
