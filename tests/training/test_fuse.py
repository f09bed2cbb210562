import json
import resource
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import tiny

from punie.backends import _mlx_model
from punie.backends._mlx import mx
from punie.backends._mlx_files import directory_files
from punie.cli import main
from punie.errors import ConfigError, ModelError, UsageError, WeightsDamaged
from punie.wire import Example
from punie_training.base import digest
from punie_training.examples import renderer_for
from punie_training.fuse import fuse, survival
from punie_training.probes import probes
from punie_training.trained import Trained

TOKENS = tuple(range(3, 90))
PROBES = (Example(TOKENS, (0,) * 80 + (1,) * 7), Example((*TOKENS[:20], *range(100, 140)), (0,) * 50 + (1,) * 10))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return tiny.write_adapter(tmp_path / "adapter")


def logits(path: Path, *, adapter: Path | None = None) -> np.ndarray:
    return np.array(_mlx_model.load(path, adapter=adapter)(mx.array([TOKENS])))


def test_the_merged_model_answers_as_the_adapter_does(base: Path, adapter: Path, tmp_path: Path) -> None:
    fused = fuse(Trained.load(adapter), base=base, out=tmp_path / "out", group=32, probes=PROBES)
    wanted = logits(base, adapter=adapter)
    assert np.abs(logits(tmp_path / "out") - wanted).max() < 1e-4
    assert np.abs(logits(base) - wanted).max() > 0.1, "the adapter must show"
    assert fused.agreement
    assert (fused.agreement.value, fused.agreement.conversations) == (1.0, 2)
    assert fused.agreement.tokens == 66 + 39, "what both begin with counts for neither"


def test_eight_bits_keep_the_adapter_and_four_lose_some(base: Path, adapter: Path, tmp_path: Path) -> None:
    fused = fuse(Trained.load(adapter), base=base, out=tmp_path / "out", bits=8, group=32, probes=PROBES)
    by_bits = {s.bits: s for s in fused.survival}
    assert list(by_bits) == [4, 5, 6, 8]
    assert by_bits[8].cosine > 0.999
    assert by_bits[4].cosine < by_bits[5].cosine < by_bits[6].cosine < by_bits[8].cosine
    assert by_bits[8].projection == pytest.approx(1, abs=0.01)
    assert fused.agreement
    assert fused.agreement.value > 0.9
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    wanted = logits(base, adapter=adapter)
    assert np.abs(logits(tmp_path / "out") - wanted).mean() < 0.1 * np.abs(logits(base) - wanted).mean()


def test_survival_is_what_the_definition_says(base: Path, adapter: Path) -> None:
    """One layer by hand, rounded in numpy as MLX does it: 15 steps from the least to the largest of 32 weights."""
    trained, name = Trained.load(adapter), "model.layers.0.self_attn.v_proj"
    layer = dict(_mlx_model.load(base).named_modules())[name]
    weight, delta = np.array(layer.weight), trained.lora.changed(name, np.zeros_like(np.array(layer.weight)))
    groups = (weight + delta).reshape(-1, 32)
    low, step = groups.min(1, keepdims=True), np.ptp(groups, axis=1, keepdims=True) / 15
    change = (np.round((groups - low) / step) * step + low).reshape(weight.shape) - weight
    cosine = (change * delta).sum() / np.sqrt((change**2).sum() * (delta**2).sum())
    alone = Trained(trained.directory, trained.lora, trained.rank, "", {})
    assert survival({name: layer}, alone, group=32)[0].cosine == pytest.approx(cosine, abs=0.02)


def test_layers_of_a_quantised_base_are_merged_at_more_bits_and_the_others_left(base: Path, tmp_path: Path) -> None:
    nothing = Trained.load(tiny.write_adapter(tmp_path / "nothing", amplitude=0.0))
    four = fuse(nothing, base=base, out=tmp_path / "four", bits=4, group=32).directory
    adapter = tiny.write_adapter(tmp_path / "adapter", amplitude=0.1)
    eight = fuse(Trained.load(adapter), base=four, out=tmp_path / "eight", bits=8, group=32, probes=PROBES)
    model = _mlx_model.load(eight.directory)
    attention, inner = model.model.layers[1].self_attn, model.model.layers[1].mlp
    assert (attention.q_proj.bits, inner.up_proj.bits) == (8, 4)
    beside = logits(four, adapter=adapter)
    assert np.abs(logits(eight.directory) - beside).mean() < 0.1 * np.abs(logits(four) - beside).mean()
    whole = fuse(Trained.load(adapter), base=four, out=tmp_path / "whole", group=32).directory
    assert np.abs(logits(whole) - beside).max() < 1e-3
    assert not hasattr(_mlx_model.load(whole).model.layers[1].self_attn.q_proj, "bits")


