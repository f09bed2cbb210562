import json
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.backends import tiny

from punie.backends import _memory
from punie.backends._memory import Plan, available_bytes, largest_context, plan_for, refuse_if_too_big, require
from punie.backends.catalogue import EMBEDDED
from punie.config import EngineOptions
from punie.errors import NotEnoughMemory, WeightsDamaged, WeightsMissing

GB = 1_000_000_000
CODER_30B = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}


def directory(path, config, *, kind="float16", weights=1024):
    path.mkdir()
    arrays = {"model.embed": np.zeros(weights, np.float16), "model.norm.weight": np.zeros(8, np.dtype(kind))}
    save_file(arrays, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


# --- plans ---


def test_a_gguf_file_is_planned_from_its_header(tiny_gguf):
    plan = plan_for(tiny_gguf, context=100)
    weights = sum(values.nbytes for values in tiny.tensors(0).values())
    size = tiny.HIDDEN // tiny.HEADS
    assert plan.weights == weights
    assert plan.cache == 100 * tiny.LAYERS * tiny.KEY_HEADS * size * 2 * 2, "keys and values of 16 bits"
    assert plan.total == plan.weights + plan.cache + plan.scratch


def test_a_directory_is_planned_from_config_and_headers(tmp_path):
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
    plan = plan_for(directory(tmp_path / "half", config), context=100)
    assert plan.weights == 1024 * 2 + 8 * 2
    assert plan.cache == 100 * 2 * 2 * 16 * 2 * 2
    full = plan_for(directory(tmp_path / "full", config, kind="float32"), context=100)
    assert full.cache == 2 * plan.cache, "MLX keeps its cache in the precision of the weights that compute"


def test_a_mixture_of_experts_keeps_every_expert_and_reads_with_few(tmp_path):
    plan = plan_for(directory(tmp_path / "moe", CODER_30B), context=32_768)
    assert plan.cache == 32_768 * 48 * 4 * 128 * 2 * 2, "3.2 GB"
    assert plan.shape.inner == 8 * 768
    dense = {**CODER_30B, "num_experts_per_tok": 0}
    assert plan_for(directory(tmp_path / "dense", dense), context=1).shape.inner == 6144


def test_the_numbers_of_a_model_that_also_sees_are_found(tmp_path):
    nested = {"model_type": "any", "text_config": CODER_30B}
    assert plan_for(directory(tmp_path / "nested", nested), context=1).shape.layers == 48


def test_a_quantised_cache_is_smaller_from_where_it_begins(tiny_gguf):
    plan = plan_for(tiny_gguf, context=4000)
    assert plan_for(tiny_gguf, context=4000, kv_bits=8).cache == int(plan.cache * 8.5 / 16)
    assert plan_for(tiny_gguf, context=4000, kv_bits=4).cache == int(plan.cache * 4.5 / 16)
    assert plan_for(tiny_gguf, context=4000, kv_bits=4, quantise_after=4000).cache == plan.cache
    assert plan_for(tiny_gguf, context=4000, kv_bits=4, quantise_after=2000).cache == plan.cache // 2


def test_an_adapter_is_added(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    more = plan_for(tiny_gguf, context=1, adapter=adapter).weights - plan_for(tiny_gguf, context=1).weights
    assert more == 2 * tiny.LAYERS * 2 * (4 * tiny.HIDDEN + 2 * tiny.HIDDEN + 2 * tiny.HIDDEN // 2)


def test_every_part_of_a_split_file_counts(tiny_gguf):
    first, second = (tiny_gguf.with_name(f"x-0000{part}-of-00002.gguf") for part in (1, 2))
    whole = plan_for(tiny_gguf, context=1).weights
    first.write_bytes(tiny_gguf.read_bytes())
    with pytest.raises(WeightsMissing, match="00002-of-00002"):
        plan_for(first, context=1)
    second.write_bytes(tiny_gguf.read_bytes())
    assert plan_for(first, context=1).weights == 2 * whole


@pytest.mark.parametrize("cut", [1, 5_000, 20_000])
def test_cut_off_files_are_noticed_before_anything_is_loaded(tiny_gguf, tmp_path, cut):
    tiny_gguf.write_bytes(tiny_gguf.read_bytes()[:-cut])
    with pytest.raises(WeightsDamaged, match="complete GGUF") as caught:
        plan_for(tiny_gguf, context=1)
    assert "again" in caught.value.next_step
    path = directory(tmp_path / "model", CODER_30B, weights=20_000)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(WeightsDamaged, match="complete safetensors") as caught:
        plan_for(path, context=1)
    assert "again" in caught.value.next_step


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"GGUF" + b"\xff" * 60, b"<html>" * 20])
def test_what_is_no_gguf_file(tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsDamaged, match="GGUF"):
        plan_for(path, context=1)


def test_a_gguf_header_cut_anywhere_is_damage_and_nothing_else(tiny_gguf, tmp_path):
    whole, path = tiny_gguf.read_bytes(), tmp_path / "cut.gguf"
    for end in range(0, 9_000, 37):
        path.write_bytes(whole[:end])
        with pytest.raises(WeightsDamaged):
            plan_for(path, context=1)


@pytest.mark.parametrize(
    ("content", "error"), [("", WeightsDamaged), ("[1]", WeightsDamaged), ("{", WeightsDamaged), (None, WeightsMissing)]
)
def test_a_directory_without_a_usable_config(tmp_path, content, error):
    path = directory(tmp_path / "model", {})
    if content is None:
        (path / "config.json").unlink()
    else:
        (path / "config.json").write_text(content)
    with pytest.raises(error, match=r"config\.json"):
        plan_for(path, context=1)
    (path / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="safetensors"):
        plan_for(path, context=1)


# --- refusal ---


def big(context=32_768):
    per_token = 48 * 4 * 128 * 2 * 2
    return Plan(
        weights=17 * GB,
        cache=per_token * context,
        scratch=200_000_000,
        context=context,
        cache_per_token=per_token,
        shape=_memory.Shape(),
        cache_bits=16,
    )


def test_what_fits_is_not_refused():
    refuse_if_too_big(big(), big().total)


def test_a_refusal_names_a_quantised_cache_and_a_smaller_context_that_fit():
    available = 19 * GB
    with pytest.raises(NotEnoughMemory) as caught:
        refuse_if_too_big(big(), available, name="coder")
    assert "coder needs 20.4 GB" in caught.value.cause
    assert "19.0 GB" in caught.value.cause
    assert "engine.kv_bits = 8" in caught.value.next_step
    context = largest_context(big(), available)
    assert f"engine.context = {context}" in caught.value.next_step
    assert big(context).total <= available < big(context + 1024).total
    assert len(str(caught.value).splitlines()) <= 3


def test_a_refusal_names_a_smaller_model_where_the_weights_alone_are_too_much():
    with pytest.raises(NotEnoughMemory) as caught:
        refuse_if_too_big(big(), 4 * GB)
    assert "context" not in caught.value.next_step
    assert "kv_bits" not in caught.value.next_step
    assert f"local:{EMBEDDED}" in caught.value.next_step
    with pytest.raises(NotEnoughMemory, match="openai:") as caught:
        refuse_if_too_big(big(), 1_000_000)
    assert "local:" not in caught.value.next_step


def test_an_engine_asks_in_one_call(tiny_gguf):
    assert require(tiny_gguf, context=64, options=EngineOptions(memory_gb=1)).context == 64
    with pytest.raises(NotEnoughMemory, match=r"tiny\.gguf"):
        require(tiny_gguf, context=64, options=EngineOptions(memory_gb=0.0001))


# --- this machine ---


def machine(root, *, groups="0::/\n", files: Mapping[str, str] = MappingProxyType({})):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        file = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_the_users_word_counts():
    assert available_bytes(2.5) == 2_500_000_000


@pytest.mark.skipif(_memory.sys.platform != "linux", reason="reads /proc")
class TestLinux:
    def test_nearly_all_that_the_kernel_calls_available(self, tmp_path):
        assert available_bytes(root=machine(tmp_path)) == int(8_000_000 * 1024 * 0.95)

    def test_a_container_has_what_its_group_has_left(self, tmp_path):
        files = {
            "memory_dot_max": "max\n",
            "box__memory_dot_max": "2000000000\n",
            "box__memory_dot_current": "1500000000\n",
            "box__memory_dot_stat": "anon 1\ninactive_file 300000000\n",
            "box__inner__memory_dot_max": "max\n",
            "box__inner__memory_dot_current": "1\n",
        }
        root = machine(tmp_path, groups="0::/box/inner\n", files=files)
        assert available_bytes(root=root) == int(800_000_000 * 0.95), "the limit of the group above holds too"

    def test_the_older_kind_of_group(self, tmp_path):
        files = {
            "memory__box__memory_dot_limit_in_bytes": "1000000000",
            "memory__box__memory_dot_usage_in_bytes": "400000000",
        }
        root = machine(tmp_path, groups="4:memory:/box\n9:name=systemd:/\n", files=files)
        assert available_bytes(root=root) == int(600_000_000 * 0.95)

    def test_this_machine_has_some(self):
        assert 10_000_000 < available_bytes() < 1 << 50
