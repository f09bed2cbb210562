"""llama.cpp on the embedded weights: what takes real ones, and takes long."""

import threading
import time

import numpy as np
import pytest
from tests.backends.test_llamacpp import pieces, text

from punie.backends._local import call_grammar
from punie.backends._merge import Adapter, merge
from punie.backends._weights import (
    embedded_files,
    ensure_base,
    ensure_tokenizer,
    shipped_adapter,
    shipped_template,
    silent,
)
from punie.backends.llamacpp import LlamaCpp
from punie.config import TOOL_NAMES, EngineOptions
from punie.tools import toolset
from punie.wire import Message, View, Wire, call, declarations


def test_the_weights_say_the_same_in_eight_bits(weights_cache, tmp_path):
    """The published Q4_1 and its dequantised weights as Q8_0, which is what an adapter is merged into."""
    base = ensure_base(weights_cache)
    layers = [f"model.layers.{n}.self_attn.q_proj" for n in range(30)]
    nothing = {name: (np.zeros((576, 1), np.float32), np.zeros((1, 576), np.float32)) for name in layers}
    merged = tmp_path / "merged.gguf"
    merge(base, Adapter(1.0, nothing), target=merged, on_progress=silent)
    chat = Wire.load(ensure_tokenizer(weights_cache), template=shipped_template())
    prompt = chat.prompt([Message("user", "What is the capital of France?")], ())
    answers = []
    for path in (base, merged):
        engine = LlamaCpp(path, context_window=512, threads=1)
        answers.append(text(pieces(engine, prompt)))
        engine.close()
    assert answers == ["The capital of France is Paris."] * 2


@pytest.fixture(scope="module")
def embedded(weights_cache):
    return embedded_files(weights_cache, adapter=shipped_adapter())


def test_the_embedded_model_says_the_same_with_grammar_and_guessing(embedded):
    tools = [tool.tool_def for tool in toolset(TOOL_NAMES).tools.values()]
    chat = Wire.load(embedded.tokenizer, template=embedded.template, view=View())
    found = "3 definitions of App\na.py:1 class App\nb.py:2 class App\nsrc/c.py:3 class App"
    asked = [Message("user", "Where is App defined?")]
    looked = [*asked, Message("assistant", "", (call("find_symbol", {"name": "App"}),)), Message("tool", found)]
    said: dict[bool, list[str]] = {True: [], False: []}
    for helped in said:
        options = EngineOptions(speculation=helped)
        engine = LlamaCpp(embedded.weights, context_window=2048, threads=1, options=options)
        grammar = call_grammar(chat.dialect, tools) if helped else None
        for conversation in (asked, looked):
            prompt = chat.prompt(conversation, declarations(tools))
            said[helped].append(text(pieces(engine, prompt=prompt, max_tokens=60, grammar=grammar)))
        engine.close()
    assert said[True] == said[False]
    if shipped_adapter():
        assert said[True][0] == call("find_symbol", {"name": "App"}).render()


def test_a_prompt_that_is_no_longer_wanted_is_put_down_within_a_second(embedded):
    engine = LlamaCpp(embedded.weights, context_window=8192, threads=1)
    event, ended = threading.Event(), {}

    def read() -> None:
        found = pieces(engine, prompt=[7, 8, 9, 10, 11] * 1500, cancelled=event)
        ended["at"], ended["finish"] = time.process_time(), found[-1].finish

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.3)  # some of the 7,500 tokens have been read by then, by far not all
    cancelled = time.process_time()  # of one thread: seconds, if nobody else computes
    event.set()
    reader.join()
    engine.close()
    assert ended["finish"] == "cancelled"
    assert ended["at"] - cancelled < 1
