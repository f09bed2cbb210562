"""Adapters that do not belong to the model, or are not whole: what each engine says before it loads anything."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import mlx_directory, tiny

from punie.backends import _adapters, _files
from punie.backends._headers import Tensor
from punie.backends._memory import plan_for
from punie.backends._mlx_files import directory_files
from punie.backends._weights import gguf_files, shipped_adapter, shipped_template
from punie.backends.catalogue import EMBEDDED
from punie.errors import ConfigError, PunieError, WeightsDamaged, WeightsMissing

EMBEDDED_BASE = {"base": "b179c9523d0e6a0f", "base_name": "mlx-float32", "settings": {"base": EMBEDDED}}


@pytest.fixture
def adapter(tmp_path):
    return tiny.write_adapter(tmp_path / "adapter")


@pytest.fixture(params=["gguf", "mlx"])
def prepare(request, tiny_gguf, tmp_path):
    """Do what each engine does with an adapter before it loads: (the weights, a function that takes the adapter)."""
    if request.param == "gguf":
        return tiny_gguf, lambda adapter: gguf_files(tiny_gguf, adapter=adapter, cache_dir=tmp_path / "cache")
    directory = mlx_directory.write(tmp_path / "model", tiny_gguf)
    return directory, lambda adapter: directory_files(str(directory)).template_with(adapter)


def digest(weights):
    """As training does it."""
    if not weights.is_dir():
        return _files.sha256(weights)
    return hashlib.sha256(_files.sha256(weights / "model.safetensors").encode()).hexdigest()


def note(adapter, **facts):
    (adapter / "manifest.json").write_text(json.dumps(facts))


def refused(prepare, adapter, error: type[PunieError] = ConfigError) -> PunieError:
    with pytest.raises(error) as caught:
        prepare[1](adapter)
    assert len(str(caught.value).splitlines()) <= 3
    assert caught.value.next_step
    return caught.value


# --- what belongs together ---


def test_an_adapter_without_a_manifest_is_known_by_its_shapes(prepare, adapter):
    prepare[1](adapter)


def test_an_adapter_of_these_weights(prepare, adapter):
    weights = prepare[0]
    name = "base.gguf" if weights.is_file() else "base"
    template = hashlib.sha256(tiny.TEMPLATE.encode()).hexdigest()
    note(adapter, base=digest(weights), base_name=name, settings={"base": EMBEDDED}, template=template)
    prepare[1](adapter)


def test_an_adapter_trained_on_another_format_of_the_model_fits_by_shape(prepare, adapter):
    other = "base" if prepare[0].is_file() else "base.gguf"
    note(adapter, base="0" * 64, base_name=other)
    prepare[1](adapter)


def test_the_shipped_adapter_belongs_to_the_embedded_model():
    adapter = shipped_adapter()
    assert adapter is not None
    _adapters.refuse_other_template(adapter, _adapters.template_of(adapter) or shipped_template())
    assert len(_adapters.read_layers(adapter)) == 7 * 30


def test_four_bit_weights_are_measured_by_their_scales(adapter, tmp_path, tiny_gguf):
    directory = mlx_directory.write(tmp_path / "model", tiny_gguf)
    file = directory / "model.safetensors"
    packed = {}
    for name, values in load_file(file).items():
        stem = name.removesuffix(".weight")
        if values.ndim == 2:
            rows, columns = values.shape
            packed[name] = np.zeros((rows, columns // 8), np.uint32)
            packed[f"{stem}.scales"] = packed[f"{stem}.biases"] = np.zeros((rows, columns // 32), np.float16)
        else:
            packed[name] = values
    save_file(packed, file)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 32, "bits": 4}}))
    _adapters.refuse_other_base(adapter, directory)


@pytest.mark.parametrize("rows", [64, 96])
def test_layers_with_a_group_size_of_their_own_are_measured_too(rows):
    """As mlx-lm reads them: 4 bits in groups of 32 beside 8 bits in groups of 64."""
    four = {"q.weight": Tensor((rows, 8), "U32", 0), "q.scales": Tensor((rows, 2), "F16", 0)}
    eight = {"q.weight": Tensor((rows, 16), "U32", 0), "q.scales": Tensor((rows, 1), "F16", 0)}
    for tensors in (four, eight):
        assert (64, rows) in _adapters._linear("q", tensors)
        assert (96, rows) not in _adapters._linear("q", tensors)


def test_layers_of_experts_are_left_to_the_library(adapter, tmp_path, tiny_gguf):
    factors = {
        "model.layers.0.mlp.switch_mlp.up_proj.lora_a": np.zeros((8, 64), np.float16),
        "model.layers.0.mlp.switch_mlp.up_proj.lora_b": np.zeros((4, 96, 2), np.float16),
    }
    save_file(factors, adapter / "adapters.safetensors")
    (layer,) = _adapters.read_layers(adapter).values()
    assert (layer.shape, layer.rank, layer.of_experts) == ((64, 96), 2, True)
    _adapters.refuse_other_base(adapter, mlx_directory.write(tmp_path / "model", tiny_gguf))


# --- another base ---


def test_an_adapter_of_the_embedded_model_names_both(prepare, adapter, tmp_path):
    note(adapter, **EMBEDDED_BASE)
    factors = {f"model.layers.0.self_attn.q_proj.lora_{p}": np.zeros(s) for p, s in (("a", (576, 2)), ("b", (2, 576)))}
    save_file(factors, adapter / "adapters.safetensors")
    error = refused(prepare, adapter)
    assert prepare[0].name in error.cause
    assert "q_proj of shape (576, 576), the model has (64, 64)" in error.cause
    assert EMBEDDED in error.next_step


def test_a_name_of_the_catalogue_decides_where_shapes_are_the_same(adapter, tmp_path):
    weights = tmp_path / "models" / "qwen2.5-coder-7b" / "x.gguf"
    weights.parent.mkdir(parents=True)
    tiny.write_gguf(weights)
    note(adapter, **EMBEDDED_BASE)
    with pytest.raises(ConfigError, match=r"qwen2\.5-coder-7b") as caught:
        _adapters.refuse_other_base(adapter, weights)
    assert EMBEDDED in caught.value.next_step
    note(adapter, base="0" * 64, settings={"base": "qwen2.5-coder-7b"})
    _adapters.refuse_other_base(adapter, weights)


def test_other_weights_of_the_same_shape(prepare, adapter):
    name = "base.gguf" if prepare[0].is_file() else "base"
    note(adapter, base="5" * 64, base_name=name)
    error = refused(prepare, adapter)
    assert "5" * 12 in error.cause
    assert digest(prepare[0])[:12] in error.cause
    assert name in error.next_step


def test_a_layer_that_the_model_does_not_have(prepare, adapter):
    factors = load_file(adapter / "adapters.safetensors")
    more = {name.replace("layers.0", "layers.9"): values for name, values in factors.items()}
    save_file(more, adapter / "adapters.safetensors")
    assert "layers.9" in refused(prepare, adapter).cause


# --- another template ---


def test_another_template_names_both_hashes(prepare, adapter):
    note(adapter, template="a" * 64)
    error = refused(prepare, adapter)
    assert "a" * 12 in error.cause
    assert hashlib.sha256(tiny.TEMPLATE.encode()).hexdigest()[:12] in error.cause
    assert "chat_template.jinja" in error.next_step


def test_a_template_that_was_changed_beside_the_adapter(prepare, adapter):
    trained = "{{ messages[0].content }}<|im_end|>"
    note(adapter, scores={"identity": {"template": hashlib.sha256(trained.encode()).hexdigest()[:16]}})
    (adapter / "chat_template.jinja").write_text(trained)
    prepare[1](adapter)
    (adapter / "chat_template.jinja").write_text(trained + " ")
    refused(prepare, adapter)


# --- what is not whole ---


@pytest.mark.parametrize("size", [0, 4, 100, 2_000, -1])
def test_a_truncated_adapter(prepare, adapter, size):
    file = adapter / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    error = refused(prepare, adapter, WeightsDamaged)
    assert "adapters.safetensors" in error.cause
    assert "once more" in error.next_step


@pytest.mark.parametrize("name", ["adapter_config.json", "manifest.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"lora_parameters": 3, "settings": 3}'])
def test_json_that_is_none(prepare, adapter, name, content):
    (adapter / name).write_text(content)
    error = refused(prepare, adapter, WeightsDamaged)
    assert name in error.cause


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
def test_a_file_that_is_missing(prepare, adapter, name):
    (adapter / name).unlink()
    assert name in refused(prepare, adapter, WeightsMissing).cause


def test_a_rank_that_is_not_that_of_the_matrices(prepare, adapter):
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    config["lora_parameters"]["rank"] = 3
    file.write_text(json.dumps(config))
    assert "rank 3" in refused(prepare, adapter).cause


def test_half_a_pair(prepare, adapter):
    factors = load_file(adapter / "adapters.safetensors")
    factors.pop("model.layers.0.self_attn.q_proj.lora_b")
    save_file(factors, adapter / "adapters.safetensors")
    assert "q_proj.lora_b" in refused(prepare, adapter, WeightsDamaged).cause


def test_a_template_that_is_no_text(prepare, adapter):
    (adapter / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "chat_template.jinja" in refused(prepare, adapter, WeightsDamaged).cause


@pytest.mark.parametrize("cut", [1, 10_000])
def test_truncated_weights_of_both_kinds(tiny_gguf, tmp_path, cut):
    directory = mlx_directory.write(tmp_path / "model", tiny_gguf)
    for path, file in ((tiny_gguf, tiny_gguf), (directory, directory / "model.safetensors")):
        file.write_bytes(file.read_bytes()[:-cut])
        with pytest.raises(WeightsDamaged, match=file.name) as caught:
            plan_for(path, context=1)
        assert "again" in caught.value.next_step
