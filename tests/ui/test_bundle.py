"""`punie doctor --bundle`: enough to help with, in a file for the user alone, and no secret, wherever one was put."""

import base64
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.ui.scripted_server import Call, ScriptedServer

from punie.ui import _crashes, bundle

PUNIE = Path(sys.executable).with_name("punie")
CANARIES = {
    "in a variable named secret": "plain-Words-77-of-acme",
    "the key of a service": "sk-ant-api03-Qz7Yp2Lm9Xw4Vb6Nc8Kd",
    "of another service": "sk-proj-Hj4Kl8Pq2Rt6Yu9Io3As7Df",
    "by its shape": "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12",
    "in an address": "hunt3r-Tw0-in-Url",
    "header of a collector": "Zx81-quite-unlike-anything",
    "header of a server": "tok-9f8e7d-of-docs",
    "name of a header": "X-Abc123Def456-Name",
    "variable of a server": "v4r-of-a-server-551",
    "in instructions": "never-mention-Project-Blue-9",
    "in a hook": "curl-with-4711-in-it",
    "of a proxy": "Bearer-of-the-proxy-8080a",
    "assigned in a file": "wJalrXUtnFEMI0K7MDENG0bPxRfiCYzzzKEY9",
}
C = CANARIES
_ONLY_LEFT_OUT = frozenset({"in instructions", "in a hook", "name of a header"})
"""Nothing tells that these are secrets: they stay out because the places where they stand are not taken in."""
KNOWN = [value for name, value in CANARIES.items() if name not in _ONLY_LEFT_OUT]
SPOKEN = [value for value in KNOWN if value != C["assigned in a file"]]
"""What a model may say as it is: the other one is a secret only beside the name that it is assigned to."""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    places = {f"XDG_{kind}_HOME": str(tmp_path / kind.lower()) for kind in ("CONFIG", "STATE", "CACHE")}
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        **places,
        "ACME_API_KEY": C["in a variable named secret"],
        "ANTHROPIC_API_KEY": C["the key of a service"],
        "OPENAI_API_KEY": C["of another service"],
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{quote(C['header of a collector'])}",
        "HTTPS_PROXY": f"http://me:{C['of a proxy']}@127.0.0.1:9",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def project(tmp_path: Path, server: ScriptedServer) -> Path:
    """A project and settings with a secret in every place that has room for one."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "settings.env").write_text("\n".join(f"API_TOKEN={secret}" for secret in KNOWN))
    settings = tmp_path / "config" / "punie"
    settings.mkdir(parents=True)
    address = server.spec.replace("http://", f"http://me:{C['in an address']}@")
    (settings / "config.toml").write_text(
        f'model = "{address}"\ninstructions = "{C["in instructions"]}"\n[aliases]\nfast = "{address}"\n'
        f'[[hooks.after_tool]]\ncommand = "true {C["in a hook"]}"\n'
    )
    docs = {"url": "http://127.0.0.1:9/mcp", "headers": {C["name of a header"]: C["header of a server"]}}
    program = {"command": "true", "env": {"PLAIN": C["variable of a server"]}}
    (settings / "mcp.json").write_text(json.dumps({"mcpServers": {"docs": docs, "files": program}}))
    return root


def punie(root: Path, env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    nothing = subprocess.DEVNULL
    return subprocess.run(
        [str(PUNIE), *arguments], cwd=root, env=env, stdin=nothing, capture_output=True, text=True, timeout=120
    )


def test_a_bundle_holds_what_helps_and_no_secret(
    project: Path, env: dict[str, str], tmp_path: Path, server: ScriptedServer
) -> None:
    shown = base64.b64encode(KNOWN[0].encode()).decode()
    server.script = [[Call("read_file", {"path": "settings.env"})], [f"It says {shown} and {' '.join(SPOKEN)}."]]
    asked = punie(project, env, "-p", f"is {KNOWN[0]} in settings.env?", "--output-format", "json")
    assert asked.returncode == 0, asked.stderr
    session = json.loads(asked.stdout)["session_id"]
    file = tmp_path / "report.zip"
    done = punie(project, env, "doctor", "--quick", "--bundle", str(file), "--session", session[:8])
    assert "FAIL  weights" not in done.stdout
    assert f"Written: {file}" in done.stderr
    assert "Look through it before you send it to anybody" in done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(file) as archive:
        texts = {name.removeprefix("punie-bundle/"): archive.read(name).decode() for name in archive.namelist()}
    assert set(texts) == {"README.txt", *bundle._ABOUT}
    assert all(name in texts["README.txt"] and name in done.stderr for name in bundle._ABOUT)
    for name, canary in CANARIES.items():
        for form in (canary, quote(canary, safe=""), base64.b64encode(canary.encode()).decode().rstrip("=")):
            where = {file for file, text in texts.items() if form in text}
            # Who gives a conversation away gives away what the model was told in it.
            told = {"session.jsonl"} if name == "in instructions" else set()
            assert where <= told, f"{name} stands in {where}"
    assert str(tmp_path / "state") not in "".join(texts.values())
    assert "ANTHROPIC_API_KEY is set" in texts["environment.txt"]
    assert "LC_ALL=C.UTF-8" in texts["environment.txt"]
    assert "instructions = (left out)" in texts["config.txt"]
    assert "mcp docs (user): an address, 0 variables, 1 headers" in texts["config.txt"]
    assert json.loads(texts["doctor.json"])["findings"]
    assert json.loads(texts["versions.json"])["packages"]["pydantic-ai-slim"]
    assert "sessions/sessions.db" in texts["state.txt"]
    assert "`read_file`" in texts["session.md"]
    lines = [json.loads(line) for line in texts["session.jsonl"].splitlines()]
    assert {line["type"] for line in lines} == {"session", "message", "call"}


def test_without_a_session_nothing_of_what_was_said_is_in_it(
    project: Path, env: dict[str, str], tmp_path: Path, server: ScriptedServer
) -> None:
    server.script = [["The treasure lies under the oak."]]
    assert punie(project, env, "-p", "where is the treasure?").returncode == 0
    file = tmp_path / "report.zip"
    punie(project, env, "doctor", "--quick", "--bundle", str(file))
    with zipfile.ZipFile(file) as archive:
        text = "\n".join(archive.read(name).decode() for name in archive.namelist())
        assert [name for name in archive.namelist() if "session" in name] == []
    assert "treasure" not in text
    again = punie(project, env, "doctor", "--quick", "--bundle", str(file))
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already" in again.stderr
    unknown = punie(project, env, "doctor", "--bundle", str(tmp_path / "other.zip"), "--session", "ffff")
    assert (unknown.returncode, unknown.stdout) == (2, ""), unknown.stderr
    assert not (tmp_path / "other.zip").exists()


def test_a_crash_is_kept_without_its_message(tmp_path: Path) -> None:
    program = (
        "import os, sys, punie.cli as cli\n"
        "def inner(): raise RuntimeError('the treasure lies under ' + os.environ['ACME_API_KEY'])\n"
        "def fail(arguments):\n"
        "    try: inner()\n"
        "    except RuntimeError as error: raise ValueError('it was said: treasure') from error\n"
        "cli._run = fail\n"
        "sys.exit(cli.main([]))\n"
    )
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "ACME_API_KEY": "plain-Words-77-of-acme"}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
        assert "Traceback" in done.stderr
    kept = _crashes.recent(env)
    assert kept.count("builtins.ValueError") == kept.count("builtins.RuntimeError") == 2
    assert "in inner" in kept
    assert "treasure" not in kept
    assert (tmp_path / "punie" / "crashes.log").stat().st_mode & 0o777 == 0o600


def test_what_is_kept_of_crashes_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    monkeypatch.setattr(_crashes, "_KEPT", 300)
    for _ in range(9):
        _crashes.keep(ValueError("x"), env)
    assert 0 < len(_crashes.recent(env)) <= 300
    (tmp_path / "punie" / "crashes.log").unlink()
    (tmp_path / "punie" / "crashes.log").mkdir()
    _crashes.keep(ValueError("x"), env)
    assert _crashes.recent(env) == ""
