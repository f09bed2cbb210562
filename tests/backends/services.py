"""Services played byte for byte: a real HTTP server on the loopback address, and a transport without sockets.

A `Play` is one answer: its bytes, silences in between, and where the connection breaks.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

SSE = "text/event-stream"
JSON = "application/json"


@dataclass(frozen=True)
class Play:
    """One answer. A number among the pieces is a silence in seconds; after `cut` bytes the connection breaks."""

    pieces: Sequence[bytes | float] = ()
    status: int = 200
    kind: str = SSE
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    ends: Literal["length", "chunked", "close"] = "chunked"
    """How the body's end is marked; with "close" a broken connection looks like the end."""

    @property
    def body(self) -> bytes:
        return b"".join(piece for piece in self.pieces if isinstance(piece, bytes))


def said(value: object, status: int = 200, **headers: str) -> Play:
    """A JSON answer."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Play((json.dumps(value).encode(),), status, JSON, named, ends="length")


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """Plays `told[path]` to what is asked at a path, and everything else one after the other, the last for ever."""

    plays: Sequence[Play]
    told: Mapping[str, Play] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    """Without what was answered from `told`."""
    port: int = 0
    server: asyncio.Server | None = None
    open: set[asyncio.Task[object]] = field(default_factory=set)
    """Connections that are being served."""

    async def stop(self) -> None:
        """Listen no longer."""
        assert self.server
        self.server.close()
        await self.server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def play(self, asked: Asked) -> Play:
        path = asked.path.partition("?")[0]
        if path in self.told:
            return self.told[path]
        if asked.method == "GET" or path in {"/api/show", "/api/version"}:
            return Play((b"404 page not found",), 404, "text/plain")
        self.asked.append(asked)
        return self.plays[min(len(self.asked), len(self.plays)) - 1]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, one request."""
        task = asyncio.current_task()
        assert task
        self.open.add(task)
        try:
            await self._serve(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            writer.close()
            self.open.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = await reader.readexactly(1)
        if begun == b"\x16":  # a TLS handshake, which servers that do not speak it take for a bad request
            writer.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n")
            return
        lines = (begun + await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = lines[0].split()
        await _write(writer, self.play(Asked(method, path, headers, body)))

    async def close(self) -> None:
        """Leave whoever is still served."""
        for task in tuple(self.open):
            task.cancel()
        await asyncio.gather(*self.open, return_exceptions=True)


async def _write(writer: asyncio.StreamWriter, play: Play) -> None:
    framing = {"length": f"content-length: {len(play.body)}", "chunked": "transfer-encoding: chunked"}
    lines = [f"HTTP/1.1 {play.status} Played", f"content-type: {play.kind}", "connection: close"]
    lines += [framing[play.ends]] if play.ends in framing else []
    lines += [f"{name}: {value}" for name, value in play.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    left = len(play.body) if play.cut is None else play.cut
    for piece in play.pieces:
        if isinstance(piece, float | int):
            await writer.drain()
            await asyncio.sleep(piece)
            continue
        part, left = piece[:left], left - len(piece[:left])
        if part:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if play.ends == "chunked" else part)
        if play.cut is not None and not left:
            await writer.drain()
            return
    if play.ends == "chunked":
        writer.write(b"0\r\n\r\n")
    await writer.drain()


@asynccontextmanager
async def serving(*plays: Play, told: Mapping[str, Play] | None = None, port: int = 0) -> AsyncIterator[Service]:
    """Run a service on a free port, or on a given one."""
    service = Service(plays, told or {})
    server = await asyncio.start_server(service.handle, "127.0.0.1", port)
    service.server, service.port = server, server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield service
        finally:
            await service.close()


class Replay(httpx2.AsyncBaseTransport):
    """Plays in this process, without sockets or silences: quick enough for every byte of a stream."""

    def __init__(self, *plays: Play) -> None:
        self.service = Service(plays)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The next play."""
        body = await request.aread()
        asked = Asked(request.method, request.url.raw_path.decode(), dict(request.headers), body)
        play = self.service.play(asked)
        stream = _Body(play)
        return httpx2.Response(play.status, headers={"content-type": play.kind, **play.headers}, stream=stream)


class _Body(httpx2.AsyncByteStream):
    def __init__(self, play: Play) -> None:
        self._play = play

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._play.body[: self._play.cut]
        if self._play.cut is not None and self._play.ends != "close":
            raise httpx2.ReadError("cut")


# --- streams as the services send them -------------------------------------------------------------------------------


def _events(*events: Mapping[str, object], named: bool) -> bytes:
    return b"".join(
        (f"event: {e['type']}\n" if named else "").encode() + f"data: {json.dumps(e)}\n\n".encode() for e in events
    )


def claude(
    *blocks: Mapping[str, object], stop: str = "end_turn", model: str = "claude-sonnet-5-5", **usage: int
) -> Play:
    """A streamed message of Anthropic's API. A block is as the API describes it, whole; it is sent in two deltas."""
    counts = {"input_tokens": 11, "output_tokens": 1, **usage}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    events: list[Mapping[str, object]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None, "usage": counts}},
        {"type": "ping"},
    ]
    for index, block in enumerate(blocks):
        events += _block(index, block)
    end = {"stop_reason": stop, "stop_sequence": None}
    events += [{"type": "message_delta", "delta": end, "usage": {"output_tokens": 7}}, {"type": "message_stop"}]
    return Play((_events(*events, named=True),))


