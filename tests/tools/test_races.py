"""The way to a file, where it takes processes of their own to attack it."""

import os
import subprocess
import sys

import pytest
from tests.tools.jail import NOBODY
from tests.tools.project import Project
from tests.tools.races import TOOLS, outcomes


def test_nothing_outside_is_read_or_changed_while_paths_are_traded_for_links():
    found = list(outcomes(0.1))
    assert {each.uid for each in found} == ({0, NOBODY} if os.getuid() == 0 else {os.getuid()})
    assert {each.leaks for each in found if each.tool == "naive"} == {1}, "the traps do not work"
    races = [each for each in found if each.tool != "naive"]
    assert {(each.tool, each.door) for each in races} == {
        (tool, door) for tool in TOOLS for door in ("openat2", "names")
    }
    assert all(each.done + each.refused for each in races)
    assert not any(each.leaks or each.changed_outside or each.lost_links for each in races)


_FILTERED = """
import ctypes, errno, os, struct, sys
from pathlib import Path
from punie.tools._beneath import has_openat2
from punie.tools._paths import Tree
libc = ctypes.CDLL(None, use_errno=True)
for reason in (errno.ENOSYS, errno.EPERM):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        continue
    lines = [(0x20, 0, 0, 0), (0x15, 0, 1, 437), (0x06, 0, 0, 0x50000 | reason), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in lines))
    filter = struct.pack("<HxxxxxxQ", len(lines), ctypes.addressof(program))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, filter, 0, 0) == 0, os.strerror(ctypes.get_errno())
    tree = Tree(Path(sys.argv[1]))
    print(has_openat2(), tree.read("a.txt", limit=9).data, flush=True)
    try:
        tree.read("link", limit=9)
    except PermissionError as error:
        print(type(error).__name__, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="filters of system calls are Linux's")
def test_where_the_kernel_lacks_the_call_files_are_opened_name_by_name(project: Project):
    project.write("a.txt", "one")
    (project.root / "link").symlink_to("/etc/passwd")
    done = subprocess.run(
        [sys.executable, "-c", _FILTERED, str(project.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:-1] == ["False b'one'", "OutsideWorkspaceError"] * 2
