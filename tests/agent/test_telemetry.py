"""Spans of what an agent does: only where they were asked for, without content unless asked, never with a secret."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.stubs import scripted
from tests.ui.scripted_server import Call, ScriptedServer
from tests.ui.scripted_server import serving as serving_model

from punie import AgentConfig, Workspace, create_agent
from punie.agent import telemetry
from punie.agent.loop import run_turn
from punie.agent.telemetry import Telemetry
from punie.config import load_settings
from punie.errors import ConfigError
from punie.trust import TrustStore
from punie.ui._setup import prepare
from punie.ui.options import Options

PUNIE = Path(sys.executable).with_name("punie")
TOKEN = "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12"
VALUE = "plain-Words-77-of-acme"
BEARER = "Zx81-quite-unlike-anything"
SECRETS = (TOKEN, VALUE, BEARER)
SAID = "They stand in the settings, it says."
ENVIRONMENT = {"ACME_API_KEY": VALUE, "OTEL_EXPORTER_OTLP_HEADERS": f"x-acme={BEARER},other=short"}


async def a_turn(told: Telemetry, root: Path) -> None:
    """One turn that reads a file with every secret in it."""
    (root / "settings.toml").write_text("\n".join(f'v = "{secret}"' for secret in SECRETS))
    config = AgentConfig(model="scripted")
    model = scripted(("read_file", {"path": "settings.toml"}), ("read_file", {"path": f"{TOKEN}.txt"}), SAID)
    agent = create_agent(config, model=model, telemetry=told)
    async for _ in run_turn(agent, f"what is in there, and is {VALUE} one?", workspace=Workspace(root), config=config):
        pass


def tree(spans: Sequence[ReadableSpan]) -> list[tuple[str, str]]:
    """Each span by its name, and the name of the one it is part of."""
    names = {span.context.span_id: span.name for span in spans if span.context}
    return sorted((span.name, names[span.parent.span_id] if span.parent else "") for span in spans)


def whole(spans: Sequence[ReadableSpan]) -> str:
    return "\n".join(span.to_json() for span in spans)


async def test_a_run_its_requests_and_its_calls_are_told(tmp_path: Path) -> None:
    kept = InMemorySpanExporter()
    told = Telemetry(kept, redact=telemetry.redactor(ENVIRONMENT), where="here")
    await a_turn(told, tmp_path)
    assert told.close() == ""
    spans = kept.get_finished_spans()
    run = "invoke_agent punie"
    calls, requests = [("execute_tool read_file", run)] * 2, [("chat function::stream", run)] * 3
    assert tree(spans) == sorted([(run, ""), *calls, *requests])
    assert all(span.resource.attributes["service.name"] == "punie" for span in spans)
    usage = [span.attributes["gen_ai.usage.input_tokens"] for span in spans if span.name.startswith("chat")]  # type: ignore[index]
    assert all(isinstance(tokens, int) and tokens > 0 for tokens in usage)


async def test_nothing_that_was_said_is_told(tmp_path: Path) -> None:
    kept = InMemorySpanExporter()
    told = Telemetry(kept, redact=telemetry.redactor(ENVIRONMENT), where="here")
    await a_turn(told, tmp_path)
    text = whole(kept.get_finished_spans())
    for said in (
        *SECRETS,
        "what is in there",
        "settings.toml",
        SAID[:20],
        "No such file",
        str(tmp_path),
        "Read a file",
    ):
        assert said not in text


async def test_what_was_said_is_told_without_secrets_where_that_is_asked_for(tmp_path: Path) -> None:
    kept = InMemorySpanExporter()
    told = Telemetry(kept, redact=telemetry.redactor(ENVIRONMENT), where="here", content=True)
    await a_turn(told, tmp_path)
    text = whole(kept.get_finished_spans())
    for said in ("what is in there", "settings.toml", SAID, "[redacted:ACME_API_KEY]", "[redacted:github-token]"):
        assert said in text
    for secret in SECRETS:
        assert secret not in text


async def test_the_file_has_one_span_a_line_and_is_for_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = telemetry.to_file(tmp_path / "state", environment=ENVIRONMENT)
    await a_turn(told, tmp_path)
    assert told.close() == ""
    file = tmp_path / "state" / telemetry.FILE
    names = [json.loads(line)["name"] for line in file.read_text().splitlines()]
    assert len(names) == 6
    assert names[-1] == "invoke_agent punie"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    monkeypatch.setattr(telemetry, "_MAX_FILE_BYTES", 3 * file.stat().st_size // 2)
    for _ in range(3):
        await a_turn(telemetry.to_file(tmp_path / "state", environment=ENVIRONMENT), tmp_path)
    assert {each.name for each in file.parent.iterdir()} <= {"spans.jsonl", "spans.old.jsonl"}
    assert (file.parent / "spans.old.jsonl").stat().st_size < 3 * len("".join(names)) * 1000


async def test_a_file_that_cannot_be_written_ends_no_turn(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    told = telemetry.to_file(tmp_path / "state", environment={})
    await a_turn(told, tmp_path)
    assert "6 spans could not be handed to" in told.close()


@dataclass
class Collector:
    """What an OTLP collector was sent."""

    bodies: list[ExportTraceServiceRequest] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""

    def names(self) -> list[str]:
        return sorted(
            span.name for body in self.bodies for r in body.resource_spans for s in r.scope_spans for span in s.spans
        )


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on the loopback address, which takes OTLP over HTTP."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            data = gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data
            collector.bodies.append(ExportTraceServiceRequest.FromString(data))
            collector.headers.append(dict(self.headers.items()))
            collector.paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        collector.url = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield collector
        http.shutdown()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving_model() as scripted_model:
        scripted_model.script = [[Call("read_file", {"path": "settings.toml"})], [SAID]]
        yield scripted_model


WATCHED = """
import sys
seen = []
def watch(event, given):
    if event == "socket.connect" and isinstance(given[1], tuple):
        seen.append("%s:%s" % given[1][:2])
