import asyncio
import gc
import ssl
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx2
import pytest
from pydantic_ai.models import override_allow_model_requests
from tests.backends.services import Play, chat, said, serving

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.events import Event, Notice
from punie.backends import _http, _keys
from punie.backends._http import Client, Patience
from punie.backends._notices import listening, tell
from punie.backends.openai import build
from punie.config import AgentConfig
from punie.errors import ModelError, NetworkRefused, PunieError
from punie.tools import Workspace

QUICK = Patience(connect_s=2, first_byte_s=2, idle_s=0.2, wait_s=0.001)
HELLO = chat("Hello.")


@pytest.fixture(autouse=True)
def _allow_requests() -> Iterator[None]:
    with override_allow_model_requests(True):
        yield


def client(patience: Patience = QUICK) -> Client:
    return Client(local=True, key_name="OPENAI_API_KEY", patience=patience)


async def turn(url: str, workspace: Path, *, http: Client | None = None) -> tuple[TurnEnded, list[str]]:
    """One turn against a server, and what the user was told meanwhile."""
    config = AgentConfig()
    agent = create_agent(config, model=build(f"some-model@{url}/v1", config, env={}, http=http or client()))
    events = [e async for e in run_turn(agent, "Hello?", workspace=Workspace(workspace), config=config)]
    end = events[-1]
    assert isinstance(end, TurnEnded)
    return end, [event.text for event in events if isinstance(event, Notice)]


# --- asking again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
async def test_a_server_that_recovers_is_asked_again_and_the_user_is_told(tmp_path: Path, status: int):
    async with serving(said({"error": {"message": "later"}}, status), HELLO) as service:
        end, told = await turn(service.url, tmp_path)
    assert (end.answer, len(service.asked)) == ("Hello.", 2)
    assert len(told) == 1
    assert f"status {status}" in told[0]
    assert told[0].endswith("; asking again in 1 s.")
    assert service.asked[0].body == service.asked[1].body


async def test_the_wait_is_the_one_the_server_asks_for(tmp_path: Path):
    busy = said({"error": {"message": "later"}}, 429, retry_after_ms="30")
    async with serving(busy, HELLO) as service:
        end, told = await turn(service.url, tmp_path, http=client(Patience(wait_s=600)))
    assert (end.answer, told[0].rpartition("; ")[2]) == ("Hello.", "asking again in 1 s.")


async def test_a_server_that_wants_more_time_than_one_waits_is_not_waited_for(tmp_path: Path):
    async with serving(said({"error": {"message": "later"}}, 429, retry_after="3600")) as service:
        end, told = await turn(service.url, tmp_path)
    assert (len(service.asked), told) == (1, [])
    assert end.error
    assert "It asks to wait 3600 s." in end.error


