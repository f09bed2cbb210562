"""A package index on the loopback address with one wheel in it, which can be made to misbehave."""

import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread

from punie.backends.catalogue import Entry, PackagedFile

CONTENT = bytes(range(256)) * 4000
MEMBER = "punie_weights/tiny.gguf"
WHEEL = "punie_weights-1.0-py3-none-any.whl"
METADATA = b"Metadata-Version: 2.1\nName: punie-weights\nVersion: 1.0\n"


def wheel(content: bytes = CONTENT) -> bytes:
    """A wheel, uncompressed, that holds the weights."""
    buffer = BytesIO()
    info = "punie_weights-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), content)
        archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), METADATA)
        archive.writestr(
            zipfile.ZipInfo(f"{info}/WHEEL"), "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return buffer.getvalue()


def model(content: bytes = CONTENT) -> Entry:
    """The catalogue entry of a model whose weights are in the wheel."""
    file = PackagedFile(
        name="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        wheel_sha256=hashlib.sha256(wheel(content)).hexdigest(),
        member=MEMBER,
    )
    return Entry(
        name="tiny",
        title="Tiny",
        licence="none",
        parameters=1,
        size_bytes=len(content),
        memory_bytes=1,
        context_window=1,
        engines=("llamacpp",),
        note="",
        package="punie-weights==1.0",
        file=file,
    )


@dataclass
class Index:
    """What the server has, how it behaves, and what it was asked for."""

    wheel: bytes
    cut_after: int | None = None
    """Drop the connection after so many bytes, once."""
    status: int = 200
    """Of the file, not of the index."""
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of every request for the file."""


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                _send_file(self, index)
            elif self.path.endswith(".metadata"):
                _send(self, METADATA, 200, "text/plain")
            else:
                _send(self, _page(), 200, "text/html")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _page() -> bytes:
    """As large indexes do it: the metadata stands on its own, so that pip asks for the wheel only to keep it."""
    digest = hashlib.sha256(METADATA).hexdigest()
    return f'<a href="/files/{WHEEL}" data-core-metadata="sha256={digest}">{WHEEL}</a>'.encode()


def _send_file(handler: BaseHTTPRequestHandler, index: Index) -> None:
    wanted = handler.headers.get("Range")
    index.ranges.append(wanted)
    if index.status != 200:
        _send(handler, b"no", index.status, "text/plain")
        return
    start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
    rest = index.wheel[start:]
    if not rest:
        _send(handler, b"", 416, "text/plain")
        return
    cut, index.cut_after = index.cut_after, None
    _send(handler, rest, 206 if wanted else 200, "application/octet-stream", cut=cut)


def _send(handler: BaseHTTPRequestHandler, body: bytes, status: int, kind: str, *, cut: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:cut])
    handler.wfile.flush()
    if cut is not None:
        handler.close_connection = True
