import os
from pathlib import Path

import pytest
from tests.backends.tiny import TEMPLATE, ScriptedEngine, byte_tokenizer

from punie.backends import _prefixes
from punie.backends._prefixes import Prefixes, conversation_key, prefixes_of
from punie.config import EngineOptions
from punie.wire import Message, Wire


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def engine_with(*tokens: int) -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.cached = tokens
    return engine


def test_what_was_kept_comes_back_to_the_same_model_and_conversation(tmp_path):
    prefixes, other = Prefixes(tmp_path / "p", model="a"), Prefixes(tmp_path / "p", model="b")
    assert prefixes.save(engine_with(1, 2, 3), "talk") == 3
    engine = engine_with()
    assert other.restore(engine, "talk") == prefixes.restore(engine, "another talk") == 0
    assert prefixes.restore(engine, "talk") == 3
    assert engine.cached == (1, 2, 3)


def test_only_the_user_can_read_what_was_said(tmp_path):
    Prefixes(tmp_path / "p", model="a").save(engine_with(1), "talk")
    assert (tmp_path / "p").stat().st_mode & 0o077 == 0


def test_a_file_that_is_of_no_use_is_removed(tmp_path):
    prefixes = Prefixes(tmp_path, model="a")
    prefixes.path("talk").write_text("rubbish")
    assert prefixes.restore(engine_with(), "talk") == 0
    assert kept(tmp_path) == []


def test_the_files_used_longest_ago_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(_prefixes, "_MOST_FILES", 3)
    prefixes = Prefixes(tmp_path, model="a")
    for n in range(3):
        prefixes.save(engine_with(n), str(n))
        os.utime(prefixes.path(str(n)), (n, n))
    prefixes.restore(engine_with(), "0")  # now it is the newest
    prefixes.save(engine_with(3), "3")
    assert kept(tmp_path) == sorted(prefixes.path(n).name for n in ("0", "2", "3"))


def test_bytes_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_prefixes, "_MOST_BYTES", 100)
    prefixes = Prefixes(tmp_path, model="a")
    (tmp_path / "old.1.part").write_bytes(bytes(90))
    os.utime(tmp_path / "old.1.part", (1, 1))
    prefixes.save(engine_with(*range(10)), "talk")
    assert kept(tmp_path) == [prefixes.path("talk").name]


@pytest.mark.parametrize("trouble", ["full", "not a directory", "spare"])
def test_trouble_with_the_disk_costs_time_and_nothing_else(tmp_path, monkeypatch, trouble):
    class Full(ScriptedEngine):
        def save(self, path: Path) -> int:
            raise OSError(28, "No space left on device")

    if trouble == "spare":
        monkeypatch.setattr(_prefixes, "_SPARE_BYTES", 1 << 60)
    place = tmp_path / "p"
    if trouble == "not a directory":
        place.write_text("a file")
    engine = Full() if trouble == "full" else engine_with(1)
    assert Prefixes(place, model="a").save(engine, "talk") == 0


def test_a_conversation_is_known_by_its_beginning(tmp_path):
    chat = Wire(byte_tokenizer(tmp_path), template=TEMPLATE)
    first = [Message("system", "Be brief."), Message("user", "Hi")]
    longer = [*first, Message("assistant", "Hello"), Message("user", "And now?")]
    tools = [{"function": {"name": "look"}}]
    assert conversation_key(chat, first, ()) == conversation_key(chat, longer, ())
    others = [
        conversation_key(chat, [first[0], Message("user", "Ho")], ()),
        conversation_key(chat, [Message("system", "Be long."), first[1]], ()),
        conversation_key(chat, first, tools),
        conversation_key(Wire(byte_tokenizer(tmp_path), template=TEMPLATE + " "), first, ()),
    ]
    assert len({conversation_key(chat, first, ()), *others}) == 5


def test_weights_adapters_and_bits_tell_caches_apart(tmp_path):
    weights = tmp_path / "w.gguf"
    weights.write_text("weights")

    def place(**options) -> str:
        found = prefixes_of(tmp_path, weights, options=EngineOptions(**options), engine="e", bytes_per_token=1)
        return found.path("talk").name if found else ""

    exact, quantised = place(), place(kv_bits=8)
    weights.write_text("other weights")
    assert len({exact, quantised, place()}) == 3
    assert place(prefix_cache=False) == ""