async def test_what_will_not_pass_is_not_asked_again(tmp_path: Path):
    quota = said({"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}, 429)
    async with serving(quota) as service:
        end, _ = await turn(service.url, tmp_path)
        assert len(service.asked) == 1
    assert end.error
    assert end.error.startswith("The account's quota is used up: some-model, status 429: You exceeded your quota.")
    async with serving(said({"error": {"message": "no"}}, 503, x_should_retry="false")) as service:
        await turn(service.url, tmp_path)
        assert len(service.asked) == 1


async def test_a_long_wait_is_counted_down_and_can_be_broken_off(monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(_http.asyncio, "sleep", sleep)
    with listening(told.append):
        await _http._count_down("Busy", 32)
    assert told == ["Busy; asking again in 32 s.", *(f"Asking again in {s} s." for s in (30, 20, 10))]
    assert sum(slept) == 32


async def test_cancelling_ends_a_wait_at_once(tmp_path: Path):
    async with serving(said({}, 429, retry_after="30")) as service:
        waiting = asyncio.create_task(turn(service.url, tmp_path, http=client(Patience())))
        while not service.asked:  # noqa: ASYNC110 - the server is not told who waits for it
            await asyncio.sleep(0.01)
        waiting.cancel()
        started = asyncio.get_running_loop().time()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert asyncio.get_running_loop().time() - started < 1


async def test_a_server_that_is_started_again_is_waited_for(tmp_path: Path):
    http, config = client(Patience(wait_s=0.1, retries=6)), AgentConfig()
    told: list[str] = []
    events: list[Event] = []
    async with serving(HELLO) as service, AsyncExitStack() as again:
        agent = create_agent(config, model=build(f"some-model@{service.url}/v1", config, env={}, http=http))
        _ = [e async for e in run_turn(agent, "Hello?", workspace=Workspace(tmp_path), config=config)]
        await service.stop()
        async for event in run_turn(agent, "And now?", workspace=Workspace(tmp_path), config=config):
            events.append(event)
            if isinstance(event, Notice) and not told:
                told.append(event.text)
                await again.enter_async_context(serving(HELLO, port=service.port))
    assert isinstance(events[-1], TurnEnded)
    assert events[-1].answer == "Hello."
    assert told == [f"{service.url} does not answer; asking again in 1 s."]


# --- what keeps an answer from coming --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("play", "error", "step"),
    [
        (Play((b"<html>Welcome</html>",), kind="text/html"), "answered with a web page instead of JSON.", "/v1"),
        (
            Play((b"<html>no</html>",), 404, "text/html"),
            "does not know the model: some-model, status 404: a web",
            "name",
        ),
        (
            said({"error": "no such model"}, 404),
            "The server does not know the model: some-model, status 404: no",
            "name",
        ),
        (Play(status=302, headers={"location": "https://x.example/"}), "sends requests on to https://x.exa", "instead"),
        (Play((b"data: ", 1.0, b"{}")), "nothing came for 0.2 s.", "go on"),
        (Play((HELLO.body,), cut=200), "the connection broke in the middle of it.", "go on"),
        (Play((HELLO.body,), cut=200, ends="close"), "the connection broke in the middle of it.", "go on"),
        (Play((HELLO.body,), cut=len(chat().body) // 4, ends="length"), "the connection broke in the middle", "go on"),
        (said({"error": {"message": "bad key"}}, 401), "wants a key (status 401): bad key", "OPENAI_API_KEY"),
        (said({"error": {"message": "boom"}}, 400), "The model failed: some-model, status 400: boom", "doctor"),
    ],
)
async def test_a_refusal_says_why_and_what_to_do(tmp_path: Path, play: Play, error: str, step: str):
    async with serving(play) as service:
        end, _ = await turn(service.url, tmp_path, http=client(Patience(first_byte_s=2, idle_s=0.2, retries=0)))
    assert end.exit_code == 1
    cause, next_step = (end.error or "").splitlines()[0], (end.error or "").splitlines()[1:]
    assert error in cause, end.error
    assert step in " ".join(next_step), end.error
    assert len(next_step) in (1, 2)


OVERFLOWS = [
    {
        "error": {
            "code": 400,
            "type": "exceed_context_size_error",
            "message": "request (9 tokens) exceeds the available",
        }
    },
    {"error": "The number of tokens to keep from the initial prompt is greater than the context length."},
    {"error": {"message": "This model's maximum context length is 4096 tokens.", "type": "BadRequestError"}},
    {"error": {"message": "too long", "code": "context_length_exceeded"}},
]


@pytest.mark.parametrize("body", OVERFLOWS, ids=["llama.cpp", "LM Studio", "vLLM", "OpenAI"])
async def test_a_prompt_that_does_not_fit_is_told_apart(tmp_path: Path, body: object):
    async with serving(said(body, 400)) as service:
        end, _ = await turn(service.url, tmp_path)
    assert end.error
    assert end.error.startswith("The conversation is too long: some-model, status 400: "), end.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (httpx2.ConnectTimeout("t"), "no connection within 5 s"),
        (httpx2.ReadTimeout("t"), "nothing came for 9 s"),
        (httpx2.ProxyError("407 Proxy Authentication Required"), "the proxy refused: 407"),
        (httpx2.RemoteProtocolError("disconnected"), "it closed the connection"),
    ],
)
def test_every_kind_of_failure_has_its_words(error: httpx2.TransportError, says: str):
    url = httpx2.URL("https://user:secret@models.example/v1")
    found = _http._refusals.unreachable(error, url, connect_s=5, silent_s=9)
    assert isinstance(found, NetworkRefused)
    assert says in found.cause
    assert "https://models.example" in found.cause
    assert "secret" not in str(found)


async def test_a_server_without_tls_is_named(tmp_path: Path):
    async with serving(HELLO) as service:
        end, told = await turn(service.url.replace("http:", "https:"), tmp_path)
    assert end.error
    assert "does not speak TLS" in end.error
    assert "http://" in end.error.splitlines()[1]
    assert told == []


def test_an_untrusted_certificate_is_named():
    error = httpx2.ConnectError("x")
    error.__cause__ = untrusted = ssl.SSLCertVerificationError(1, "failed")
    untrusted.verify_message = "self-signed certificate"
    found = _http._refusals.unreachable(error, httpx2.URL("https://models.example"), connect_s=1, silent_s=1)
    assert found.cause == "The certificate of https://models.example is not trusted: self-signed certificate."
    assert "SSL_CERT_FILE" in found.next_step


# --- proxies and keys ------------------------------------------------------------------------------------------------


async def test_a_proxy_of_the_environment_is_used_but_not_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    async with serving(said({"by": "proxy"})) as proxy, serving(said({"by": "server"})) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        async with Client(local=False, key_name="K", patience=QUICK) as http:
            far = await http.post("http://models.example/v1/x", json={})
        async with Client(local=True, key_name="K", patience=QUICK) as http:
            near = await http.post(f"{server.url}/v1/x", json={})
    assert (far.json(), near.json()) == ({"by": "proxy"}, {"by": "server"})
    assert proxy.asked[0].path == "http://models.example/v1/x"


class KeepAlive(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is given
        del format, args


@pytest.mark.filterwarnings("ignore")  # a connection of a closed event loop cannot be closed any more
@pytest.mark.parametrize("local", [True, False])
def test_a_client_outlives_the_event_loop_it_was_used_on(local: bool):
    server = ThreadingHTTPServer(("127.0.0.1", 0), KeepAlive)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    http = Client(local=local, key_name="K", patience=QUICK)

    async def ask(*, last: bool) -> object:
        answer = await http.post(f"http://127.0.0.1:{server.server_address[1]}/v1/x", json={})
        if last:
            await http.aclose()
        return answer.json()

    assert [asyncio.run(ask(last=last)) for last in (False, True)] == [{}, {}]
    server.shutdown()
    server.server_close()
    thread.join()
    gc.collect()  # here, where the warnings about it are not wanted


@pytest.mark.parametrize("header", [{"authorization": "Bearer sk-secret-1"}, {"x-api-key": "sk-secret-1"}])
async def test_a_key_that_the_server_repeats_is_taken_out(header: dict[str, str]):
    async with serving(said({"error": {"message": "Bad key sk-secret-1."}}, 400)) as service, client() as http:
        answer = await http.post(f"{service.url}/v1/x", json={}, headers=header)
        assert answer.json() == {"error": {"message": "Bad key [key]."}}
    async with serving(said({"error": {"message": "Bad key sk-secret-1."}}, 401)) as service, client() as http:
        with pytest.raises(ModelError) as caught:
            await http.post(f"{service.url}/v1/x", json={}, headers=header)
    assert "sk-secret" not in str(caught.value)
    assert "OPENAI_API_KEY" in caught.value.next_step


async def test_no_redirect_is_followed_with_the_key():
    async with serving(HELLO) as elsewhere:
        moved = Play(status=307, headers={"location": f"{elsewhere.url}/v1/x"})
        async with serving(moved) as service, client() as http:
            with pytest.raises(PunieError, match="sends requests on to"):
                await http.post(f"{service.url}/v1/x", json={}, headers={"x-api-key": "s"}, follow_redirects=True)
    assert elsewhere.asked == []


def test_a_key_comes_from_the_environment_or_the_keyring():
    import keyring
    from keyring.backend import KeyringBackend

    class Memory(KeyringBackend):
        priority = 1  # type: ignore[assignment]
        kept: ClassVar = {("punie", "SOME_KEY"): " from-keyring "}

        def get_password(self, service: str, username: str) -> str | None:
            return self.kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.kept[service, username] = password

    before = keyring.get_keyring()
    keyring.set_keyring(Memory())
    try:
        assert _keys.find("SOME_KEY", {}) == "from-keyring"
        assert _keys.find("SOME_KEY", {"SOME_KEY": " from-env "}) == "from-env"
        assert _keys.find("OTHER_KEY", {}) == ""
    finally:
        keyring.set_keyring(before)


def test_nobody_needs_to_listen():
    heard: list[str] = []
    tell("lost")
    with listening(heard.append):
        tell("heard")
    tell("lost again")
    assert heard == ["heard"]
