"""Secrets on their way through a turn: what the model, the store and the front ends get, and what stays writable."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelRequest
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from tests.stubs import Reply, scripted

from punie.agent import Event, SessionStore, TurnEnded, create_agent, run_turn
from punie.agent._redacted import keys_of
from punie.agent.approval import Approver, Request, approve_all
from punie.agent.events import Notice, Text, TextReplaced, ToolReturned
from punie.agent.memory import Memory
from punie.backends import claude, openai
from punie.config import AgentConfig
from punie.redaction import Redactor
from punie.tools import Workspace

VALUE = "plain-Words-77-of-acme"
TOKEN = "ghp_a7QJBd0Kh8oOOL8dKLzdocJ2isAjIhKtJ0Rl12"
ENVIRONMENT = {"ACME_API_KEY": VALUE, "PATH": "/usr/bin:/bin"}
SETTINGS = f'name = "app"\nkey = "{VALUE}"\ntoken = "{TOKEN}"\nport = 80\n'
READ = ("read_file", {"path": "settings.toml"})
Ran = tuple[list[Event], TurnEnded]


class Place:
    """A project with secrets in a file, and turns in it; keeps every request as it was sent."""

    def __init__(self, root: Path, store: SessionStore) -> None:
        self.root = root
        self.file = root / "settings.toml"
        self.file.write_text(SETTINGS)
        self.requests: list[str] = []
        self.session = store.create(root)
        self.workspace = Workspace(root, environment=ENVIRONMENT)

    async def turn(
        self,
        *replies: Reply,
        prompt: str = "Go.",
        approve: Approver = approve_all,
        history: Sequence[ModelMessage] = (),
        memory: Memory | None = None,
        model: FunctionModel | None = None,
    ) -> Ran:
        config = AgentConfig()
        agent = create_agent(config, model=model or self._watched(*replies), approve=approve, memory=memory)
        stream = run_turn(agent, prompt, workspace=self.workspace, config=config, session=self.session, history=history)
        events = [event async for event in stream]
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return events, end

    def _watched(self, *replies: Reply) -> FunctionModel:
        inner = scripted(*replies).stream_function
        assert inner is not None

        async def stream(
            messages: list[ModelMessage], info: AgentInfo
        ) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
            said: list[ModelMessage] = [message for message in messages if isinstance(message, ModelRequest)]
            self.requests.append(ModelMessagesTypeAdapter.dump_json(said).decode() + (info.instructions or ""))
            async for piece in inner(messages, info):
                yield piece  # type: ignore[misc] - the pieces this model makes

        return FunctionModel(stream_function=stream)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state" / "sessions"


@pytest.fixture
def place(tmp_path: Path, state: Path) -> Iterator[Place]:
    root = tmp_path / "project"
    root.mkdir()
    with SessionStore(state, environment=ENVIRONMENT) as store:
        yield Place(root, store)


def outputs(events: Sequence[Event]) -> str:
    return "\n".join(event.output for event in events if isinstance(event, ToolReturned))


def assert_clean(*texts: str) -> None:
    for text in texts:
        assert VALUE not in text
        assert TOKEN not in text


@pytest.mark.parametrize(
    "call",
    [
        READ,
        ("search", {"pattern": "key|token"}),
        ("run_command", {"command": "cat settings.toml; base64 settings.toml | tr -d '\\n'"}),
        ("run_command", {"command": "printf 'x\\033[31m%s' $(sed -n 's/key = .\\(.*\\)./\\1/p' settings.toml)"}),
        ("edit_file", {"path": "settings.toml", "old": "port = 80", "new": "port = 81"}),
        ("edit_file", {"path": "settings.toml", "old": "key = 'acme'\ntoken =", "new": "port"}),
    ],
    ids=["read", "search", "command", "command with colours", "edit and its diff", "edit that finds nothing"],
)
async def test_no_tool_gives_a_secret_away(place: Place, state: Path, call: Reply) -> None:
    events, end = await place.turn(READ, call, "Done.")
    assert end.answer == "Done."
    assert len(place.requests) == 3
    assert "[redacted:" in outputs(events)
    assert_clean(*place.requests, outputs(events), repr(events), *stored(state))


async def test_lines_keep_their_numbers(place: Place) -> None:
    events, _ = await place.turn(READ, "Done.")
    assert outputs(events).splitlines()[1:] == [
        '1\tname = "app"',
        '2\tkey = "[redacted:ACME_API_KEY]"',
        '3\ttoken = "[redacted:github-token]"',
        "4\tport = 80",
    ]


async def test_a_key_in_a_file_is_no_secret_only_from_its_first_line(place: Place) -> None:
    body = ["Qm9" + "aB3/" * 15 + letter for letter in "abcdefgh"]
    key = ["-----BEGIN PRIVATE KEY-----", *body, "-----END PRIVATE KEY-----"]
    (place.root / "key.pem").write_text("\n".join(key))
    page = ("read_file", {"path": "key.pem", "start": 4, "end": 6})
    events, _ = await place.turn(page, ("search", {"pattern": "aB3"}), "Done.")
    assert not any(line in outputs(events) for line in body)
    assert "4\t[redacted:private-key]\n5\t[redacted:private-key]" in outputs(events)


def stored(state: Path) -> list[str]:
    """The conversations on the disk, byte by byte; what undoing needs lies in directories beside them."""
    return [file.read_bytes().decode("latin-1") for file in state.iterdir() if file.is_file()]


async def test_a_secret_in_the_prompt_is_kept_back_and_said_so(place: Place, state: Path) -> None:
    events, end = await place.turn("Done.", prompt=f"Log in with {TOKEN} and {VALUE}.")
    assert "Log in with [redacted:github-token] and [redacted:ACME_API_KEY]." in place.requests[0]
    assert [event.text for event in events if isinstance(event, Notice)] == [
        "A secret in the prompt is kept from the model; name the variable or file that holds it."
    ]
    assert_clean(place.requests[0], repr(end), *stored(state))


async def test_instructions_hold_no_secret(place: Place) -> None:
    (place.root / "AGENTS.md").write_text(f"Deploy with {TOKEN}.\n")
    await place.turn("Done.", memory=Memory(cwd=place.root, project=place.root, tokens=1000))
    assert "Deploy with [redacted:github-token]." in place.requests[0]
    assert_clean(place.requests[0])


async def test_what_the_model_says_itself_is_redacted_where_it_leaves(place: Place, state: Path) -> None:
    events, end = await place.turn(f"Use {TOKEN} or {VALUE}, said it.")
    shown = ""
    for event in events:
        if isinstance(event, Text):
            shown += event.delta
            assert_clean(shown)
        assert not isinstance(event, TextReplaced)
    assert shown == end.answer == "Use [redacted:github-token] or [redacted:ACME_API_KEY], said it."
    assert_clean(*stored(state))


async def test_arguments_are_redacted_where_they_are_shown_and_stored_but_not_where_they_run(
    place: Place, state: Path
) -> None:
    events, end = await place.turn(("write_file", {"path": "new.txt", "content": f"x {TOKEN}\n"}), "Done.")
    assert (place.root / "new.txt").read_text() == f"x {TOKEN}\n"
    assert_clean(repr(events[:-1]), repr(end.tool_calls), *stored(state))


async def test_errors_hold_no_secret(place: Place) -> None:
    async def fails(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        del messages, info
        raise ModelHTTPError(400, "m", {"error": {"message": f"bad key {VALUE}"}})
        yield ""

    _, end = await place.turn(model=FunctionModel(stream_function=fails))
    assert end.error is not None
    assert "bad key [redacted:ACME_API_KEY]" in end.error


async def test_requests_only_grow(place: Place) -> None:
    first = await place.turn(READ, READ, f"Said {TOKEN}.")
    await place.turn("Two.", history=first[1].messages)
    for before, after in pairwise(place.requests):
        assert [part["content"] for part in parts(after)][: len(parts(before))] == [p["content"] for p in parts(before)]


def parts(request: str) -> list[dict[str, object]]:
    found = json.JSONDecoder().raw_decode(request)[0]
    return [part for message in found for part in message["parts"]]


# --- markers are never written ---


async def nobody(request: Request) -> None:
    raise AssertionError(f"{request.tool} was asked about")


MARKER = "[redacted:github-token]"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            ("edit_file", {"path": "settings.toml", "old": f'token = "{MARKER}"', "new": "token = 1"}),
            "in old stands for",
        ),
        (
            ("edit_file", {"path": "settings.toml", "old": "port = 80", "new": f'port = 80\ntoken = "{MARKER}"'}),
            "Nothing was written to settings.toml",
        ),
        (("write_file", {"path": "settings.toml", "content": f'token = "{MARKER}"\n'}), "Nothing was written"),
        (("write_file", {"path": "copy.toml", "content": f'token = "{MARKER}"\n'}), "Nothing was written to copy.toml"),
        (("run_command", {"command": f"echo 'token = {MARKER}' > copy.toml"}), "Not run: [redacted:github-token]"),
    ],
    ids=["old", "new", "write", "new file", "command"],
)
async def test_a_marker_is_never_written_in_place_of_a_secret(place: Place, call: Reply, said: str) -> None:
    await place.turn(READ, call, "Done.", approve=nobody)  # type: ignore[arg-type] - it never answers
    assert said in place.requests[2].replace("\\", "")
    assert place.file.read_text() == SETTINGS
    assert not (place.root / "copy.toml").exists()


async def test_text_beside_a_secret_can_be_edited(place: Place) -> None:
    await place.turn(READ, ("edit_file", {"path": "settings.toml", "old": 'token = "', "new": 'key2 = "'}), "Done.")
    assert place.file.read_text() == SETTINGS.replace("token", "key2")


async def test_a_marker_that_stands_in_the_file_itself_can_be_edited(place: Place) -> None:
    text = f"Secrets become {MARKER} here.\n"
    place.file.write_text(text)
    edit = ("edit_file", {"path": "settings.toml", "old": f"become {MARKER}", "new": f"are shown as {MARKER}"})
    await place.turn(edit, "Done.")
    assert place.file.read_text() == text.replace("become", "are shown as")


# --- the store ---


async def test_an_old_store_is_redacted_when_it_is_read(tmp_path: Path, state: Path) -> None:
    with SessionStore(state, environment={}) as store:
        session = store.create(tmp_path)
        session.redact = Redactor()
        session.begin(model="m", title="t")
        session.sync([ModelRequest.user_text_prompt(f"Use {VALUE}")])
        session.finish(
            session.intend(session.messages, call="c", tool="t", arguments={"a": VALUE}), outcome="ok", output=VALUE
        )
        session.close()
    assert any(VALUE in text for text in stored(state))
    with SessionStore(state, environment=ENVIRONMENT) as store:
        assert_clean("".join(store.export(session.id)), repr(store.messages(session.id)))
        assert_clean(repr(store.resume(tmp_path).messages))
        assert "Use [redacted:ACME_API_KEY]" in "".join(store.export(session.id))


# --- keys ---


@pytest.mark.parametrize(
    "build",
    [lambda env: claude.build("", AgentConfig(), env=env), lambda env: openai.build("m", AgentConfig(), env=env)],
)
def test_the_key_a_model_was_built_with_is_known(build: Callable[[dict[str, str]], object]) -> None:
    model = build({"ANTHROPIC_API_KEY": VALUE, "OPENAI_API_KEY": VALUE})
    assert Redactor(keys=keys_of(model))(f"<{VALUE}>") == "<[redacted:api-key]>"
    assert keys_of(scripted("x")) == {}
