import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from tests.backends import tiny

from punie import wire
from punie.backends import _gguf, _mlx_files, _mlx_model, _weights
from punie.backends._engine import Piece
from punie.backends._mlx import mx
from punie.backends.mlx import Mlx, StopText, build
from punie.config import EngineOptions
from punie.errors import ContextTooLong, ModelError, WeightsDamaged, WeightsMissing

PROMPT = tuple(range(3, 40))


def model_directory(path: Path, *, seed: int = 0, wide: bool = False) -> Path:
    """The tiny model as an MLX directory. `wide`: half as many heads of twice the size, which can be quantised."""
    path.mkdir(parents=True, exist_ok=True)
    gguf = tiny.write_gguf(path / "tiny.gguf", seed=seed)
    _gguf.tokenizer(gguf).save(str(path / "tokenizer.json"))
    directory = _mlx_model.ensure_directory(gguf, tokenizer=path / "tokenizer.json", cache=path)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": tiny.TEMPLATE}))
    if wide:
        config = json.loads((directory / "config.json").read_text())
        size = tiny.HIDDEN // tiny.HEADS * 2
        config |= {"num_attention_heads": tiny.HEADS // 2, "num_key_value_heads": tiny.KEY_HEADS // 2, "head_dim": size}
        (directory / "config.json").write_text(json.dumps(config))
    return directory


def open_engine(
    path: Path, *, adapter: Path | None = None, end: frozenset[int] = frozenset(), options: EngineOptions | None = None
) -> Mlx:
    tokenizer = _gguf.tokenizer(tiny.write_gguf(path.parent / "for-tokens.gguf"))
    given = options or EngineOptions()
    return Mlx(path, tokenizer, context_window=512, end=end, adapter=adapter, options=given)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(directory):
    return open_engine(directory)


def pieces(
    engine, prompt=PROMPT, *, max_tokens=24, temperature=0.0, seed=0, stop=(), cancelled=None, **more
) -> list[Piece]:
    event = cancelled or threading.Event()
    asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stop": stop, "cancelled": event}
    return list(engine.generate(prompt, **asked, **more))


def text(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


def an_opening(engine) -> tuple[tuple[int, ...], str]:
    """A prompt, and the readable first character of what this model says to it: it can stand for `<tool_call>`."""
    for first in range(3, 200):
        said = text(pieces(engine, prompt=(first, *PROMPT), max_tokens=1))
        if re.fullmatch("[!-~]", said):
            return (first, *PROMPT), said
    raise AssertionError("this model says nothing readable")


def test_the_last_piece_carries_the_figures(engine):
    found = pieces(engine)
    last = found[-1]
    assert [piece.finish for piece in found[:-1]] == [None] * (len(found) - 1)
    assert (last.finish, last.prompt_tokens, last.cached_tokens) == ("length", len(PROMPT), 0)
    assert sum(piece.token_count for piece in found) == 24
    assert last.decode_s > 0
    assert last.prefill_s > 0


def greedy(directory: Path, prompt: tuple[int, ...], *, count: int) -> list[int]:
    """Without any cache: the whole sequence again for every token."""
    model, tokens = _mlx_model.load(directory), list(prompt)
    for _ in range(count):
        tokens.append(model(mx.array([tokens]))[0, -1].argmax().item())
    return tokens[len(prompt) :]


def test_it_says_what_the_model_says_however_it_was_used_before(engine, directory):
    wanted = engine._tokenizer.decode(greedy(directory, PROMPT, count=24), skip_special_tokens=True)
    whole = text(pieces(engine))
    assert wanted.startswith(whole.rstrip("\ufffd"))
    pieces(engine, prompt=PROMPT[:20])
    assert text(pieces(engine)) == whole
    pieces(engine, prompt=(*PROMPT[:10], 90, 91, 92))
    assert text(pieces(engine)) == whole


def test_a_prompt_that_is_still_cached_is_not_read_again(engine, directory):
    pieces(engine, prompt=tuple(range(50, 90)))
    assert pieces(engine)[-1].cached_tokens == 0
    said = greedy(directory, PROMPT, count=24)
    assert pieces(engine, prompt=(*PROMPT, 40, 41))[-1].cached_tokens >= len(PROMPT)
    pieces(engine)
    follow_up = (*PROMPT, *said, 7, 8)
    assert pieces(engine, prompt=follow_up)[-1].cached_tokens >= len(PROMPT) + 23
    assert pieces(engine, prompt=follow_up)[-1].cached_tokens == len(follow_up) - 1


def test_a_stop_string_ends_the_text_before_it(engine):
    free = text(pieces(engine))
    readable = re.search("[ -~]{3}", free)
    assert readable
    stop = readable[0]
    found = pieces(engine, stop=(stop, "never said"))
    assert text(found) == free[: free.index(stop)]
    assert found[-1].finish == "stop"


def test_an_end_token_ends_without_text(directory):
    first = greedy(directory, PROMPT, count=3)
    engine = open_engine(directory, end=frozenset({first[2]}))
    found = pieces(engine)
    assert (found[-1].finish, sum(piece.token_count for piece in found)) == ("stop", first.index(first[2]) + 1)


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
    assert len(found) == 4
    whole = text(pieces(engine))
    assert text(found) == whole[: len(text(found))], "and answers the next request"


def test_cancelled_while_it_reads_the_prompt(engine):
    event = threading.Event()
    event.set()
    found = pieces(engine, cancelled=event)
    assert [(piece.finish, piece.text) for piece in found] == [("cancelled", "")]
    assert text(pieces(engine)) == text(pieces(engine))


def test_dropping_the_iterator_keeps_the_engine_usable(engine):
    whole = text(pieces(engine))
    asked = {"max_tokens": 400, "temperature": 0, "seed": 0, "stop": (), "cancelled": threading.Event()}
    iterator = engine.generate(PROMPT, **asked)
    next(iterator)
    iterator.close()
    assert text(pieces(engine)) == whole


def test_what_does_not_fit_and_what_is_no_token(engine):
    with pytest.raises(ContextTooLong):
        pieces(engine, prompt=[5] * 600)
    with pytest.raises(ModelError, match="invalid tokens"):
        pieces(engine, prompt=[10**6])


def test_memory_that_cannot_be_had_ends_one_answer_only(engine, monkeypatch):
    whole = text(pieces(engine))

    def refuse() -> None:
        raise RuntimeError("[malloc] Unable to allocate 99 bytes.")

    monkeypatch.setattr(engine._cache, "quantise", refuse)
    with pytest.raises(ModelError, match="Unable to allocate"):
        pieces(engine, prompt=(*PROMPT, 90, 91))
    monkeypatch.undo()
    assert text(pieces(engine)) == whole


def test_a_closed_engine_says_so(engine):
    engine.close()
    with pytest.raises(ModelError, match="closed"):
        pieces(engine)


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "said", "stopped"),
    [
        (("END",), "tell me the ", True),
        (("ENDING",), "tell me the END", False),
        (("the", "me"), "tell ", True),
        ((), "tell me the END", False),
        (("",), "tell me the END", False),
    ],
)
def test_stop_strings_across_tokens(tmp_path, stop, said, stopped):
    tokenizer = tiny.byte_tokenizer(tmp_path)
    found, out = StopText(tokenizer, stop), ""
    for token in tokenizer.encode("tell me the END").ids:
        out += found.feed(token)
        if found.stopped:
            break
    assert (out + found.rest(), found.stopped) == (said, stopped)


