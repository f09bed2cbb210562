"""The HTTP client of every service: it waits with patience, asks again before an answer began, and says why not.

The retries of the SDKs are switched off in favour of these: an SDK waits without a word. `pydantic_ai.retries` is not
used because it needs two more packages and, as a transport, switches off the proxies of the environment.
Nothing is asked again once a byte of the body was handed on, so no call of a tool is ever read twice.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
from pydantic_ai.exceptions import ModelHTTPError

from punie.backends import _refusals
from punie.backends._notices import tell
from punie.errors import PunieError

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_QUOTA = (b"insufficient_quota", b"billing_hard_limit", b"credit_balance")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how often to ask again."""

    connect_s: float = 5
    first_byte_s: float = 600
    """A local server may read a long prompt for minutes before it says a word."""
    idle_s: float = 120
    """Between two pieces of an answer; services send pings meanwhile."""
    retries: int = 4
    wait_s: float = 1
    """Before the first retry; doubled before each further one unless the server names a time."""
    question_s: float = 5
    """For what a server may tell about itself."""
    longest_wait_s: float = 60
    """A server that wants more is not waited for."""


@dataclass(frozen=True)
class Reply:
    """A parsed body, and what the server calls itself."""

    json: object
    server: str


class Dialect(Protocol):
    """Another format that a server is better asked in."""

    def asked(self, request: httpx2.Request) -> httpx2.Request:
        """What is sent in place of a request."""
        ...

    def answered(self, response: httpx2.Response) -> httpx2.Response:
        """What is read in place of its answer."""
        ...


class _Connections(httpx2.AsyncBaseTransport):
    """Connections of the running event loop: one that `asyncio.run` closed takes its connections with it."""

    def __init__(self, *, local: bool) -> None:
        self._local = local
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: httpx2.AsyncClient | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send through a client, for it finds the proxies and certificates of the environment."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            # To this machine a new connection costs nothing, and none is left open behind a program's back.
            kept = 0 if self._local else 10
            limits = httpx2.Limits(max_keepalive_connections=kept)
            self._client, self._loop = httpx2.AsyncClient(trust_env=not self._local, limits=limits), loop
        return await self._client.send(request, stream=True, follow_redirects=False)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class Client(httpx2.AsyncClient):
    """An HTTP client that asks again while nothing of an answer was seen, and tells the user that it waits.

    Proxies and certificates come from the user's environment, and never for this machine's own servers. Raises
    PunieError for whatever keeps an answer from coming; an answer with an error status is the caller's to read.
    """

    dialect: Dialect | None = None

    def __init__(
        self,
        *,
        local: bool,
        key_name: str,
        patience: Patience | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._patience = patience or Patience()
        self._key_name = key_name
        self._answered = False
        waits = self._patience
        timeout = httpx2.Timeout(waits.first_byte_s, connect=waits.connect_s, pool=waits.connect_s)
        super().__init__(timeout=timeout, trust_env=False, transport=transport or _Connections(local=local))

    async def send(
        self,
        request: httpx2.Request,
        *,
        stream: bool = False,
        auth: Any = httpx2.USE_CLIENT_DEFAULT,
        follow_redirects: Any = False,
    ) -> httpx2.Response:
        """Send a request, again and again within reason. A redirect is refused: the key would travel with it."""
        del follow_redirects
        # The SDKs bring their own limits, the same for connecting and for answering.
        request.extensions = {**request.extensions, "timeout": self.timeout.as_dict()}
        if self.dialect:
            request = self.dialect.asked(request)
        response = await self._answer(request, auth)
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - an async client gives no other
        response.stream = _Watched(response.stream, url=request.url, patience=self._patience)
        response = await _refusals.checked(response, key_name=self._key_name)
        if self.dialect:
            response = self.dialect.answered(response)
        if not stream:
            await response.aread()
        return response

    async def ask(self, method: str, url: str, *, key: str, body: object = None) -> Reply | None:
        """A reply in JSON, or None: for questions that a server need not understand. Never asks twice."""
        headers = {"authorization": f"Bearer {key}"}
        request = self.build_request(method, url, json=body, headers=headers, timeout=self._patience.question_s)
        try:
            response = await super().send(request, follow_redirects=False)
            if not response.is_success:
                return None
            return Reply(response.json(), response.headers.get("server", ""))
        except (httpx2.HTTPError, ValueError):
            return None

    async def _answer(self, request: httpx2.Request, auth: Any) -> httpx2.Response:
        tried = 0
        while True:
            try:
                found = await super().send(request, stream=True, auth=auth, follow_redirects=False)
                self._answered = True
            except httpx2.TransportError as error:
                found = error
            pause = await self._pause(found, tried)
            if pause is not None:
                if isinstance(found, httpx2.Response):
                    await found.aclose()
                await _count_down(_refusals.reason(found, request.url), pause)
                tried += 1
            elif isinstance(found, httpx2.Response):
                return found
            else:
                raise self._refused(found, request.url) from found

    def _refused(self, error: httpx2.TransportError, url: httpx2.URL) -> PunieError:
        return _refusals.unreachable(
            error, url, connect_s=self._patience.connect_s, silent_s=self._patience.first_byte_s
        )

    async def _pause(self, found: httpx2.Response | httpx2.TransportError, tried: int) -> float | None:
        """Seconds until the request is sent again; None where that would not help."""
        doubled = self._patience.wait_s * 2**tried
        if isinstance(found, httpx2.Response):
            asked = ModelHTTPError(found.status_code, "", headers=found.headers).retry_after
            if not await _is_passing(found) or (asked or 0) > self._patience.longest_wait_s:
                return None
            # The same 500 again is a mistake, not a bad moment.
            limit = min(2, self._patience.retries) if found.status_code == 500 else self._patience.retries
            return (doubled if asked is None else asked) if tried < limit else None
        if isinstance(found, httpx2.ReadTimeout | httpx2.ProxyError | httpx2.UnsupportedProtocol):
            return None
        # A server that answered before is being started again; one that never did is more likely misspelled.
        limit = self._patience.retries if self._answered else min(1, self._patience.retries)
        return doubled if tried < limit and _refusals.tls_error(found) is None else None


async def _is_passing(response: httpx2.Response) -> bool:
    """Whether the same request may be answered later."""
    should = response.headers.get("x-should-retry")
    if should in {"true", "false"}:
        return should == "true"
    if response.status_code == 429:
        said = await response.aread()
        return not any(word in said for word in _QUOTA)
    return response.status_code in _AGAIN


async def _count_down(reason: str, seconds: float) -> None:
    """Wait, and say so every ten seconds."""
    tell(f"{reason}; asking again in {math.ceil(seconds)} s.")
    while seconds > 10:
        step = seconds % 10 or 10
        await asyncio.sleep(step)
        seconds -= step
        tell(f"Asking again in {math.ceil(seconds)} s.")
    await asyncio.sleep(seconds)


class _Watched(httpx2.AsyncByteStream):
    """A body that must not fall silent; a broken one ends in NetworkRefused."""

    def __init__(self, body: httpx2.AsyncByteStream, *, url: httpx2.URL, patience: Patience) -> None:
        self._body = body
        self._url = url
        self._patience = patience

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._body)
        limit = self._patience.first_byte_s
        while True:
            try:
                async with asyncio.timeout(limit):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _refusals.silent(self._url, limit) from error
            except httpx2.TransportError as error:
                raise _refusals.broken_off(self._url) from error
            yield piece
            limit = self._patience.idle_s

    async def aclose(self) -> None:
        """Close the connection."""
        await self._body.aclose()
