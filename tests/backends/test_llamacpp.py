import re
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from tests.backends import tiny

from punie.backends._engine import Piece
from punie.backends._merge import Adapter, merge
from punie.backends._weights import ensure_base, ensure_tokenizer, shipped_template, silent
from punie.backends.llamacpp import LlamaCpp
from punie.errors import ContextTooLong, ModelError, WeightsDamaged
from punie.wire import Message, Wire

PROMPT = tuple(range(3, 40))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    engine = LlamaCpp(path, context_window=512, threads=1)
    yield engine
    engine.close()


def pieces(engine, prompt=PROMPT, *, max_tokens=24, temperature=0.0, seed=0, stop=(), cancelled=None) -> list[Piece]:
    event = cancelled or threading.Event()
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop, "cancelled": event}
    return list(engine.generate(prompt, **asked))


def text(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


def test_the_last_piece_carries_the_figures(engine):
    found = pieces(engine)
    last = found[-1]
    assert [piece.finish for piece in found[:-1]] == [None] * (len(found) - 1)
    assert (last.finish, last.prompt_tokens) == ("length", len(PROMPT))
    assert sum(piece.token_count for piece in found) == 24
    assert last.decode_s > 0
    assert last.prefill_s > 0


def test_a_prompt_that_is_still_cached_is_not_read_again(engine):
    pieces(engine, prompt=range(50, 90))
    first, again = pieces(engine)[-1], pieces(engine, prompt=(*PROMPT, 40, 41))[-1]
    assert first.cached_tokens < 5
    assert again.cached_tokens >= len(PROMPT)


def test_a_stop_string_ends_the_text_before_it(engine):
    free = text(pieces(engine))
    readable = re.search("[ -~]{3}", free)
    assert readable
    stop = readable[0]
    found = pieces(engine, stop=(stop, "never said"))
    assert text(found) == free[: free.index(stop)]
    assert found[-1].finish == "stop"


def test_the_seed_decides_at_a_temperature(engine):
    first, same, other = (text(pieces(engine, temperature=1.5, seed=seed)) for seed in (1, 1, 2))
    assert first == same != other


def test_cancelling_ends_within_a_token(engine):
    event, found = threading.Event(), []
    asked = {"max_tokens": 400, "temperature": 0, "seed": 0, "stop": (), "cancelled": event}
    for piece in engine.generate(PROMPT, **asked):
        found.append(piece)
        if len(found) == 3:
            event.set()
    assert found[-1].finish == "cancelled"
    assert len(found) < 40, "the engine runs ahead of its reader by a few tokens, not by the whole answer"
    assert text(pieces(engine)), "and answers the next request"


def test_dropping_the_iterator_ends_the_generation(engine):
    asked = {"max_tokens": 400, "temperature": 0, "seed": 0, "stop": (), "cancelled": threading.Event()}
    iterator = engine.generate(PROMPT, **asked)
    list(takewhile(lambda piece: not piece.text, iterator))
    before = threading.active_count()
    iterator.close()
    assert threading.active_count() < before


def test_what_does_not_fit_and_what_is_no_token(engine):
    with pytest.raises(ContextTooLong):
        pieces(engine, prompt=[5] * 600)
    with pytest.raises(ModelError, match="invalid tokens"):
        pieces(engine, prompt=[10**6])


def test_nobody_else_can_talk_to_the_engine(engine):
    """No TCP port is open, and the socket it listens on has no name any more."""
    open_files = {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            assert f"socket:[{fields[9]}]" not in open_files or fields[3] != "0A", "a TCP port of this process listens"
    listening = [line.split()[-1] for line in Path("/proc/self/net/unix").read_text().splitlines() if "s.sock" in line]
    assert not [path for path in listening if Path(path).exists()]


def test_a_closed_engine_says_so(tiny_gguf):
    engine = LlamaCpp(tiny_gguf, context_window=64, threads=1)
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        pieces(engine)


def test_a_file_llama_cpp_cannot_load(tmp_path, capfd):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny.write_gguf(tmp_path / "whole.gguf").read_bytes()[:9000])
    with pytest.raises(WeightsDamaged, match=r"cut\.gguf"):
        LlamaCpp(path, context_window=64, threads=1)
    assert capfd.readouterr() == ("", ""), "llama.cpp's own words stay off the user's terminal"


@pytest.mark.parametrize("ending", ["pass", "engine.close()", "sys.exit(3)"])
def test_the_process_ends_cleanly_in_the_middle_of_an_answer(tiny_gguf, ending):
    """An engine that is still busy must neither hang the exit nor abort it."""
    code = f"""
import asyncio, sys
from pathlib import Path
from punie.backends.llamacpp import build
from pydantic_ai import Agent
engine = build({str(tiny_gguf)!r}, None, cache_dir=Path({str(tiny_gguf.parent)!r}), on_progress=lambda *_: None)
async def main():
    task = asyncio.create_task(Agent(engine).run("hello", model_settings={{"max_tokens": 400}}))
    await asyncio.sleep(1)
    {ending}
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3 if "exit" in ending else 0, "", "")


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