def test_punie_and_mlx_lm_load_the_directory(base: Path, adapter: Path, tmp_path: Path) -> None:
    from mlx_lm import load

    (adapter / "chat_template.jinja").write_text(tiny.TEMPLATE + " ")
    out = fuse(Trained.load(adapter), base=base, out=tmp_path / "out").directory
    files = directory_files(str(out))
    assert (files.context_window, files.end, files.template) == (tiny.WINDOW, frozenset({2}), tiny.TEMPLATE + " ")
    _, tokenizer = load(str(out))[:2]
    talk = [{"role": "user", "content": "hello the 12 é"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhello the 12 é<|im_end|>\n<|im_start|>assistant\n "
    assert tokenizer.decode(tokenizer.encode("hello the 12 é", add_special_tokens=False)) == "hello the 12 é"
    assert tokenizer.eos_token_ids == {2}


def test_the_card_says_base_data_recipe_licences_and_scores(base: Path, adapter: Path, tmp_path: Path) -> None:
    rate = {"value": 0.9, "low": 0.85, "high": 0.94, "n": 214}
    rates = ("tool_recall", "direct_rate", "valid_calls", "first_call_right", "answer_right", "looped")
    scores = {"n": 284, "f1": 0.8765, **dict.fromkeys((*rates, "invented_paths"), rate)}
    noted = {"base": digest(base), "recipe": "abc", "data": "def", "rows": 70, "update": 9, "name": "tiny one"}
    (adapter / "manifest.json").write_text(json.dumps({**noted, "scores": scores}))
    out = fuse(Trained.load(adapter), base=base, out=tmp_path / "out", bits=6, group=32).directory
    page = (out / "README.md").read_text()
    assert page.startswith("# tiny one\n")
    for text in (digest(base), "`abc`, 70 rows, 9 updates", "`def`", "MIT", "rank 2, scale 2", "6 bits", "0.876"):
        assert text in page
    assert "| first call right | 90.0% | 85.0% to 94.0% | 214 |" in page


def test_an_adapter_of_another_base_or_rank_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            fuse(Trained.load(adapter), base=base, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    (adapter / "manifest.json").write_text('{"base": "0123456789abcdef", "base_name": "x.gguf"}')
    refused("was trained on weights 0123456789ab, these are")
    (adapter / "manifest.json").unlink()
    factors = load_file(adapter / "adapters.safetensors")
    name = "model.layers.1.self_attn.q_proj.lora_"
    save_file({**factors, f"{name}a": np.zeros((99, 2), np.float32)}, adapter / "adapters.safetensors")
    refused(r"changes model\.layers\.1\.self_attn\.q_proj of shape \(99, 64\), the model has \(64, 64\)")
    deep = {f"model.layers.9.self_attn.q_proj.lora_{x}": factors[name + x] for x in "ab"}
    save_file({**factors, **deep}, adapter / "adapters.safetensors")
    refused("which the model does not have")
    wide = {name + "a": np.zeros((64, 3), np.float32), name + "b": np.zeros((3, 64), np.float32)}
    save_file({**factors, **wide}, adapter / "adapters.safetensors")
    refused("says rank 2, but model.layers.1.self_attn.q_proj has rank 3")


def test_damaged_notes_and_places_that_are_taken(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        fuse(Trained.load(adapter), base=base, out=adapter)
    (adapter / "manifest.json").write_text("{")
    with pytest.raises(WeightsDamaged, match="not valid JSON"):
        Trained.load(adapter)
    (adapter / "adapter_config.json").write_text('{"lora_parameters": {"scale": 2.0}}')
    with pytest.raises(WeightsDamaged, match="no rank"):
        Trained.load(adapter)


def test_a_full_disk_leaves_nothing_behind(base: Path, adapter: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ModelError, match="cannot be stored"):
            fuse(Trained.load(adapter), base=base, out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_probes_come_from_a_data_file_or_from_general_questions(base: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the"}]
    rows = [{"id": str(i), "family": "direct", "messages": said} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = probes(base, template=tiny.TEMPLATE, data=tmp_path / "rows.jsonl", count=3)
    assert len(found) == 3
    assert sum(found[0].mask) > 0
    assert len(probes(base, template=tiny.TEMPLATE, count=5)) == 5


def test_the_command_prints_survival_and_agreement(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "chat_template.jinja").write_text(tiny.TEMPLATE)
    rest = ["--base", str(base), "--out", str(tmp_path / "out"), "--bits", "8", "--group", "32", "--probes", "2"]
    assert main(["train", "fuse", str(adapter), *rest]) == 0
    printed = capsys.readouterr().out
    assert "bits  survival" in printed
    assert " in 2 conversations (8 bits)" in printed
    assert main(["train", "fuse", str(adapter), *rest]) == 2
    assert "not empty" in capsys.readouterr().err


def test_a_row_with_tools_of_its_own_is_probed_with_them(base: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the"}]
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    weather = {"type": "function", "function": {"name": "weather", "description": "Tell it.", "parameters": schema}}
    row = {"id": "1", "family": "imported", "messages": said, "tools": [weather]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    template = "{% for t in tools %}{{ t.function.name }} {% endfor %}" + tiny.TEMPLATE
    [found] = probes(base, template=template, data=tmp_path / "rows.jsonl")
    text = renderer_for(base, template=template).tokenizer.decode(list(found.tokens), skip_special_tokens=False)
    assert "weather" in text
    assert "find_symbol" not in text