def test_a_character_of_several_tokens_comes_whole(tmp_path):
    tokenizer = tiny.byte_tokenizer(tmp_path)
    found = StopText(tokenizer, ())
    assert [found.feed(token) for token in tokenizer.encode("a\u00e9").ids] == ["a", "", "\u00e9"]


# --- models --------------------------------------------------------------------------------------------------------


def logits(model) -> np.ndarray:
    return np.array(model(mx.array([PROMPT]))[0])


def test_a_directory_holds_the_same_model_as_the_gguf(directory, tmp_path):
    gguf = tiny.write_gguf(tmp_path / "tiny.gguf")
    np.testing.assert_allclose(logits(_mlx_model.load(directory)), logits(_mlx_model.load(gguf)), rtol=1e-5, atol=1e-5)


def test_a_conversion_cut_short_is_done_again(directory, tmp_path):
    tokenizer = directory / "tokenizer.json"
    part = tmp_path / f"{directory.name}.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    gguf = tiny.write_gguf(tmp_path / "tiny.gguf")
    made = _mlx_model.ensure_directory(gguf, tokenizer=tokenizer, cache=tmp_path)
    assert {p.name for p in made.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    _mlx_model.ensure_directory(gguf, tokenizer=tokenizer, cache=tmp_path)
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp


def test_an_adapter_is_fused_exactly(directory, tmp_path):
    from mlx_lm.tuner.utils import load_adapters

    adapter = tiny.write_adapter(tmp_path / "adapter")
    beside = load_adapters(_mlx_model.load(directory), str(adapter))
    fused = _mlx_model.load(directory, adapter=adapter)
    assert not [name for name, _ in fused.named_modules() if "lora" in name]
    assert len(dict(tree_flatten(fused.parameters()))) == len(
        dict(tree_flatten(_mlx_model.load(directory).parameters()))
    )
    np.testing.assert_allclose(logits(fused), logits(beside), rtol=1e-3, atol=1e-3)
    assert np.abs(logits(fused) - logits(_mlx_model.load(directory))).max() > 0.1


def test_on_quantised_weights_an_adapter_stays_beside_them(directory, tmp_path):
    from mlx_lm.utils import quantize_model

    config = json.loads((directory / "config.json").read_text())
    model, config = quantize_model(_mlx_model.load(directory), config, group_size=32, bits=8)
    target = tmp_path / "quantised"
    target.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(target / "model.safetensors"), weights, {"format": "mlx"})
    (target / "config.json").write_text(json.dumps(config))
    adapted = _mlx_model.load(target, adapter=tiny.write_adapter(tmp_path / "adapter"))
    kept = [name for name in dict(tree_flatten(adapted.parameters())) if name.endswith("lora_a")]
    assert len(kept) == 7 * tiny.LAYERS


