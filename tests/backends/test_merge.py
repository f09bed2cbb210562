import json
import threading

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file
from tests.backends import tiny

from punie.backends import _files, _gguf, _merge
from punie.backends._weights import gguf_files, silent
from punie.backends.llamacpp import LlamaCpp
from punie.errors import ConfigError, WeightsDamaged, WeightsMissing


def merged(tiny_gguf, adapter, target):
    _merge.merge(tiny_gguf, _merge.Adapter.load(adapter), target=target, on_progress=silent)
    return target


def test_merged_weights_are_base_plus_scaled_product(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    factors = {name: values.astype(np.float32) for name, values in load_file(adapter / "adapters.safetensors").items()}
    before = _gguf.load_state(tiny_gguf)
    after = _gguf.load_state(merged(tiny_gguf, adapter, tmp_path / "merged.gguf"))
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        name = f"model.layers.1.{layer}"
        wanted = before[f"{name}.weight"] + 2.0 * (factors[f"{name}.lora_a"] @ factors[f"{name}.lora_b"]).T
        found = after[f"{name}.weight"]
        assert np.abs(found - wanted).max() < 0.01, "no more than eight bits lose"
        assert np.abs(found - before[f"{name}.weight"]).max() > 0.1, "the adapter must show"


def test_what_the_adapter_does_not_touch_is_kept_as_it_is(tiny_gguf, tmp_path):
    path = merged(tiny_gguf, tiny.write_adapter(tmp_path / "adapter"), tmp_path / "merged.gguf")
    kinds = {tensor.name: tensor.tensor_type for tensor in _gguf.open_gguf(path).tensors}
    assert kinds["blk.0.attn_q.weight"] == GGMLQuantizationType.Q8_0
    assert kinds["blk.0.ffn_up.weight"] == kinds["output_norm.weight"] == GGMLQuantizationType.F32
    assert _gguf.chat_template(path) == tiny.TEMPLATE
    text = "hello the 12 é"
    assert _gguf.tokenizer(path).encode(text).ids == _gguf.tokenizer(tiny_gguf).encode(text).ids


def test_llama_cpp_runs_the_merged_file(tiny_gguf, tmp_path):
    def answer(path):
        engine = LlamaCpp(path, context_window=128, threads=1)
        asked = {"max_tokens": 12, "temperature": 0, "seed": 0, "stop": (), "cancelled": threading.Event()}
        text = "".join(piece.text for piece in engine.generate(range(3, 40), **asked))
        engine.close()
        return text

    nothing = tiny.write_adapter(tmp_path / "nothing", amplitude=0.0)
    much = tiny.write_adapter(tmp_path / "much", amplitude=1.0)
    base = answer(tiny_gguf)
    assert answer(merged(tiny_gguf, nothing, tmp_path / "same.gguf")) == base
    assert answer(merged(tiny_gguf, much, tmp_path / "other.gguf")) != base


def test_merging_happens_once_and_again_when_the_result_is_damaged(tiny_gguf, tmp_path):
    adapter, stages = tiny.write_adapter(tmp_path / "adapter"), []

    def files():
        return gguf_files(
            tiny_gguf, adapter=adapter, cache_dir=tmp_path / "cache", on_progress=lambda *a: stages.append(a)
        )

    first = files().weights
    count = len(stages)
    assert count == 2 + 9 * tiny.LAYERS
    assert stages[-1] == ("merge", count, count)
    assert files().weights == first
    assert len(stages) == count
    good = _files.sha256(first)
    first.write_bytes(first.read_bytes()[:1000])
    assert _files.sha256(files().weights) == good


def test_few_merged_files_are_kept(tiny_gguf, tmp_path):
    adapters = [tiny.write_adapter(tmp_path / f"adapter{seed}", seed=seed) for seed in range(6)]
    made = [gguf_files(tiny_gguf, adapter=adapter, cache_dir=tmp_path / "cache").weights for adapter in adapters]
    last = made[-1]
    kept = list(last.parent.glob("*.Q8_0.gguf"))
    assert len(kept) == 4
    assert last in kept


def test_an_adapter_of_another_model_is_refused(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    loaded = _merge.Adapter.load(adapter)
    wide = {"model.layers.0.self_attn.q_proj": (np.zeros((99, 2), np.float32), np.zeros((2, 99), np.float32))}
    with pytest.raises(ConfigError, match="does not fit"):
        _merge.merge(tiny_gguf, _merge.Adapter(loaded.scale, wide), target=tmp_path / "x.gguf", on_progress=silent)
    deep = {"model.layers.7.self_attn.q_proj": loaded.factors["model.layers.0.self_attn.q_proj"]}
    with pytest.raises(ConfigError, match="no such layer"):
        _merge.merge(tiny_gguf, _merge.Adapter(loaded.scale, deep), target=tmp_path / "x.gguf", on_progress=silent)


def test_directories_that_are_no_lora_adapters(tmp_path):
    with pytest.raises(WeightsMissing, match=r"adapter_config\.json"):
        _merge.Adapter.load(tmp_path)
    with pytest.raises(ConfigError, match="'full' cannot be merged"):
        _merge.Adapter.load(tiny.write_adapter(tmp_path / "full", kind="full"))
    with pytest.raises(WeightsDamaged, match=r"no fitting model.*\.m"):
        _merge.Adapter.load(tiny.write_adapter(tmp_path / "dora", kind="dora"))
    broken = tiny.write_adapter(tmp_path / "broken")
    (broken / "adapters.safetensors").write_bytes(b"not tensors")
    with pytest.raises(WeightsDamaged, match="broken"):
        _merge.Adapter.load(broken)
    (broken / "adapter_config.json").write_text(json.dumps({"lora_parameters": {}}))
    with pytest.raises(WeightsDamaged, match="broken"):
        _merge.Adapter.load(broken)
