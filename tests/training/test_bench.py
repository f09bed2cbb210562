"""The benchmark measures what it says: the prompts the engine saw, and programs that must succeed."""

import subprocess
import sys

import pytest
from tests.backends import tiny

from punie.config import AgentConfig
from punie.errors import PunieError
from punie.tools import Workspace
from punie_training import bench, bench_backends, bench_safety

CALL = '<tool_call>\n{"name": "find_subclasses", "arguments": {"name": "Protocol"}}\n</tool_call>'


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "app.py").write_text("from typing import Protocol\n\n\nclass Shape(Protocol): ...\n", "utf-8")
    return Workspace(tmp_path)


def test_figure_is_median_and_range():
    assert bench.Figure.of([3.0, 1.0, 2.0]) == bench.Figure(median=2.0, low=1.0, high=3.0, n=3)


async def test_a_turn_records_the_prompts_the_engine_saw(tmp_path, workspace):
    model, engine = tiny.scripted_model(tmp_path, CALL, "1 class inherits from Protocol:\n[[result]]")
    turn = await bench.one_turn(model, workspace=workspace, config=AgentConfig())
    assert "app.py:4 class Shape(Protocol)" in turn.answer
    assert [prompt for prompt, _ in turn.generations] == [request["prompt"] for request in engine.requests]
    assert turn.total_s >= turn.tools_s > 0


async def test_replay_gives_the_engine_the_same_prompts(tmp_path):
    model, engine = tiny.scripted_model(tmp_path, "one", "two")
    assert await bench.replay(model, [((1, 2), 3), ((4,), 5)]) > 0
    assert [request["prompt"] for request in engine.requests] == [(1, 2), (4,)]
    assert all(request["speculate"] for request in engine.requests)


async def test_a_query_without_an_answer_is_no_measurement(tmp_path, workspace):
    model, _ = tiny.scripted_model(tmp_path, "")
    with pytest.raises(PunieError, match="not answered"):
        await bench.one_turn(model, workspace=workspace, config=AgentConfig())


def test_a_failing_program_is_no_measurement():
    assert bench.timed([sys.executable, "-c", "pass"], runs=1).n == 1
    with pytest.raises(subprocess.CalledProcessError):
        bench.timed([sys.executable, "-c", "raise SystemExit(1)"], runs=1)


# --- backends --------------------------------------------------------------------------------------------------------


async def test_a_probe_counts_what_was_read_and_what_was_said(tmp_path):
    model, _ = tiny.scripted_model(tmp_path, "one two three four")
    found, messages = await bench_backends.probe(model, bench_backends.question(1))
    assert (found.said, found.cached) == (5, found.prompt - 1)
    assert found.prefill > 0
    assert found.decode > 0
    assert getattr(messages[-1], "text", None) == "one two three four"


async def test_an_answer_that_is_too_short_is_no_measurement(tmp_path):
    model, _ = tiny.scripted_model(tmp_path, "one")
    with pytest.raises(PunieError, match="too short"):
        await bench_backends.probe(model, bench_backends.question(1))


def test_no_question_begins_like_another():
    beginnings = {repr(bench_backends.question(number)[0].parts[0])[:40] for number in (1, 2)}
    assert len(beginnings) == 2


async def test_the_whole_query_is_timed_and_must_be_answered(tmp_path, workspace):
    model, _ = tiny.scripted_model(tmp_path, CALL, "1 class inherits from Protocol:\n[[result]]")
    assert await bench_backends.whole_query(model, workspace=workspace, config=AgentConfig()) > 0
    model, _ = tiny.scripted_model(tmp_path, "")
    with pytest.raises(PunieError, match="not answered"):
        await bench_backends.whole_query(model, workspace=workspace, config=AgentConfig())


async def test_a_lever_is_tried_both_ways_in_turn_and_the_first_time_does_not_count():
    tried: list[str] = []

    def lever(name: str, seconds: float):
        async def run() -> float:
            tried.append(name)
            return seconds

        return run

    found = await bench_backends.in_turn("x", lever("off", 3.0), lever("on", 2.0), runs=2)
    assert tried == ["off", "on"] * 3
    assert found["x, off/on"] == bench.Figure(median=1.5, low=1.5, high=1.5, n=2)


async def test_only_a_copy_shows_what_speculation_is_worth(tmp_path):
    model, engine = tiny.scripted_model(tmp_path, "\n".join(bench_backends.LINES[1:4]), "Something else.")
    prompt = await bench_backends.copying(model)
    assert await bench_backends.copied(model, prompt, speculate=True) == 0.5
    assert engine.requests[0]["speculate"] is True
    with pytest.raises(PunieError, match="did not copy"):
        await bench_backends.copied(model, prompt, speculate=False)


def test_the_cost_of_being_careful_is_measured_for_every_precaution(capsys, tmp_path):
    assert bench.main(["safety", "--runs", "2", "--out", str(tmp_path / "safety.json")]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in bench_safety.MEASURES if name.startswith("authorize"))
    assert '"unit": "ms"' in (tmp_path / "safety.json").read_text("utf-8")
