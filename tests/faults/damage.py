"""Damaged files of punie's own: it says which one in at most three lines, or goes on without it; it never hangs.

python -m tests.faults.damage
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tests.faults.ground import Ground
from tests.stubs import scripted

from punie.config import local_rules_file, trust_store

DAMAGES: Mapping[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(4_096)),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 16),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "not UTF-8": lambda path: path.write_bytes(b'\xff\xfe"model" = 1\n' + path.read_bytes()),
    "other text": lambda path: path.write_text("<!DOCTYPE html><html></html>\n"),
    "other JSON": lambda path: path.write_text('{"trusted": {"path": []}, "version": "x"}'),
    "nested": lambda path: path.write_text("[" * 100_000),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "dangling link": lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all")),
    "link to itself": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "huge": lambda path: os.truncate(path, 1 << 40),
}
HARMLESS = "trust"
"""The file without which it goes on: then nothing is trusted."""


def files(ground: Ground) -> Mapping[str, Path]:
    """The files, each as punie itself would have it."""
    found = {
        "config": ground.home / ".config" / "punie" / "config.toml",
        "trust": trust_store(ground.env).file,
        "rules": local_rules_file(ground.project, ground.env),
        "sessions": ground.state / "sessions" / "sessions.db",
    }
    running = ground.start("-p", "hello", model=scripted("Well."))
    assert running.end() == 0
    assert ground.start("trust", ".").end() == 0
    for path in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    found["config"].write_text('max_tokens = 600\n[permissions]\ndeny = ["Bash(rm:*)"]\n')
    found["rules"].write_text('[permissions]\nallow = [\n  "Bash(ls:*)",\n]\n')
    return found


def damaged(ground: Ground, name: str, path: Path, damage: str) -> tuple[list[str], int]:
    """What is wrong with how punie takes one damaged file, and its exit code."""
    kept = path.read_bytes()
    DAMAGES[damage](path)
    found: list[str] = []
    code = -1
    try:
        running = ground.start("-p", "hello", model=scripted("Well."))
        code = running.end(20)
        err = running.err.read_text()
        said = err.splitlines()
        found += ["a traceback"] if "Traceback" in err else []
        if code == 0:
            found += [] if running.out.read_text() == "Well.\n" else [f"answered {running.out.read_text()!r}"]
        else:
            named = str(path) in err or str(path.parent) in err
            found += [] if code in (1, 2) and len(said) <= 3 and named else [f"exit code {code}: {err[:500]!r}"]
        found += [] if code == 0 or name != HARMLESS else [f"it does not go on: {err!r}"]
    except AssertionError:
        found.append("it hangs")
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
        for old in path.parent.glob(f"{path.name}[.-]*"):
            old.unlink()
    ground.seen = ground.outside()  # punie's settings lie there
    again = ground.start("-p", "hello", model=scripted("Well."))
    found += [] if again.end() == 0 else [f"mended, it still fails: {again.err.read_text()[:500]}"]
    return [f"{name}, {damage}: {each}" for each in [*found, *ground.faults()]], code


def main(only: Collection[str]) -> dict[str, object]:
    """Damage every file in every way, or in some."""
    faults: list[str] = []
    codes: dict[str, dict[str, int]] = {}
    with Ground() as ground:
        places = files(ground)
        ground.seen = ground.outside()
        for name, path in places.items():
            codes[name] = {}
            for damage in only or DAMAGES:
                found, codes[name][damage] = damaged(ground, name, path, damage)
                faults += found
    return {"exit codes": codes, "faults": faults}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:]), indent=1) + "\n")
