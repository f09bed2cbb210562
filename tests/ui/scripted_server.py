"""A model on a loopback server that speaks the OpenAI chat format and says what its script says."""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Call:
    """A tool call in a script."""

    name: str
    arguments: Mapping[str, object]


_LONGEST_SILENCE = 120.0

Reply = Sequence["str | Call | float | threading.Event"]
"""Pieces of one reply; a number is a silence in seconds, an event one until it is set."""


@dataclass
class ScriptedServer:
    """Gives the next reply of its script to each request, the last one for ever."""

    script: list[Reply] = field(default_factory=list)
    requests: list[dict[str, object]] = field(default_factory=list)
    url: str = ""

    @property
    def spec(self) -> str:
        """What `--model` takes."""
        return f"openai:scripted@{self.url}"

    def next(self, request: dict[str, object]) -> Reply:
        self.requests.append(request)
        return self.script[min(len(self.requests), len(self.script)) - 1]


@contextmanager
def serving() -> Iterator[ScriptedServer]:
    """Run a server until the context ends; its script may be set at any time before it is asked."""
    scripted = ScriptedServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = scripted.next(body)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in events(reply):
                if isinstance(event, float):
                    time.sleep(event)
                elif isinstance(event, threading.Event):
                    event.wait(_LONGEST_SILENCE)
                elif not self.say(json.dumps(event)):
                    return
            self.say("[DONE]")

        def say(self, data: str) -> bool:
            try:
                self.wfile.write(f"data: {data}\n\n".encode())
                self.wfile.flush()
            except OSError:
                return False
            return True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
            del format, args

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    scripted.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield scripted
    http.shutdown()
    http.server_close()


def events(reply: Reply) -> Iterator[dict[str, object] | float | threading.Event]:
    calls = 0
    for piece in reply:
        if isinstance(piece, float | int):
            yield float(piece)
        elif isinstance(piece, threading.Event):
            yield piece
        elif isinstance(piece, str):
            yield chunk({"content": piece})
        else:
            function = {"name": piece.name, "arguments": json.dumps(piece.arguments)}
            call = {"index": calls, "id": f"call-{time.time_ns()}", "type": "function", "function": function}
            calls += 1
            yield chunk({"tool_calls": [call]})
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    yield {**chunk({}, finish="tool_calls" if calls else "stop"), "usage": usage}


def chunk(delta: dict[str, object], *, finish: str | None = None) -> dict[str, object]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish}],
    }
