"""Messages of JSON-RPC, one a line, on two descriptors: what comes in is checked before the SDK takes it for one.

A thread serves each descriptor, so that neither a client that stops reading nor a file in place of a pipe holds up
anything else.
"""

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from queue import SimpleQueue

from punie.ui._clean import one_line

MAX_LINE = 16_000_000
"""Bytes of one message."""
_WAITING = 8
"""Lines that are read ahead."""
_CHUNK = 65_536
SECONDS_TO_FLUSH = 5.0
"""How long a client may take to read the last messages."""

PARSE_ERROR, INVALID_REQUEST, INVALID_PARAMS, FAILED = -32700, -32600, -32602, -32603

Message = dict[str, object]
_Outgoing = tuple[bytes, "asyncio.Future[None]"]


class Lines:
    """The transport that the SDK asks for. `note` gets a line about each message that nobody can be told of.

    What is wrong as JSON-RPC is answered here. A client that is gone ends what comes in, and nothing is raised for it.
    """

    def __init__(self, source: int, sink: int, *, note: Callable[[str], None]) -> None:
        self._source = source
        self._sink = sink
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(_WAITING)
        self._outgoing: SimpleQueue[_Outgoing] = SimpleQueue()
        self._waiting: set[asyncio.Future[None]] = set()
        """Of messages that are not written yet, what their senders wait for."""
        self._ending = False
        self._gone = False
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._answered.set()
        threading.Thread(target=self._read, name="punie-acp-in", daemon=True).start()
        threading.Thread(target=self._write, name="punie-acp-out", daemon=True).start()

    def end(self) -> None:
        """Take nothing more in, as if the client had closed its end; nobody waits any more for it to read."""
        self._ending = True
        for written in tuple(self._waiting):
            _settle(written)
        self._incoming.put_nowait(None)

    async def answered(self, seconds: float) -> None:
        """Wait until every request has its answer, or for so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), seconds)

    # --- what the SDK calls ---

    async def receive(self) -> Message | None:
        """The next message that is one; None at the end."""
        while (line := await self._incoming.get()) is not None:
            self._room.release()
            message = await self._checked(line)
            if message is not None:
                if "method" in message and "id" in message:
                    self._unanswered += 1
                    self._answered.clear()
                return message
        return None

    async def send(self, message: Message) -> None:
        """Write a message; returns when it is written, or at once when the client is leaving."""
        if "method" not in message:
            self._unanswered -= 1
        written = self._put(json.dumps(told(message), default=str).encode() + b"\n")
        if not self._ending:
            self._waiting.add(written)
            try:
                await written
            finally:
                self._waiting.discard(written)
        if self._unanswered <= 0:
            self._answered.set()

    async def close(self) -> None:
        """Write what waits to be written, if anybody reads it. Both threads end with the process."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._put(b""), SECONDS_TO_FLUSH)

    def _put(self, data: bytes) -> "asyncio.Future[None]":
        written = self._loop.create_future()
        self._outgoing.put((data, written))
        return written

    # --- what is no message ---

    async def _checked(self, line: bytes) -> Message | None:
        """The message on a line; None if it is none, which is answered where the protocol has an answer for it."""
        if line == _TOO_LONG:
            return await self._refuse(INVALID_REQUEST, f"A message has at most {MAX_LINE // 1_000_000} MB.")
        if not line.strip():
            return None
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return await self._refuse(PARSE_ERROR, "That line is no JSON.")
        if not isinstance(message, dict):
            return await self._refuse(INVALID_REQUEST, "A message is one JSON object a line; there are no batches.")
        if "method" not in message:
            return await self._response(message)
        return await self._request(message) if "id" in message else self._notification(message)

    async def _request(self, message: Message) -> Message | None:
        asked = message["id"]
        if not (asked is None or _is_id(asked)):
            return await self._refuse(INVALID_REQUEST, "An id is a string or a number.")
        if not isinstance(message["method"], str):
            return await self._refuse(INVALID_REQUEST, "A method is a string.", asked=asked)
        return _without_meta(message)

    def _notification(self, message: Message) -> Message | None:
        """The one there is. Nobody may answer a notification, so all others are only noted."""
        params = message.get("params")
        if (
            message["method"] == "session/cancel"
            and isinstance(params, dict)
            and isinstance(params.get("sessionId"), str)
        ):
            return _without_meta(message)
        self._note(f"a notification is passed over: {one_line(str(message['method']), width=60)}")
        return None

    async def _response(self, message: Message) -> Message | None:
        if not ("result" in message or "error" in message):
            asked = message.get("id")
            return await self._refuse(INVALID_REQUEST, "There is no method.", asked=asked if _is_id(asked) else None)
        if not _is_id(message.get("id")):
            self._note("an answer without an id is passed over")
            return None
        error = message.get("error")
        return message if error is None or isinstance(error, dict) else {**message, "error": {"message": str(error)}}

    async def _refuse(self, code: int, text: str, *, asked: object = None) -> None:
        self._unanswered += 1
        await self.send({"jsonrpc": "2.0", "id": asked, "error": {"code": code, "message": text}})

    # --- threads ---

    def _read(self) -> None:
        with suppress(OSError):
            for line in lines_in(lambda: os.read(self._source, _CHUNK)):
                self._room.acquire()
                self._in_loop(lambda line=line: self._incoming.put_nowait(line))
        self._in_loop(self.end)

    def _write(self) -> None:
        while True:
            data, written = self._outgoing.get()
            try:
                while data and not self._gone:
                    data = data[os.write(self._sink, data) :]
            except OSError:
                self._gone = True
                self._in_loop(self.end)
            self._in_loop(lambda written=written: _settle(written))

    def _in_loop(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the process is about to end
            self._loop.call_soon_threadsafe(work)


def _settle(written: "asyncio.Future[None]") -> None:
    if not written.done():
        written.set_result(None)


_TOO_LONG = b"\0"
"""Stands for a line that was too long to keep; it is no JSON."""


def lines_in(read: Callable[[], bytes], *, most: int = MAX_LINE) -> Iterator[bytes]:
    """The lines of a stream without their ends; a single null byte for each that has more bytes than `most`."""
    line, dropping = bytearray(), False
    while chunk := read():
        *ended, begun = chunk.split(b"\n")
        for piece in ended:
            line += piece
            yield _TOO_LONG if dropping or len(line) > most else bytes(line)
            line, dropping = bytearray(), False
        line += begun
        if len(line) > most:
            line, dropping = bytearray(), True
    if line or dropping:
        yield _TOO_LONG if dropping else bytes(line)


def told(message: Message) -> Message:
    """A message as it is sent: of parameters that do not fit, where and why, and not all that was sent once more."""
    error = message.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    if not (isinstance(error, dict) and isinstance(data, dict) and isinstance(data.get("errors"), list)):
        return message
    wrong = [_place_of(each) for each in data["errors"][:5] if isinstance(each, Mapping)]
    return {**message, "error": {**error, "data": {"details": "; ".join(wrong)}}}


def _place_of(error: Mapping[str, object]) -> str:
    place = error.get("loc")
    where = ".".join(map(str, place)) if isinstance(place, tuple | list) else ""
    return one_line(f"{where or 'params'}: {error.get('msg')}", width=200)


def _is_id(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _without_meta(message: Message) -> Message:
    """The SDK would hand on what stands in `_meta` in place of the parameters themselves; Punie reads none of it."""
    params = message.get("params")
    if not isinstance(params, dict):
        return message
    return {**message, "params": {key: value for key, value in params.items() if key != "_meta"}}
