"""A model hub on the loopback address with one repository in it, which can be made to misbehave."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789" * 4
REPOSITORY = "somebody/Tiny"


@dataclass
class Hub:
    """What the hub has, how it behaves, and what it was asked for."""

    files: Mapping[str, bytes]
    status: int = 200
    """Of everything that is asked for."""
    cut_after: int | None = None
    """Drop the connection after so many bytes of a file, every time until it is None again."""
    lies_about_size: int = 0
    corrupt: bool = False
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Path, and range, of every request for a file."""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if hub.status != 200:
                _send(self, b"{}", status=hub.status)
            elif self.path.startswith(f"/api/models/{REPOSITORY}/revision/"):
                _send(self, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": []}).encode())
            elif self.path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
                _send(self, json.dumps([_entry(name, hub) for name in hub.files]).encode())
            elif self.path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
                _send_file(self, hub)
            else:
                _send(self, b"{}", status=404)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(name: str, hub: Hub) -> dict[str, object]:
    """As the hub lists it: large files with the checksum of their content."""
    content = hub.files[name]
    size = len(content) + hub.lies_about_size
    entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": "0" * 40}
    if not name.endswith(".json"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}
    return entry


def _send_file(handler: BaseHTTPRequestHandler, hub: Hub) -> None:
    wanted = handler.headers.get("Range")
    name = handler.path.split(f"{COMMIT}/", 1)[1]
    hub.asked.append(f"{name} {wanted or ''}".strip())
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    content = hub.files[name]
    rest = (b"\0" * len(content) if hub.corrupt else content)[start:]
    _send(handler, rest, status=(206 if wanted else 200) if rest else 416, cut=hub.cut_after)


def _send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, cut: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut])
    handler.wfile.flush()
    if cut is not None:
        handler.close_connection = True
