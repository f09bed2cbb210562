import json
import os
import re
import subprocess
import sys
import threading
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from tests.backends import tiny

from punie.backends._engine import CallGrammar, Piece
from punie.backends._llamacpp_server import at_once
from punie.backends.llamacpp import LlamaCpp
from punie.config import EngineOptions
from punie.errors import ContextTooLong, ModelError, WeightsDamaged, WeightsMissing

PROMPT = tuple(range(3, 40))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    path = tiny.write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    engine = LlamaCpp(path, context_window=512, threads=1)
    yield engine
    engine.close()


def pieces(
    engine, prompt=PROMPT, *, max_tokens=24, temperature=0.0, seed=0, stop=(), cancelled=None, grammar=None
) -> list[Piece]:
    event = cancelled or threading.Event()
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop, "cancelled": event}
    return list(engine.generate(prompt, grammar=grammar, **asked))


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
from typing import Annotated, Literal
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


# --- grammar -------------------------------------------------------------------------------------------------------


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Flag(Arguments):
    deep: bool


class Choice(Arguments):
    a: Literal["x y", 'q"', "é"]
    b: Literal[3] | None = None


class Nested(Arguments):
    inner: Flag
    more: tuple[Flag, ...] = ()


class Lists(Arguments):
    x: Annotated[list[bool], Field(min_length=1, max_length=3)]


class Nothing(Arguments):
    pass


class Many(Arguments):
    p0: bool | None = None
    p1: bool | None = None
    p2: bool | None
    p3: bool | None = None
    p4: bool | None = None
    p5: bool | None
    p6: bool | None = None


TOOLS: dict[str, type[BaseModel]] = {c.__name__.lower(): c for c in (Flag, Choice, Nested, Lists, Nothing, Many)}


def grammar_of(*names: str, opening: str = "<tool_call>") -> CallGrammar:
    tools = tuple((name, json.dumps(TOOLS[name].model_json_schema())) for name in names)
    return CallGrammar(tools, opening=opening, closing="»")


def calls_of(said: str) -> list[dict]:
    """The calls that are written between the marks, read as strictly as JSON is."""
    return [json.loads(block) for block in re.findall("(?s)« *(.*?) *»".replace(" *", r"\s*"), said)]


def opening_of(engine) -> tuple[range, str]:
    """A prompt, and the two letters that the random model begins its answer to it with."""
    for start in range(3, 200):
        prompt = range(start, start + 20)
        begun = text(pieces(engine, prompt=prompt, max_tokens=4))[:2]
        if re.fullmatch("[A-Za-z]{2}", begun):
            return prompt, begun
    raise AssertionError("no prompt makes the model begin with letters")


@pytest.mark.parametrize("name", TOOLS)
def test_a_call_that_is_begun_fits_its_schema(engine, name):
    prompt, opening = opening_of(engine)
    grammar = grammar_of(name, opening=opening)
    for seed in range(4):
        said = text(pieces(engine, prompt=prompt, max_tokens=200, temperature=1.5 * (seed > 0), grammar=grammar))
        if not said.startswith(opening):
            continue  # another beginning at this temperature: prose is free
        calls = calls_of(said.replace(opening, "«"))
        assert calls, said
        for found in calls:
            assert list(found) == ["name", "arguments"]
            assert found["name"] == name
            TOOLS[name].model_validate_json(json.dumps(found["arguments"]))


def test_calls_are_written_as_the_chat_template_writes_them(engine):
    prompt, opening = opening_of(engine)
    grammar = grammar_of("flag", "many", opening=opening)
    said = text(pieces(engine, prompt=prompt, max_tokens=300, grammar=grammar))
    block = re.findall(f"{opening}\\s*(.*?)\\s*»", said)[0]
    assert block == json.dumps(json.loads(block), ensure_ascii=False)


def test_prose_is_as_free_as_without_a_grammar(engine):
    grammar = grammar_of("flag")
    assert text(pieces(engine, max_tokens=100, grammar=grammar)) == text(pieces(engine, max_tokens=100))
    assert text(pieces(engine, grammar=CallGrammar(()))) == text(pieces(engine))


