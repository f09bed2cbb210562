"""OpenTelemetry spans of what an agent does, where a user has switched them on.

PydanticAI makes them: one for the run, one for each request to the model, one for each call of a tool. Here they are
redacted and handed to a collector or to a file. Importing this imports OpenTelemetry's SDK, the extra `otel`, so it is
imported only then. No provider of the whole process is set: what other libraries would tell stays with them.
"""

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Status
from opentelemetry.util.types import Attributes
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models import Model
from pydantic_ai.models.instrumented import InstrumentationSettings

from punie.agent._redacted import keys_of
from punie.backends import _keys
from punie.errors import ConfigError
from punie.redaction import Redactor

FILE = Path("telemetry") / "spans.jsonl"
"""Below the state directory."""

_MAX_FILE_BYTES = 20_000_000
_SECONDS_AT_END = 3.0
"""How long the end of the program waits for a collector."""
_CONTENT = ("gen_ai.tool.definitions",)
"""Told by PydanticAI without being asked: descriptions that MCP servers wrote, again with every request."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Telemetry:
    """Where the spans of this process go; `close` sends what is left.

    `content`: prompts, answers, arguments and results of tools too. Whatever is in a span passes `redact` first.
    """

    def __init__(
        self, exporter: SpanExporter, *, redact: Redactor, where: str, content: bool = False, batched: bool = False
    ) -> None:
        # What fails is counted and told at the end: the SDK's own complaints would be drawn into the chat.
        logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
        self._sink = _Redacted(exporter, redact, without=() if content else _CONTENT)
        self._where = where
        self._provider = TracerProvider(
            resource=_resource(), shutdown_on_exit=False, meter_provider=(meters := NoOpMeterProvider())
        )
        processor = BatchSpanProcessor(self._sink) if batched else SimpleSpanProcessor(self._sink)
        self._provider.add_span_processor(processor)
        self._settings = InstrumentationSettings(
            tracer_provider=self._provider,
            meter_provider=meters,
            include_content=content,
            include_binary_content=False,
            include_model_request_parameters=False,
        )

    def capability(self, model: Model) -> Instrumentation:
        """What makes an agent tell; the model's key is known as a secret from now on."""
        self._sink.redact = self._sink.redact.knowing(keys_of(model))
        return Instrumentation(self._settings)

    def close(self) -> str:
        """Send what is left, for a few seconds at most; what to tell the user if something was lost."""
        ending = threading.Thread(target=self._provider.shutdown, name="punie-telemetry", daemon=True)
        ending.start()
        ending.join(_SECONDS_AT_END)
        lost = self._sink.lost
        if ending.is_alive():
            return f"Telemetry was given up: {self._where} does not take it."
        return f"Telemetry: {lost} span{'s' * (lost != 1)} could not be handed to {self._where}." if lost else ""


def to_file(state_dir: Path, *, environment: Mapping[str, str], content: bool = False) -> Telemetry:
    """JSON lines in the state directory, one span a line, for the user alone; the last 20 to 40 MB stay."""
    file = state_dir / FILE
    return Telemetry(_File(file), redact=redactor(environment), where=str(file), content=content)


def to_collector(*, environment: Mapping[str, str], content: bool = False) -> Telemetry:
    """OTLP over HTTP, to where the standard `OTEL_*` variables say. ConfigError for a protocol that is not spoken."""
    spoken = "http/protobuf"
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), spoken)
    if protocol != spoken:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; Punie speaks {spoken}.", f"Set it to {spoken}, or unset it."
        )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    address = next((environment[name] for name in _ENDPOINTS if environment.get(name)), "http://localhost:4318")
    exporter = OTLPSpanExporter(meter_provider=NoOpMeterProvider())
    where = urlsplit(address).netloc.rpartition("@")[2]
    return Telemetry(exporter, redact=redactor(environment), where=where, content=content, batched=True)


def redactor(environment: Mapping[str, str]) -> Redactor:
    """What knows the collector's own headers as secrets too."""
    return Redactor(environment, keys=_keys.of_collector(environment))


def _resource() -> Resource:
    """The service is called punie, unless the user's own variables give it another name."""
    from punie import __version__

    found = Resource.create({SERVICE_VERSION: __version__})
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return found.merge(Resource({SERVICE_NAME: "punie"}))
    return found


class _Redacted(SpanExporter):
    """Hands spans on without secrets, and counts those that were not taken."""

    def __init__(self, exporter: SpanExporter, redact: Redactor, *, without: Sequence[str]) -> None:
        self._exporter = exporter
        self._without = without
        self.redact = redact
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand on copies: a span that was given away stays as it was for who made it."""
        result = self._exporter.export([self._copied(span) for span in spans])
        if result is not SpanExportResult.SUCCESS:
            self.lost += len(spans)
        return result

    def shutdown(self) -> None:
        """Nothing more will come."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Wait until what was handed on is through."""
        return self._exporter.force_flush(timeout_millis)

    def _copied(self, span: ReadableSpan) -> ReadableSpan:
        resource = Resource(self._attributes(span.resource.attributes) or {}, span.resource.schema_url)
        said = span.status.description
        return ReadableSpan(
            name=self.redact(span.name),
            context=span.context,
            parent=span.parent,
            resource=resource,
            attributes=self._attributes(span.attributes),
            events=[
                Event(self.redact(event.name), self._attributes(event.attributes), event.timestamp)
                for event in span.events
            ],
            links=[Link(link.context, self._attributes(link.attributes)) for link in span.links],
            kind=span.kind,
            status=Status(span.status.status_code, self.redact(said) if said else said),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _attributes(self, attributes: Attributes) -> dict[str, str | bool | int | float | Sequence[str]] | None:
        """Messages and arguments are JSON in one string: they are looked at as what they are."""
        if attributes is None:
            return None
        safe = {name: self._of_json(value) for name, value in attributes.items() if name not in self._without}
        return cast("dict[str, str | bool | int | float | Sequence[str]]", self.redact.of(safe))

    def _of_json(self, value: object) -> object:
        if isinstance(value, str) and value[:1] in {"{", "["}:
            with suppress(ValueError):
                return json.dumps(self.redact.of(json.loads(value)), ensure_ascii=False)
        return value


class _File(SpanExporter):
    """One JSON object a line; the file before the last full one is deleted."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append them; a disk that is full is no reason to end a turn."""
        lines = "".join(span.to_json(indent=None) + "\n" for span in spans).encode("utf-8", "backslashreplace")
        try:
            self._append(lines)
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def _append(self, lines: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(self._file, flags, 0o600), "ab", buffering=0) as stream:
            full = stream.write(lines) and stream.tell() > _MAX_FILE_BYTES
        if full:
            self._file.replace(self._file.with_suffix(".old.jsonl"))