sys.addaudithook(watch)
from punie.cli import main
code = main(sys.argv[1:])
sdk = sorted({name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))})
print("MODULES", *sdk[:3], file=sys.stderr)
print("CONNECTED", *sorted(set(seen)), file=sys.stderr)
sys.exit(code)
"""


def watched(root: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The program, with what it imported and connected to on its standard error."""
    project = root / "project"
    project.mkdir(exist_ok=True)
    (project / "settings.toml").write_text("\n".join(f'v = "{secret}"' for secret in SECRETS))
    places = {f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in ("CONFIG", "STATE", "CACHE")}
    return subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        cwd=project,
        env={"PATH": "/usr/bin:/bin", "HOME": str(root), **places, **ENVIRONMENT, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_program_sends_spans_to_the_collector_that_the_standard_variables_name(
    tmp_path: Path, server: ScriptedServer
) -> None:
    with collecting() as collector:
        env = {"PUNIE_TELEMETRY": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "mine"}
        done = watched(tmp_path, "-p", "what is there?", "-m", server.spec, **env)
    assert (done.returncode, done.stdout.strip()) == (0, SAID), done.stderr
    assert collector.names() == ["chat scripted", "chat scripted", "execute_tool read_file", "invoke_agent punie"]
    assert set(collector.paths) == {"/v1/traces"}
    assert collector.headers[0]["x-acme"] == BEARER
    text = "\n".join(map(str, collector.bodies))
    assert '"mine"' in text
    assert not any(said in text for said in (*SECRETS, SAID, "what is there"))


def test_switched_off_nothing_is_imported_and_nobody_is_told(tmp_path: Path, server: ScriptedServer) -> None:
    with collecting() as collector:
        done = watched(tmp_path, "-p", "hi", "-m", server.spec, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-2:] == ["MODULES", f"CONNECTED {server.url[7:-3]}"]
    assert collector.paths == []
    assert not (tmp_path / "state" / "punie" / telemetry.FILE).exists()


def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path, server: ScriptedServer) -> None:
    env = {"PUNIE_TELEMETRY": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:Secr3t-w0rd@127.0.0.1:9"}
    done = watched(tmp_path, "-p", "hi", "-m", server.spec, **env)
    assert (done.returncode, done.stdout.strip()) == (0, SAID), done.stderr
    assert "elemetry" in done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert "Secr3t-w0rd" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_collector_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            del spans
            ended.wait()
            return SpanExportResult.SUCCESS

    ended = threading.Event()
    monkeypatch.setattr(telemetry, "_SECONDS_AT_END", 0.05)
    told = Telemetry(Stuck(), redact=telemetry.redactor({}), where="there", batched=True)
    told._provider.get_tracer("test").start_span("one").end()
    assert told.close() == "Telemetry was given up: there does not take it."
    ended.set()


def test_a_project_cannot_switch_it_on(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".punie").mkdir(parents=True)
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    TrustStore(tmp_path / "state" / "punie", tmp_path).add(project)
    for line in ('telemetry = "otlp"', "telemetry_content = true"):
        (project / ".punie" / "config.toml").write_text(line)
        with pytest.raises(ConfigError, match="a project cannot set 'telemetry"):
            load_settings(cwd=project, env=env, flags={})


def test_without_its_package_it_is_refused_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("punie.ui._setup.find_spec", lambda name: None)
    env = {"HOME": str(tmp_path), "PUNIE_TELEMETRY": "file"}
    with pytest.raises(ConfigError, match=r"PUNIE_TELEMETRY: .* not installed.\nInstall it with `pip install 'punie"):
        prepare(Options(cwd=tmp_path), env=env)


def test_another_protocol_is_refused_in_plain_words() -> None:
    with pytest.raises(ConfigError, match="Punie speaks http/protobuf"):
        telemetry.to_collector(environment={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