def _block(index: int, block: Mapping[str, object]) -> list[Mapping[str, object]]:
    deltas: list[dict[str, object]]
    match block:
        case {"type": "text", "text": str() as text}:
            empty: dict[str, object] = {"type": "text", "text": ""}
            deltas = _halves("text_delta", "text", text)
        case {"type": "thinking", "thinking": str() as text, "signature": str() as signature}:
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            signed: dict[str, object] = {"type": "signature_delta", "signature": signature}
            deltas = [*_halves("thinking_delta", "thinking", text), signed]
        case {"type": "tool_use", "input": value}:
            empty, deltas = {**block, "input": {}}, _halves("input_json_delta", "partial_json", json.dumps(value))
        case _:
            raise ValueError(f"a block of a kind that is not played: {block}")
    start = {"type": "content_block_start", "index": index, "content_block": empty}
    middle = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
    return [start, *middle, {"type": "content_block_stop", "index": index}]


def _halves(kind: str, key: str, text: str) -> list[dict[str, object]]:
    half = len(text) // 2
    return [{"type": kind, key: part} for part in (text[:half], text[half:])]


def text(words: str) -> dict[str, object]:
    """A text block."""
    return {"type": "text", "text": words}


def tool_use(name: str, /, **arguments: object) -> dict[str, object]:
    """A call as a block."""
    return {"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}


def chat(
    words: str = "",
    *calls: tuple[str, Mapping[str, object]],
    finish: str | None = None,
    model: str = "some-model",
    usage: Mapping[str, object] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Play:
    """A streamed chat completion: text, then calls, each in two deltas."""
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    half = len(words) // 2
    deltas.extend({"content": part} for part in (words[:half], words[half:]) if part)
    for index, (name, arguments) in enumerate(calls):
        written = json.dumps(arguments)
        half = len(written) // 2
        head = {"name": name, "arguments": written[:half]}
        deltas.append({"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": head}]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": written[half:]}}]})
    base: dict[str, object] = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": model,
        **(extra or {}),
    }
    events: list[dict[str, object]] = []
    events += [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    reason = finish or ("tool_calls" if calls else "stop")
    events.append({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    counts = usage or {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    events.append({**base, "choices": [], "usage": counts})
    return Play((_events(*events, named=False) + b"data: [DONE]\n\n",))
