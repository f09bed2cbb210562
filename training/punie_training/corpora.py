"""The public projects that questions are asked about: fetched by pinned hash, unpacked as workspaces, split by family.

A family is a group of projects that share people or code; it lies in one split, so that nothing asked in the
evaluation was seen in training. A file that two families hold in the same bytes stays with the first of them.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import Literal

from punie.errors import PunieError

Split = Literal["train", "dev", "test"]
MANIFEST = Path(__file__).with_name("corpora.toml")
TEXT_SUFFIXES = frozenset({".py", ".pyi", ".md", ".rst", ".txt", ".toml", ".cfg", ".ini", ".json", ".typed"})
LARGEST_FILE = 400_000
SHORTEST_DUPLICATE = 200
VENDORED = frozenset({"_vendor", "vendor", "vendored", "_vendored"})


@dataclass(frozen=True)
class Project:
    """One pinned release."""

    name: str
    version: str
    sha256: str
    split: Split
    family: str
    licence: str
    source_dir: str = ""
    """Directory the packages are put in: "" or "src", so that both layouts of real repositories occur."""

    @property
    def directory(self) -> str:
        """Name of the unpacked workspace."""
        return f"{self.name}-{self.version}"


def manifest(path: Path = MANIFEST) -> tuple[Project, ...]:
    """Read the committed list of projects; test projects come first, so that they keep shared files."""
    rows = tomllib.loads(path.read_text("utf-8"))["project"]
    order = ("test", "dev", "train")
    return tuple(sorted((Project(**row) for row in rows), key=lambda p: order.index(p.split)))


def workspaces(projects: Sequence[Project], *, cache_dir: Path) -> Mapping[str, Path]:
    """Return project name -> directory of its unpacked code, fetching what is not there yet."""
    home = cache_dir / "corpora"
    found = {p.name: home / p.directory for p in projects}
    missing = [p for p in projects if not found[p.name].is_dir()]
    if missing:
        wheels = fetch(projects, wheel_dir=home / "wheels")
        shared = _shared_files(projects, wheels)
        for project in missing:
            _unpack(wheels[project.name], project, target=found[project.name], leave_out=shared[project.name])
    return found


def fetch(projects: Sequence[Project], *, wheel_dir: Path) -> Mapping[str, Path]:
    """Download the pinned wheels through the user's own index configuration; pip refuses a wrong hash."""
    wheel_dir.mkdir(parents=True, exist_ok=True)
    found = _held(projects, wheel_dir)
    missing = [p for p in projects if p.name not in found]
    if missing:
        _download(missing, wheel_dir)
        found = _held(projects, wheel_dir)
    lacking = [p.directory for p in projects if p.name not in found]
    if lacking:
        raise PunieError(f"The index has no wheel with the pinned hash for {', '.join(lacking)}.")
    return found


def _held(projects: Iterable[Project], wheel_dir: Path) -> dict[str, Path]:
    by_hash = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in wheel_dir.glob("*.whl")}
    return {p.name: by_hash[p.sha256] for p in projects if p.sha256 in by_hash}


def _download(projects: Iterable[Project], wheel_dir: Path) -> None:
    lines = [f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in projects]
    with tempfile.TemporaryDirectory() as directory:
        requirements = Path(directory, "requirements.txt")
        requirements.write_text("".join(lines), "utf-8")
        # The code is read, never run: a release for a newer Python is as good as any.
        options = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--require-hashes", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", str(wheel_dir), "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PunieError(f"pip could not download the corpora: {done.stderr.strip().splitlines()[-1]}")


def _shared_files(projects: Sequence[Project], wheels: Mapping[str, Path]) -> dict[str, set[str]]:
    """Name the members of each wheel whose bytes an earlier project of another family has too."""
    owner: dict[str, str] = {}
    shared: dict[str, set[str]] = {p.name: set() for p in projects}
    for project in projects:
        with zipfile.ZipFile(wheels[project.name]) as wheel:
            for info in _members(wheel):
                digest = hashlib.sha256(wheel.read(info)).hexdigest()
                long_enough = info.file_size >= SHORTEST_DUPLICATE
                if long_enough and owner.setdefault(digest, project.family) != project.family:
                    shared[project.name].add(info.filename)
    return shared


def _members(wheel: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    for info in wheel.infolist():
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or info.is_dir() or info.file_size > LARGEST_FILE:
            continue
        if VENDORED.isdisjoint(path.parts) and path.suffix in TEXT_SUFFIXES and ".dist-info" not in path.parts[0]:
            yield info


def _unpack(wheel_path: Path, project: Project, *, target: Path, leave_out: set[str]) -> None:
    """Write the members below a scratch directory and move it into place once it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    with zipfile.ZipFile(wheel_path) as wheel:
        for info in _members(wheel):
            if info.filename not in leave_out:
                file = scratch / project.source_dir / info.filename
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(wheel.read(info))
        _write_readme(wheel, scratch)
    scratch.chmod(0o755)
    try:
        scratch.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(scratch)


def _write_readme(wheel: zipfile.ZipFile, directory: Path) -> None:
    """Give the workspace the project's own description, which a wheel keeps in its metadata."""
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = BytesParser().parsebytes(wheel.read(name))
    body = metadata.get_payload()
    if isinstance(body, str) and body.strip():
        suffix = ".rst" if "rst" in (metadata["Description-Content-Type"] or "rst") else ".md"
        raw = metadata.get_payload(decode=True)
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else body
        (directory / f"README{suffix}").write_text(text, "utf-8")


@contextmanager
def scratch_copy(root: Path) -> Iterator[Path]:
    """Give a copy of a project that may be changed."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory).resolve() / root.name
        shutil.copytree(root, target)
        yield target
