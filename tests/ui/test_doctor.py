"""`punie doctor`: what is wrong with a machine, a server or a model is named, each with what to do about it."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pydantic_ai.models
import pytest
from tests.backends.services import Play, chat, said, serving

from punie.config import SandboxOptions
from punie.tools import SandboxState
from punie.ui import _checks, doctor
from punie.ui._canary import EXPECTED
from punie.ui._checks import Finding
from punie.ui.options import Options

PUNIE = Path(sys.executable).with_name("punie")
CALL = chat("", ("find_subclasses", {"name": "Shape"}))
RIGHT = chat(f"shapes.py:5 class {EXPECTED}(Shape)")
PAGE = Play((b"<html>Sign in</html>",), kind="text/html", ends="length")


def listing(name: str, **more: object) -> Mapping[str, Play]:
    return {"/v1/models": said({"object": "list", "data": [{"id": name, **more}]})}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own, and nothing that takes long: engines are looked at in another test."""
    for name in [name for name in os.environ if name.startswith(("PUNIE_", "XDG_", "ANTHROPIC_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    for kind in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / kind.lower()))
    monkeypatch.setattr(pydantic_ai.models, "ALLOW_MODEL_REQUESTS", True)
    monkeypatch.setattr(doctor, "of_machine", lambda env: iter(()))


class Found(NamedTuple):
    findings: list[Finding]
    result: doctor.Result

    def all(self, subject: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.subject == subject]

    def one(self, subject: str) -> Finding:
        (finding,) = self.all(subject)
        return finding

    @property
    def problems(self) -> list[str]:
        return [finding.subject for finding in self.findings if finding.kind == "problem"]


async def found(root: Path, spec: str, *, asks: bool = True, seconds: float = 60) -> Found:
    """What doctor finds; in a thread of its own, beside the server that it asks."""
    result = doctor.Result([])
    options = Options(cwd=root, model=spec)
    findings = await asyncio.to_thread(
        lambda: list(doctor.findings(options, asks=asks, seconds=seconds, result=result))
    )
    result.findings.extend(findings)
    return Found(findings, result)


# --- a model that answers ---


async def test_a_model_that_calls_a_tool_and_answers_is_measured(tmp_path: Path) -> None:
    async with serving(CALL, RIGHT, told=listing("m", max_model_len=32_768)) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1")
    assert seen.problems == []
    assert "called find_subclasses and answered right" in seen.one("question").said
    assert "32,768 tokens" in seen.one("context").said
    assert "a second, first words after" in seen.one("speed").said
    table = json.loads(json.dumps(seen.result.table()))
    assert table["ok"] is True
    assert table["question"]["tool_calls"] == [{"name": "find_subclasses", "outcome": "ok"}]
    assert table["question"]["context_window"] == 32_768
    assert table["question"]["written_tokens_per_s"] > 0
    assert table["question"]["first_s"] > 0


async def test_without_a_question_the_model_is_not_asked(tmp_path: Path) -> None:
    async with serving(CALL, RIGHT, told=listing("m")) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1", asks=False)
        assert service.asked == []
    assert seen.problems == []
    assert seen.one("server").said.endswith("answers")
    assert seen.result.table()["question"] is None


async def test_servers_of_the_user_are_not_started_for_the_question(tmp_path: Path) -> None:
    file = tmp_path / "config" / "punie" / "mcp.json"
    file.parent.mkdir(parents=True)
    started = tmp_path / "started"
    file.write_text(json.dumps({"mcpServers": {"mine": {"command": "touch", "args": [str(started)]}}}))
    async with serving(CALL, RIGHT, told=listing("m")) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1")
    assert seen.problems == []
    assert not started.exists()


# --- servers and models with something wrong about them ---


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    seen = await found(tmp_path, "openai:m@http://someone:hunt3r-Tw0@127.0.0.1:9/v1")
    assert seen.problems == ["server"], "the question would only say it again"
    assert "nothing listens there" in seen.one("server").said
    assert "Start the server" in seen.one("server").cure
    assert "hunt3r" not in repr(seen)


SERVERS = {
    "web page": ((PAGE,), {"/v1/models": PAGE}, "server", "a web page instead of JSON", "ends in /v1"),
    "no tools called": ((chat("Surely Circle."),), listing("m"), "question", "called no tool", "--jinja"),
    "tools refused": (
        (said({"error": {"message": "m does not support tools"}}, 400),),
        listing("m"),
        "question",
        "does not support tools",
        "--jinja",
    ),
    "unknown model": (
        (said({"error": {"message": "no model m", "code": "model_not_found"}}, 404),),
        listing("other"),
        "question",
        "does not know the model",
        "Check the name",
    ),
    "wants a key": (
        (said({}, 401),),
        {"/v1/models": said({"error": "no key"}, 401)},
        "server",
        "wants a key",
        "OPENAI_API_KEY",
    ),
    "prompt too long": (
        (said({"error": {"message": "This model's maximum context length is 512 tokens"}}, 400),),
        listing("m", max_model_len=512),
        "question",
        "too long",
        "",
    ),
    "silence": ((Play((30.0,)),), listing("m"), "question", "no answer within 0.3 s", "smaller model"),
}


@pytest.mark.parametrize("name", SERVERS)
async def test_what_is_wrong_with_a_server_is_named_with_its_cure(tmp_path: Path, name: str) -> None:
    plays, told, subject, what, cure = SERVERS[name]
    async with serving(*plays, told=told) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1", seconds=0.3 if name == "silence" else 60)
    assert seen.problems == [subject]
    assert what in seen.one(subject).said
    assert cure in seen.one(subject).cure
    assert not seen.result.ok


async def test_a_name_the_server_does_not_list_and_a_small_window_are_notes(tmp_path: Path) -> None:
    async with serving(CALL, RIGHT, told=listing("other", owned_by="vllm")) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1", asks=False)
    assert "does not list m; it lists other" in seen.all("server")[-1].said
    async with serving(CALL, RIGHT, told=listing("m", max_model_len=4096)) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1", asks=False)
    assert (seen.one("window").kind, "llama-server -c" in seen.one("window").cure) == ("note", True)


async def test_a_wrong_answer_is_no_reason_not_to_run(tmp_path: Path) -> None:
    async with serving(CALL, chat("None."), told=listing("m")) as service:
        seen = await found(tmp_path, f"openai:m@{service.url}/v1")
    assert (seen.one("question").kind, seen.problems) == ("note", [])
    assert "answered wrong" in seen.one("question").said


@pytest.mark.parametrize(
    ("spec", "subject", "variable"),
    [("claude", "claude", "ANTHROPIC_API_KEY"), ("openai:m", "openai", "OPENAI_API_KEY")],
)
async def test_a_key_that_is_needed_and_not_there(tmp_path: Path, spec: str, subject: str, variable: str) -> None:
    seen = await found(tmp_path, spec)
    assert seen.problems == [subject]
    assert f"{variable} is not set" in seen.one(subject).said
    assert f"Set {variable} in the environment" in seen.one(subject).cure


async def test_a_key_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-value-of-mine")
    seen = await found(tmp_path, "claude", asks=False)
    assert seen.one("claude") == Finding("ok", "claude", "ANTHROPIC_API_KEY is set")
    assert "sk-secret" not in repr(seen)


@pytest.mark.parametrize(
    ("spec", "what", "cure"),
    [
        ("gguf:/nowhere/x.gguf", "There is no model at /nowhere/x.gguf", "Check the path"),
        ("local:qwen2.5-coder-7b", "punie models pull qwen2.5-coder-7b", "punie models info qwen2.5-coder-7b"),
        ("local:nonsense", "nonsense", ""),
        ("local", "is not there yet", "punie models pull"),
        ("local:smollm2-135m+off", "is not there yet", "punie models pull"),
    ],
)
async def test_a_local_model_whose_weights_are_not_there(tmp_path: Path, spec: str, what: str, cure: str) -> None:
    seen = await found(tmp_path, spec)
    assert seen.problems == ["weights"], "there is nothing that could be asked"
    assert what in seen.one("weights").said
    assert cure in seen.one("weights").cure


# --- the machine ---


async def test_a_sandbox_that_does_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(options: SandboxOptions) -> SandboxState:
        del options
        return SandboxState("none", "bubblewrap does not work (no namespaces)")

    monkeypatch.setattr(_checks, "sandbox_state", none)
    monkeypatch.setattr("sys.platform", "linux")
    finding = (await found(tmp_path, "claude", asks=False)).one("sandbox")
    assert (finding.kind, finding.cure) == ("note", "Install bubblewrap (Debian, Ubuntu: apt install bubblewrap).")
    monkeypatch.setenv("PUNIE_SANDBOX__MODE", "required")
    assert (await found(tmp_path, "claude", asks=False)).one("sandbox").kind == "problem"


async def test_a_state_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    seen = await found(tmp_path, "claude", asks=False)
    assert "state" in seen.problems
    assert "XDG_STATE_HOME" in seen.one("state").cure
    monkeypatch.setenv("PUNIE_SAVE_SESSIONS", "false")
    assert (await found(tmp_path, "claude", asks=False)).one("state").kind == "note"


@pytest.mark.parametrize(("free", "kind"), [(9e11, "ok"), (1e8, "note"), (1e6, "problem")])
async def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, kind: str) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(_checks.shutil, "disk_usage", lambda path: usage._replace(free=int(free)))
    assert (await found(tmp_path, "claude", asks=False)).one("disk").kind == kind


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_editor_and_git_are_looked_for_where_programs_are() -> None:
    path = os.environ["PATH"]
    assert _checks._editor({"PATH": path, "EDITOR": "sh -c"}) == Finding("ok", "editor", "EDITOR is sh -c")
    assert "no program here" in _checks._editor({"PATH": path, "VISUAL": "no-such-editor"}).said
    assert _checks._editor({"PATH": path}).cure == "export EDITOR=nano"
    assert _checks._git({"PATH": ""}).kind == "note"


def test_a_terminal_that_cannot_be_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "nothing is redrawn" in only(_checks._terminal({"TERM": "dumb"})).said
    assert "not set" in only(_checks._terminal({})).said
    monkeypatch.setattr(_checks.shutil, "get_terminal_size", lambda: os.terminal_size((20, 24)))
    assert only(_checks._terminal({"TERM": "xterm"})).cure == "Make it at least 40 columns wide."


# --- the command ---


def punie(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("CONFIG", "STATE", "CACHE")}
    env = {"PATH": os.environ["PATH"], "HOME": str(root), **places}
    return subprocess.run([str(PUNIE), *arguments], cwd=root, env=env, capture_output=True, text=True, timeout=120)


def test_json_is_all_that_is_printed_and_a_problem_is_exit_code_1(tmp_path: Path) -> None:
    done = punie(tmp_path, "doctor", "--json", "-m", "openai:m@http://127.0.0.1:9/v1")
    assert (done.returncode, done.stderr) == (1, "")
    table = json.loads(done.stdout)
    assert (table["ok"], table["question"]) == (False, None)
    kinds = {finding["subject"]: finding["kind"] for finding in table["findings"]}
    assert (kinds["server"], kinds["python"], kinds["llama.cpp"]) == ("problem", "ok", "ok")
    assert all(finding["cure"] for finding in table["findings"] if finding["kind"] == "problem")


async def test_an_interrupt_ends_it_at_once(tmp_path: Path) -> None:
    async with serving(Play((60.0,)), told=listing("m")) as service:
        command = [str(PUNIE), "doctor", "-m", f"openai:m@{service.url}/v1"]
        nothing = asyncio.subprocess.DEVNULL
        doctoring = await asyncio.create_subprocess_exec(
            *command, cwd=tmp_path, stdout=nothing, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(100):
            while not service.asked:  # noqa: ASYNC110 - the service tells nobody
                await asyncio.sleep(0.05)
            doctoring.send_signal(signal.SIGINT)
            _, told = await doctoring.communicate()
    assert doctoring.returncode == 130
    assert b"Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "what"), [(("--timeout", "0"), "more than 0"), (("--session", "3f2a"), "needs --bundle")]
)
def test_flags_that_make_no_sense(tmp_path: Path, arguments: tuple[str, ...], what: str) -> None:
    done = punie(tmp_path, "doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
