"""What keeps a service from answering, as errors that say what happened and what to do."""

import json
import socket
import ssl
from ipaddress import ip_address
from typing import TypeVar

import httpx2

from punie.backends import _keys
from punie.errors import ModelError, NetworkRefused, PunieError

E = TypeVar("E", bound=BaseException)
_GO_ON = "What was done so far is kept: ask to go on."


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def address(url: httpx2.URL) -> str:
    """The server without path, user or password."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}"


def reason(found: httpx2.Response | httpx2.TransportError, url: httpx2.URL) -> str:
    """Why a request is to be sent again, in a few words."""
    if isinstance(found, httpx2.TransportError):
        return f"{address(url)} does not answer"
    match found.status_code:
        case 429:
            return f"{address(url)} wants fewer requests (status 429)"
        case 503 | 529:
            return f"{address(url)} is busy (status {found.status_code})"
        case status:
            return f"{address(url)} failed (status {status})"


def unreachable(error: httpx2.TransportError, url: httpx2.URL, *, connect_s: float, silent_s: float) -> PunieError:
    """No answer came, not even headers."""
    if (tls := tls_error(error)) is not None:
        return _tls(tls, url)
    if isinstance(error, httpx2.ProxyError):
        return _no_answer(url, f"the proxy refused: {error}", "Check HTTP_PROXY, HTTPS_PROXY and NO_PROXY.")
    if isinstance(error, httpx2.ReadTimeout):
        return silent(url, silent_s)
    if isinstance(error, httpx2.ConnectTimeout):
        return _no_answer(url, f"no connection within {connect_s:g} s", "Check the address, the network and proxies.")
    if _caused_by(error, socket.gaierror) is not None:
        return _no_answer(url, "its name is unknown", "Check the network, and the address if you gave one after @.")
    if isinstance(error, httpx2.ConnectError):
        return _no_answer(
            url, "nothing listens there", "Start the server, or check the address after @ and the network."
        )
    return _no_answer(url, "it closed the connection", "Check that the server runs, and its log.")


def silent(url: httpx2.URL, seconds: float) -> NetworkRefused:
    """The server is there but sends nothing."""
    return _no_answer(url, f"nothing came for {seconds:g} s", f"See what the server does. {_GO_ON}")


def broken_off(url: httpx2.URL) -> NetworkRefused:
    """The answer ended in the middle; what came of it is not used."""
    return _no_answer(url, "the connection broke in the middle of it", _GO_ON)


def _no_answer(url: httpx2.URL, why: str, next_step: str) -> NetworkRefused:
    return NetworkRefused(f"No answer from the server {address(url)}: {why}.", next_step)


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """The TLS failure behind an error, if there is one."""
    return _caused_by(error, ssl.SSLError)


def _caused_by(error: BaseException, kind: type[E]) -> E | None:
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def _tls(error: ssl.SSLError, url: httpx2.URL) -> NetworkRefused:
    if isinstance(error, ssl.SSLCertVerificationError):
        return NetworkRefused(
            f"The certificate of {address(url)} is not trusted: {error.verify_message}.",
            "Use the name that is in the certificate, or set SSL_CERT_FILE to its authority's certificate.",
        )
    why = (error.reason or "the handshake failed").replace("_", " ").lower()
    return NetworkRefused(f"{address(url)} does not speak TLS: {why}.", "If it is a plain server, write http://.")


async def checked(response: httpx2.Response, *, key_name: str) -> httpx2.Response:
    """The response, a refusal read and without the key. Raises ModelError where the SDK would not understand it."""
    if response.is_redirect:
        await response.aclose()
        target = response.headers.get("location", "another address")
        raise ModelError(
            f"{address(response.request.url)} sends requests on to {target}.", "Name that address instead."
        )
    if response.is_success:
        await _check_type(response)
        return response
    refusal = _without_key(response, await response.aread())
    if refusal.status_code in {401, 403}:
        raise _wrong_key(refusal, key_name)
    return refusal


async def _check_type(response: httpx2.Response) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in {"text/html", "application/xhtml+xml"}:
        return
    await response.aclose()
    raise ModelError(
        f"{response.request.url} answered with a web page instead of JSON.",
        "Check the address after @: it usually ends in /v1.",
    )


def _wrong_key(response: httpx2.Response, key_name: str) -> ModelError:
    said, url = said_in(response.content), response.request.url
    why = f" (status {response.status_code}){said and ': '}{said}"
    if response.request.headers.get("authorization") != f"Bearer {_keys.NO_KEY}":
        return ModelError(f"The server refused the key{why}", f"It needs another one. {_keys.how_to_set(key_name)}")
    if url.scheme == "http" and not is_loopback(url.host):
        return ModelError(f"{address(url)} wants a key{why}", "Write https://: a key is not sent in the clear.")
    return ModelError(f"{address(url)} wants a key{why}", _keys.how_to_set(key_name))


def said_in(body: bytes) -> str:
    """The message of an error body, on one line; empty if there is none that a person could use."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    while isinstance(value, dict):
        value = next((value[key] for key in ("error", "message", "detail") if key in value), "")
    return " ".join(value.split())[:300] if isinstance(value, str) else ""


def _without_key(response: httpx2.Response, body: bytes) -> httpx2.Response:
    """Some servers repeat the key they refuse; it must not reach a screen or a session file."""
    sent = response.request.headers
    for secret in (sent.get("authorization", "").removeprefix("Bearer "), sent.get("x-api-key", "")):
        if len(secret) > 3:
            body = body.replace(secret.encode(), b"[key]")
    kept = {
        name: value for name, value in response.headers.items() if name not in {"content-encoding", "content-length"}
    }
    return httpx2.Response(response.status_code, headers=kept, content=body, request=response.request)
