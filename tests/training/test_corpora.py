import hashlib
import re
import zipfile
from pathlib import Path

from punie_training import corpora
from punie_training.corpora import Project, manifest

LONG = "x = 1\n" * 60


def _wheel(directory: Path, name: str, files: dict[str, str]) -> str:
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
        wheel.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Name: {name}\nDescription-Content-Type: text/markdown\n\n# {name}\n"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_is_pinned_and_split_by_family() -> None:
    projects = manifest()
    assert sum(p.split == "train" for p in projects) >= 24
    assert sum(p.split == "dev" for p in projects) >= 3
    assert sum(p.split == "test" for p in projects) >= 6
    assert all(re.fullmatch(r"[0-9a-f]{64}", p.sha256) for p in projects)
    splits = {p.family: {q.split for q in projects if q.family == p.family} for p in projects}
    assert {family: found for family, found in splits.items() if len(found) > 1} == {}
    assert {p.licence for p in projects} <= {
        *("MIT", "BSD-3-Clause", "BSD-2-Clause", "Apache-2.0"),
        *("MIT OR Apache-2.0", "Apache-2.0 OR BSD-2-Clause"),
    }


def test_wheels_on_this_disk_become_workspaces_without_what_another_family_has(tmp_path: Path) -> None:
    wheels = tmp_path / "corpora" / "wheels"
    wheels.mkdir(parents=True)
    first = _wheel(wheels, "first", {"first/__init__.py": "", "first/shared.py": LONG})
    second = _wheel(
        wheels,
        "second",
        {"second/copied.py": LONG, "second/own.py": "y = 2\n", "second/_vendor/z.py": "", "second/logo.png": "no text"},
    )
    projects = (
        Project("first", "1.0", first, "test", "one", "MIT", source_dir="src"),
        Project("second", "1.0", second, "train", "two", "MIT"),
    )
    found = corpora.workspaces(projects, cache_dir=tmp_path)
    assert _files(found["first"]) == {"README.md", "src/first/__init__.py", "src/first/shared.py"}
    assert _files(found["second"]) == {"README.md", "second/own.py"}
    assert "# second" in (found["second"] / "README.md").read_text()


def test_a_member_that_leaves_the_directory_is_not_unpacked(tmp_path: Path) -> None:
    wheels = tmp_path / "corpora" / "wheels"
    wheels.mkdir(parents=True)
    digest = _wheel(wheels, "sly", {"../../outside.py": "x = 1\n", "sly/a.py": "x = 1\n"})
    project = Project("sly", "1.0", digest, "train", "sly", "MIT")
    found = corpora.workspaces((project,), cache_dir=tmp_path)
    assert _files(found["sly"]) == {"README.md", "sly/a.py"}
    assert not list(tmp_path.rglob("outside.py"))


def _files(root: Path) -> set[str]:
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
