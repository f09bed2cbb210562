"""Streams that break at every byte and streams with a wrong byte: no crash, and no call that was not whole."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, override_allow_model_requests
from tests.backends.services import Play, Replay, Service, chat, claude, text, tool_use

from punie.agent import TurnEnded, create_agent, run_turn
from punie.agent.approval import Decision, Request, once
from punie.backends import claude as claude_backend
from punie.backends import openai as openai_backend
from punie.backends._http import Client, Patience
from punie.config import AgentConfig, Limits
from punie.errors import PunieError
from punie.tools import Workspace

ARGUMENTS = {"path": "note.txt", "content": "caf\u00e9 }]"}
CALL = {"claude": claude(text("Writing."), tool_use("write_file", **ARGUMENTS), stop="tool_use")}
CALL["openai"] = chat("Writing.", ("write_file", ARGUMENTS))
DONE = {"claude": claude(text("Done.")), "openai": chat("Done.")}
EVERY = int(os.environ.get("PUNIE_FUZZ_EVERY", "11"))
"""Distance of the bytes that whole turns are tried with: 1 takes a minute. The model alone is tried with every byte."""


@pytest.fixture(autouse=True)
def _allow_requests() -> Iterator[None]:
    with override_allow_model_requests(True):
        yield


class Bench:
    """One agent whose model plays what it is given, and the calls that it asked to make."""

    def __init__(self, kind: str, workspace: Path) -> None:
        self.kind = kind
        self.replay = Replay()
        self.calls: list[Request] = []
        self.config = AgentConfig(tools=("write_file",), limits=Limits(max_turns=4))
        self.workspace = Workspace(workspace)
        self.model = self._model()
        self.agent = create_agent(self.config, model=self.model, approve=self._approve)

    def _model(self) -> Model:
        http = Client(local=True, key_name="KEY", patience=Patience(retries=0), transport=self.replay)
        if self.kind == "claude":
            return claude_backend.build("", self.config, env={"ANTHROPIC_API_KEY": "k"}, http=http)
        return openai_backend.build("some-model@http://127.0.0.1:9/v1", self.config, env={}, http=http)

    async def _approve(self, request: Request) -> Decision:
        self.calls.append(request)
        return once

    async def answer(self, play: Play) -> ModelResponse:
        """What the model makes of this stream alone."""
        self.replay.service = Service((play,))
        asked: list[ModelMessage] = [ModelRequest.user_text_prompt("Go.")]
        async with self.model.request_stream(asked, None, ModelRequestParameters()) as response:
            async for _ in response:
                pass
        return response.get()

    async def turn(self, play: Play) -> TurnEnded:
        """One turn on this stream; whatever is asked after it gets a plain answer."""
        self.replay.service = Service((play, DONE[self.kind]))
        self.calls.clear()
        events = [e async for e in run_turn(self.agent, "Go.", workspace=self.workspace, config=self.config)]
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return end


@pytest.mark.parametrize("ends", ["chunked", "close"])
@pytest.mark.parametrize("kind", ["claude", "openai"])
async def test_a_stream_that_breaks_at_any_byte_is_no_answer(tmp_path: Path, kind: str, ends):
    bench = Bench(kind, tmp_path)
    whole = replace(CALL[kind], ends=ends)
    wanted = (await bench.answer(whole)).parts
    for cut in range(len(whole.body)):
        try:
            got = (await bench.answer(replace(whole, cut=cut))).parts
        except (AgentRunError, PunieError):
            continue
        assert ends == "close", f"cut at {cut}"
        assert repr(got) == repr(wanted), f"cut at {cut}: what follows the reason of the end adds nothing"


@pytest.mark.parametrize("ends", ["chunked", "close"])
@pytest.mark.parametrize("kind", ["claude", "openai"])
async def test_a_turn_whose_stream_breaks_never_makes_a_partial_call(tmp_path: Path, kind: str, ends):
    bench = Bench(kind, tmp_path)
    whole = replace(CALL[kind], ends=ends)
    for cut in range(0, len(whole.body), EVERY):
        end = await bench.turn(replace(whole, cut=cut))
        assert [call.arguments for call in bench.calls] in ([], [ARGUMENTS]), f"cut at {cut}: {bench.calls}"
        assert end.exit_code == (0 if bench.calls else 1), f"cut at {cut}: {end.error}"
    end = await bench.turn(whole)
    assert (end.answer, [call.arguments for call in bench.calls]) == ("Done.", [ARGUMENTS])


@pytest.mark.filterwarnings("ignore")  # PydanticAI warns of counts it misses, and of fields it does not know
@pytest.mark.parametrize("kind", ["claude", "openai"])
async def test_a_wrong_byte_ends_the_turn_or_makes_one_call(tmp_path: Path, kind: str):
    bench = Bench(kind, tmp_path)
    body = CALL[kind].body
    for place in range(0, len(body), EVERY):
        wrong = body[:place] + bytes([body[place] ^ 0x15]) + body[place + 1 :]
        end = await bench.turn(Play((wrong,)))
        assert len(bench.calls) <= 1, f"flipped at {place}: {bench.calls}"
        assert end.error is None or len(end.error.splitlines()) <= 3, f"flipped at {place}: {end.error}"
