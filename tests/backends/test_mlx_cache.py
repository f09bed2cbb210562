import json
import struct
import threading

import pytest
from tests.backends import tiny
from tests.backends.test_mlx import PROMPT, greedy, model_directory, open_engine, pieces, text

from punie.backends._mlx_cache import fingerprint
from punie.backends._mlx_model import load
from punie.local_models import EngineOptions

FOLLOW_UP = (*PROMPT, 90, 91, 92)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def wide_directory(tmp_path_factory):
    """Heads of 32 numbers, which can be quantised."""
    return model_directory(tmp_path_factory.mktemp("wide"), wide=True)


@pytest.fixture(scope="module")
def saved(directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a conversation.cache"
    engine = open_engine(directory)
    pieces(engine)
    assert engine.save(path) == len(engine._cache.tokens) >= len(PROMPT) + 23
    return path


def test_another_process_goes_on_where_this_one_was(directory, saved):
    wanted = text(pieces(open_engine(directory), prompt=FOLLOW_UP))
    engine = open_engine(directory)
    assert engine.restore(saved) >= len(PROMPT)
    found = pieces(engine, prompt=FOLLOW_UP)
    assert (text(found), found[-1].cached_tokens) == (wanted, len(PROMPT))


def test_what_was_said_is_kept_too(directory, saved):
    engine = open_engine(directory)
    count = engine.restore(saved)
    whole = (*PROMPT, *greedy(directory, PROMPT, count=24), 7, 8)
    assert pieces(engine, prompt=whole)[-1].cached_tokens == count


def test_a_restored_cache_can_be_saved_again(directory, saved, tmp_path):
    engine = open_engine(directory)
    count = engine.restore(saved)
    assert engine.save(tmp_path / "again") == count
    assert [p.name for p in tmp_path.iterdir()] == ["again"], "nothing half written is left"
    assert open_engine(directory).restore(tmp_path / "again") == count


def test_an_engine_that_has_read_nothing_writes_nothing(directory, tmp_path):
    assert open_engine(directory).save(tmp_path / "none") == 0
    assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_nothing_is_kept(directory, tmp_path):
    engine = open_engine(directory)
    pieces(engine, max_tokens=1)
    (tmp_path / "file").write_text("")
    assert engine.save(tmp_path / "file" / "cache") == 0


def test_caches_of_other_models_are_refused(directory, saved, tmp_path):
    assert open_engine(model_directory(tmp_path / "other", seed=9)).restore(saved) == 0
    adapter = tiny.write_adapter(tmp_path / "adapter")
    assert open_engine(directory, adapter=adapter).restore(saved) == 0


def test_models_are_told_apart(directory, tmp_path):
    adapters = [tiny.write_adapter(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert len({fingerprint(load(directory, adapter=adapter)) for adapter in (None, *adapters)}) == 3
    assert fingerprint(load(directory)) == fingerprint(load(directory))


def test_damaged_files_are_refused_and_change_nothing(directory, saved, tmp_path):
    engine = open_engine(directory)
    wanted = text(pieces(engine))
    whole, path = saved.read_bytes(), tmp_path / "damaged"
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    cuts = [b"", whole[:4], whole[: header // 2], whole[:header], whole[:-1], b"\0" * 64, b"{}", b"\xff" * 64]
    cuts += [whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in (header + 9, len(whole) - 3)]
    cuts += [whole.replace(b"punie-kv-1", b"punie-kv-9"), whole.replace(b'"tokens":"3,', b'"tokens":"x,')]
    cuts += [whole.replace(b'"tokens":"3,', b'"tokens":"3 ')]
    for content in cuts:
        path.write_bytes(content)
        assert engine.restore(path) == 0
    assert engine.restore(tmp_path / "none") == engine.restore(tmp_path) == 0
    assert text(pieces(engine)) == wanted
    assert engine._cache.tokens


def test_a_header_with_flipped_bytes_never_gives_another_text(directory, saved, tmp_path):
    whole, path = bytearray(saved.read_bytes()), tmp_path / "flipped"
    header = struct.unpack("<Q", whole[:8])[0]
    described = json.loads(whole[8 : 8 + header])
    assert set(described["__metadata__"]) >= {"tokens", "model", "format"}
    wanted = text(pieces(open_engine(directory), prompt=FOLLOW_UP))
    engine = open_engine(directory)
    for at in range(8, 8 + header, 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if engine.restore(path):
            assert text(pieces(engine, prompt=FOLLOW_UP)) == wanted


# --- bits ----------------------------------------------------------------------------------------------------------


def options_of(bits: int, *, after: int = 30) -> EngineOptions:
    return EngineOptions.model_validate({"kv_bits": bits, "kv_quantize_after": after})


def test_beyond_the_threshold_the_cache_is_smaller(wide_directory):
    exact, small = open_engine(wide_directory), open_engine(wide_directory, options=options_of(8))
    wanted = text(pieces(exact))
    pieces(small)
    assert small._cache.layers[0].bits == 8
    assert small._cache.layers[0].nbytes < exact._cache.layers[0].nbytes / 2
    late = open_engine(wide_directory, options=options_of(8, after=400))
    assert text(pieces(late)) == wanted
    assert not hasattr(late._cache.layers[0], "bits")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_cache_is_cut_back_and_kept(wide_directory, bits, tmp_path):
    engine = open_engine(wide_directory, options=options_of(bits))
    whole = text(pieces(engine))
    assert pieces(engine, prompt=FOLLOW_UP)[-1].cached_tokens == len(PROMPT)
    assert text(pieces(engine)) == whole
    count = engine.save(tmp_path / "small")
    assert count
    again = open_engine(wide_directory, options=options_of(bits))
    assert again.restore(tmp_path / "small") == count
    assert text(pieces(again)) == whole
    assert open_engine(wide_directory).restore(tmp_path / "small") == 0, "this one wants it exact"


def test_guessing_is_lossless_on_both_sides_of_the_threshold(wide_directory):
    prompt = (*PROMPT, *PROMPT)
    for after in (20, 80, 95, 110, 128):
        texts = [
            text(pieces(open_engine(wide_directory, options=options_of(4, after=after)), prompt=prompt, **asked))
            for asked in ({"max_tokens": 60}, {"max_tokens": 60, "speculate": True})
        ]
        assert texts[0] == texts[1]


def test_heads_that_no_group_divides_stay_exact(directory):
    exact = text(pieces(open_engine(directory)))
    assert text(pieces(open_engine(directory, options=options_of(4)))) == exact


def test_cutting_the_cache_after_a_cancelled_answer(directory):
    """One step is always under way when an answer is cancelled: what it read must not stay behind."""
    engine, event = open_engine(directory), threading.Event()
    asked = {"max_tokens": 50, "temperature": 0, "seed": 0, "stop": (), "cancelled": event}
    for number, _ in enumerate(engine.generate(PROMPT, **asked)):
        if number == 4:
            event.set()
    assert engine._cache.offset == len(engine._cache.tokens) == len(PROMPT) + 5
    assert engine.save(directory.parent / "cut") == len(PROMPT) + 5
