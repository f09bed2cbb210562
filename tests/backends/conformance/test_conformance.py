"""The contract of every backend: one function for each case, one test for each backend that the case is meant for."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from pydantic_ai.models import override_allow_model_requests
from tests.backends.conformance import scenes
from tests.backends.conformance.cases import CASES, having
from tests.backends.conformance.scenes import GREEDY, SAID, at
from tests.backends.conformance.talk import Backend, Talk, ask, listen

from punie.errors import ContextTooLong, ModelError, NetworkRefused, PunieError


@pytest.fixture(autouse=True)
def _allow_loopback_requests():
    with override_allow_model_requests(True):
        yield


@pytest.fixture
def backend(request) -> Backend:
    return request.getfixturevalue(request.param.replace("-", "_"))


def case(name: str):
    """One test for each backend that has this case."""
    assert name in CASES
    return pytest.mark.parametrize("backend", having(name), indirect=True)


def called(response) -> list[tuple[str, dict]]:
    return [(call.tool_name, call.args_as_dict()) for call in response.tool_calls]


@case("plain")
async def test_plain(backend):
    async with backend.open(scenes.PLAIN) as talk:
        response = await ask(talk, scenes.PLAIN)
    assert response.text == SAID["plain"]
    assert response.finish_reason == "stop"
    assert not response.tool_calls


@case("streaming")
async def test_streaming(backend):
    async with backend.open(scenes.PLAIN) as talk:
        response, pieces = await listen(talk, scenes.PLAIN)
    assert len(pieces) >= 2
    assert "".join(pieces) == response.text == SAID["plain"]


@case("one-call")
async def test_one_call(backend):
    async with backend.open(scenes.ONE_CALL) as talk:
        response, pieces = await listen(talk, scenes.ONE_CALL)
    assert called(response) == [scenes.FIND_FLASK]
    assert response.finish_reason == "tool_call"
    assert not "".join(pieces).strip(), "a call is not shown as text"


@case("two-calls")
async def test_two_calls(backend):
    async with backend.open(scenes.TWO_CALLS) as talk:
        response = await ask(talk, scenes.TWO_CALLS, backend.parallel)
    assert called(response) == [scenes.FIND_FLASK, scenes.SEARCH_BLUEPRINT]
    ids = [call.tool_call_id for call in response.tool_calls]
    assert len(set(ids)) == 2


@case("results")
async def test_results(backend):
    async with backend.open(scenes.TWO_CALLS) as talk:
        first = await ask(talk, scenes.TWO_CALLS, backend.parallel)
        after = scenes.TWO_CALLS.answered(first, ["src/app.py:4 class Flask", "2 lines"])
        second = await ask(talk, after, backend.parallel)
        talk.check_sent(results=["src/app.py:4 class Flask", "2 lines"], ids=[c.tool_call_id for c in first.tool_calls])
    assert second.text == SAID["answer"]
    assert not second.tool_calls


@case("stop")
async def test_stop(backend):
    async with backend.open(scenes.STOPPED) as talk:
        free = (await ask(talk, scenes.STOPPED, GREEDY)).text or ""
        stop = " " + free.split()[1]
        cut = await ask(talk, scenes.STOPPED, {**GREEDY, "stop_sequences": [stop, "never said"]})
        talk.check_sent(stop_sequences=[stop, "never said"])
    assert cut.text == free[: free.index(stop)]
    assert cut.text
    assert cut.finish_reason == "stop"


@case("max-tokens")
async def test_max_tokens(backend):
    async with backend.open(scenes.CUT) as talk:
        response = await ask(talk, scenes.CUT, {"max_tokens": 7, "temperature": 0.0})
        talk.check_sent(max_tokens=7)
    assert response.finish_reason == "length"
    assert response.usage.output_tokens == 7
    assert response.text


@case("temperature")
async def test_temperature(backend):
    async with backend.open(scenes.REPEATED) as talk:
        first, second = [await ask(talk, scenes.REPEATED, GREEDY) for _ in range(2)]
        talk.check_sent(temperature=0.0)
    assert first.text == second.text
    assert len((first.text or "").split()) > 5


@case("seed")
async def test_seed(backend):
    async with backend.open(scenes.SEEDED) as talk:
        texts = []
        for seed in (5, 5, 6):
            texts.append((await ask(talk, scenes.SEEDED, at(1.0, seed=seed))).text)
            talk.check_sent(seed=seed, temperature=1.0)
    assert texts[0] == texts[1] != texts[2]


@case("usage")
async def test_usage(backend):
    async with backend.open(scenes.PLAIN) as talk:
        usage = (await ask(talk, scenes.PLAIN)).usage
    assert usage.input_tokens >= 11
    assert 7 <= usage.output_tokens <= len(scenes.SAID["plain"])


@case("cached")
async def test_cached(backend):
    async with backend.open(scenes.PLAIN) as talk:
        await ask(talk, scenes.PLAIN)
        again = await ask(talk, scenes.PLAIN)
    assert again.usage.cache_read_tokens >= 8
    assert again.usage.input_tokens >= again.usage.cache_read_tokens


@case("cancel")
async def test_cancel(backend):
    async with backend.endless() as talk:
        usual = await duration(talk.stopped) if talk.idle else 0.0
        heard = asyncio.Event()
        task = asyncio.create_task(listen(talk, scenes.ENDLESS, at(1.0, seed=1, max_tokens=3500), heard=heard))
        await asyncio.wait_for(heard.wait(), 20)
        assert not task.done()
        task.cancel()
        assert await duration(lambda: asyncio.wait({task})) < 1
        assert task.cancelled()
        assert await asyncio.wait_for(duration(talk.stopped), 20) < 1 + 3 * usual


async def duration(wait: Callable[[], Awaitable[object]]) -> float:
    """Seconds until it comes."""
    started = time.monotonic()
    await wait()
    return time.monotonic() - started


@case("count")
async def test_count(backend):
    async with backend.open(scenes.TWO_CALLS) as talk:
        scene = scenes.TWO_CALLS
        counted = await talk.model.count_tokens(list(scene.messages), None, scene.parameters)
        response = await ask(talk, scene)
    assert counted.input_tokens == response.usage.input_tokens


@case("context")
async def test_context(backend):
    async with backend.open(scenes.PLAIN) as talk:
        await ask(talk, scenes.PLAIN)
        found = talk.model.context_window
    assert found == backend.window if backend.window else found, "of a service it is what PydanticAI knows of the model"


async def refusal(talk: Talk, scene: scenes.Scene = scenes.PLAIN) -> PunieError:
    """How a request fails, in Punie's words."""
    with pytest.raises(PunieError) as caught:
        await ask(talk, scene, talk.breaking)
    assert len(str(caught.value).splitlines()) <= 3
    assert caught.value.next_step
    return caught.value


@case("too-long")
async def test_too_long(backend):
    async with backend.too_long() as talk:
        assert type(await refusal(talk, scenes.TOO_LONG)) is ContextTooLong


@case("failure")
async def test_failure(backend):
    async with backend.failing() as talk:
        assert isinstance(await refusal(talk), ModelError)


@case("unreachable")
async def test_unreachable(backend):
    async with backend.unreachable() as talk:
        assert type(await refusal(talk)) is NetworkRefused


@case("wrong-key")
async def test_wrong_key(backend):
    async with backend.wrong_key() as talk:
        error = await refusal(talk)
    assert type(error) is ModelError
    assert backend.key_name in str(error)


@case("embedded")
async def test_embedded(backend, weights_cache):
    async with backend.embedded(weights_cache) as talk:
        response = await ask(talk, scenes.EMBEDDED, {"temperature": 0.0, "max_tokens": 80})
    assert called(response) == [scenes.FIND_PROTOCOLS]
    assert response.finish_reason == "tool_call"
