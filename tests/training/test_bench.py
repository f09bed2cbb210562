"""The benchmark measures what it says: the prompts the engine saw, and programs that must succeed."""

import subprocess
import sys

import pytest
from tests.backends import tiny

from punie.config import AgentConfig
from punie.errors import PunieError
from punie.tools import Workspace
from punie_training import bench

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


async def test_a_query_without_an_answer_is_no_measurement(tmp_path, workspace):
    model, _ = tiny.scripted_model(tmp_path, "")
    with pytest.raises(PunieError, match="not answered"):
        await bench.one_turn(model, workspace=workspace, config=AgentConfig())


def test_a_failing_program_is_no_measurement():
    assert bench.timed([sys.executable, "-c", "pass"], runs=1).n == 1
    with pytest.raises(subprocess.CalledProcessError):
        bench.timed([sys.executable, "-c", "raise SystemExit(1)"], runs=1)