def test_an_adapter_of_another_model_is_refused(directory, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_parameters"]["rank"] = 3
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not fit"):
        _mlx_model.load(directory, adapter=adapter)
    with pytest.raises(WeightsMissing, match="no adapter"):
        _mlx_model.load(directory, adapter=tmp_path / "none")


def test_directories_that_are_no_models(directory, tmp_path):
    with pytest.raises(WeightsMissing):
        _mlx_model.load(tmp_path / "none")
    with pytest.raises(WeightsMissing, match="not an MLX model"):
        _mlx_model.load(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((directory / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsDamaged, match="broken"):
        _mlx_model.load(broken)
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json"):
        _mlx_files.directory_files(str(broken))
    with pytest.raises(WeightsMissing, match="no directory"):
        _mlx_files.directory_files(str(tmp_path / "none"))


def test_what_a_directory_says_about_itself(directory, tmp_path):
    found = _mlx_files.directory_files(str(directory))
    assert (found.template, found.context_window, found.end) == (tiny.TEMPLATE, tiny.WINDOW, {2})
    named = tmp_path / "named"
    named.mkdir()
    for name, content in {
        "tokenizer.json": "{}",
        "config.json": "{}",
        "generation_config.json": json.dumps({"eos_token_id": [4, 5]}),
        "tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": "T"}]}),
    }.items():
        (named / name).write_text(content)
    found = _mlx_files.directory_files(str(named))
    assert (found.template, found.end) == ("T", {4, 5})
    (named / "chat_template.jinja").write_text("J")
    assert _mlx_files.directory_files(str(named)).template == "J"
    adapter = tiny.write_adapter(tmp_path / "adapter")
    assert found.template_with(adapter) == "T"
    (adapter / "chat_template.jinja").write_text("A")
    assert found.template_with(adapter) == "A"


async def test_an_agent_talks_to_it(directory):
    from pydantic_ai import Agent

    model = build(str(directory), None, cache_dir=directory, on_progress=_weights.silent)
    try:
        result = await Agent(model).run("hello", model_settings={"max_tokens": 8})
        assert result.usage.output_tokens == 8
        assert model.model_name == directory.name
    finally:
        model.close()


ENDING = """
from punie.backends._engine import Worker
from punie.backends._mlx import mx

compiled = [mx.compile(lambda x, n=n: x + n) for n in range(2000)]
worker = Worker("mlx")
worker.submit(lambda: [function(mx.array(1.0)) for function in compiled]).result()
worker.stop(timeout=60)
"""


def test_a_process_ends_well_however_much_its_worker_compiled():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- real weights --------------------------------------------------------------------------------------------------


def test_mlx_and_llama_cpp_make_the_same_call(weights_cache):
    """Base and adapter in float32 here, merged at eight bits there."""
    from punie.backends.llamacpp import LlamaCpp

    adapter = _weights.shipped_adapter()
    found = _mlx_files.embedded_files(weights_cache)
    renderer = wire.Wire.load(found.tokenizer, template=found.template_with(adapter), view=wire.View())
    merged = _weights.embedded_files(weights_cache, adapter=adapter)
    ours = Mlx(found.weights, renderer.tokenizer, context_window=2048, end=found.end, adapter=adapter)
    theirs = LlamaCpp(merged.weights, context_window=2048)
    from punie import tools
    from punie.config import TOOL_NAMES

    offered = wire.declarations([tool.tool_def for tool in tools.toolset(TOOL_NAMES).tools.values()])
    questions = ["Where is the class Flask defined?", "Find all classes that inherit from Protocol"]
    for question in questions:
        prompt = renderer.prompt([wire.Message("user", question)], offered)
        answers = [wire.parse(text(pieces(e, prompt, max_tokens=80, stop=("<|im_end|>",)))) for e in (ours, theirs)]
        assert answers[0].calls, question
        assert answers[0].calls == answers[1].calls
    theirs.close()