# --- speculation, cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", [False, True])
def test_guessing_ahead_changes_nothing_that_is_said(engine, tmp_path, draft):
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    options = EngineOptions(draft=str(tiny.write_gguf(tmp_path / "draft.gguf", seed=1)) if draft else None)
    guessing = LlamaCpp(path, context_window=512, threads=1, options=options)
    plain = LlamaCpp(path, context_window=512, threads=1, options=EngineOptions(speculation=False))
    repetitive = [5, 6, 7, 8, 9, 10, 11, 12, 13] * 8
    for prompt in (PROMPT, repetitive):
        for temperature in (0.0, 1.0):
            said = [text(pieces(e, prompt=prompt, max_tokens=80, temperature=temperature)) for e in (guessing, plain)]
            assert said[0] == said[1]
    guessing.close()
    plain.close()


def test_a_draft_model_that_does_not_fit_is_told(tmp_path):
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(WeightsMissing, match=r"nothing\.gguf"):
        LlamaCpp(path, context_window=64, threads=1, options=EngineOptions(draft=f"{tmp_path}/nothing.gguf"))


def test_a_quantised_cache_answers_or_says_that_the_model_cannot_have_one(tmp_path):
    options = EngineOptions(kv_bits=8, kv_quantize_after=64)
    quantised = LlamaCpp(
        tiny.write_gguf(tmp_path / "wide.gguf", heads=2), context_window=512, threads=1, options=options
    )
    assert text(pieces(quantised))
    quantised.close()
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(WeightsDamaged) as caught:
        LlamaCpp(path, context_window=512, threads=1, options=options)
    assert "kv_bits" in caught.value.next_step
    LlamaCpp(path, context_window=64, threads=1, options=options).close()  # not beyond the limit: exact


@pytest.fixture
def keeping(tmp_path):
    engine = LlamaCpp(tiny.write_gguf(tmp_path / "tiny.gguf"), context_window=512, threads=1, kept=tmp_path)
    yield engine
    engine.close()


def test_a_saved_cache_is_taken_up_by_the_next_process(keeping, tmp_path):
    said = text(pieces(keeping))
    path = tmp_path / "a.cache"
    assert keeping.save(path) >= len(PROMPT)
    assert path.stat().st_mode & 0o077 == 0
    other = LlamaCpp(tiny.write_gguf(tmp_path / "tiny.gguf"), context_window=512, threads=1, kept=tmp_path)
    assert other.restore(path) >= len(PROMPT)
    again = pieces(other)
    assert text(again) == said
    assert again[-1].cached_tokens >= len(PROMPT) - 1
    other.close()


def test_a_damaged_cache_is_left_alone(keeping, tmp_path):
    """llama.cpp ends the process over some of these."""
    pieces(keeping)
    good, bad = tmp_path / "good.cache", tmp_path / "bad.cache"
    assert keeping.save(good)
    whole = good.read_bytes()
    flipped = bytes([*whole[:300], whole[300] ^ 1, *whole[301:]])
    for content in (b"", b"short", whole[:1000], whole[:-1], whole[:-33], flipped, whole + b"x"):
        bad.write_bytes(content)
        assert keeping.restore(bad) == 0
    assert keeping.restore(tmp_path / "nothing.cache") == 0
    assert keeping.restore(good) >= len(PROMPT)


def test_a_full_disk_keeps_nothing_and_breaks_nothing(keeping, tmp_path):
    said = text(pieces(keeping))
    path = tmp_path / "a.cache"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.symlink_to("/dev/full")
    assert keeping.save(path) == 0
    assert not path.exists()
    assert text(pieces(keeping)) == said


def test_nothing_is_kept_elsewhere_or_after_the_end(engine, keeping, tmp_path):
    pieces(engine)
    assert engine.save(tmp_path / "a.cache") == engine.restore(tmp_path / "a.cache") == 0
    keeping.close()
    assert keeping.save(tmp_path / "a.cache") == keeping.restore(tmp_path / "a.cache") == 0


@pytest.mark.parametrize(("size", "threads", "tokens"), [(10**8, 2, 256), (5 * 10**9, 2, 32), (5 * 10**9, 32, 96)])
def test_a_large_model_looks_more_often_whether_it_is_still_wanted(size, threads, tokens):
    assert at_once(size, threads) == tokens
