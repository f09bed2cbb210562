import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import tiny

from punie.backends import _gguf
from punie.backends._mlx import mx, nn
from punie.cli import main
from punie.errors import ConfigError, UsageError
from punie_training.base import load
from punie_training.export import Form, export
from punie_training.fuse import fuse
from punie_training.trained import Trained

NO_LETTERS = [number for number, text in enumerate(tiny.vocabulary()) if not text.isalnum() or not text.isascii()]
"""Tokens that are never said: half a character has no number in llama.cpp's answer."""
PROMPTS = (tuple(range(3, 40)), tuple(range(100, 60, -1)), (5, 9) * 12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    made = tiny.write_adapter(tmp_path / "adapter", amplitude=0.6)
    (made / "chat_template.jinja").write_text(tiny.TEMPLATE + "{# trained with #}")
    return made


def made(adapter: Path, base: Path, to: Form) -> Path:
    return export(Trained.load(adapter), to=to, base=base, out=adapter.with_name(f"made-{to}"))


# --- PEFT ----------------------------------------------------------------------------------------------------------


def test_peft_changes_every_layer_as_mlx_does(base: Path, adapter: Path) -> None:
    """PEFT's rule in numpy, y = x W^T + alpha / r (x A^T) B^T, against MLX's own layer."""
    from mlx_lm.tuner.utils import load_adapters

    out = made(adapter, base, "peft")
    config = json.loads((out / "adapter_config.json").read_text())
    matrices = load_file(out / "adapter_model.safetensors")
    adapted = dict(load_adapters(load(base), str(adapter)).named_modules())
    layers = {name: adapted[name] for name in Trained.load(adapter).lora.factors}
    assert len(layers) * 2 == len(matrices) == 16
    for name, layer in layers.items():
        a, b = (matrices[f"base_model.model.{name}.lora_{x}.weight"].astype(np.float32) for x in "AB")
        assert (a.shape[0], b.shape[1]) == (config["r"], config["r"])
        x = np.random.default_rng(1).standard_normal((5, a.shape[1])).astype(np.float32)
        change = (x @ a.T) @ b.T * config["lora_alpha"] / config["r"]
        found = np.array(layer(mx.array(x)) - layer.linear(mx.array(x)))
        assert np.abs(found).max() > 1
        assert np.abs(change - found).max() < 1e-4


def test_peft_is_told_which_layers_to_change(base: Path, adapter: Path) -> None:
    config = json.loads((made(adapter, base, "peft") / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert config["layers_to_transform"] == [0, 1]
    assert config["fan_in_fan_out"] is False
    shutil.rmtree(adapter.with_name("made-peft"))
    factors = load_file(adapter / "adapters.safetensors")
    uneven = {name: value for name, value in factors.items() if "layers.0.self_attn.k_proj" not in name}
    save_file(uneven, adapter / "adapters.safetensors")
    config = json.loads((made(adapter, base, "peft") / "adapter_config.json").read_text())
    assert "model.layers.1.self_attn.k_proj" in config["target_modules"]
    assert "model.layers.0.self_attn.k_proj" not in config["target_modules"]
    assert "layers_to_transform" not in config


def test_peft_takes_an_adapter_of_a_quantised_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    nothing = Trained.load(tiny.write_adapter(tmp_path / "nothing", amplitude=0.0))
    four = fuse(nothing, base=base, out=tmp_path / "four", bits=4, group=32).directory
    assert isinstance(load(four).model.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    assert (made(adapter, four, "peft") / "adapter_model.safetensors").is_file()


# --- llama.cpp -----------------------------------------------------------------------------------------------------


def greedy(
    path: Path, prompts: Sequence[Sequence[int]], *, lora: Path | None = None, count: int = 12
) -> list[list[int]]:
    """What llama.cpp says after each prompt."""
    binding = import_module("xllamacpp")
    parameters = binding.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 256, 1, False, -1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    if lora:
        loaded = binding.CommonAdapterLoraInfo(str(lora), 1.0)
        parameters.lora_adapters = [loaded]
    with tempfile.TemporaryDirectory(prefix="punie-") as directory:
        parameters.hostnames = [f"{directory}/s.sock"]
        server = binding.Server(parameters)
        return [_continued(server, prompt, count=count) for prompt in prompts]


def _continued(server, prompt: Sequence[int], *, count: int) -> list[int]:  # the binding has no types
    found: list[dict] = []
    request = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "logprobs": 1}
    request |= {"logit_bias": [[token, False] for token in NO_LETTERS]}
    server.handle_completions(request, lambda answer: bool(found.append(answer)))
    return [token["id"] for token in found[0]["choices"][0]["logprobs"]["content"]]


def test_llama_cpp_says_the_same_with_the_adapter_beside_as_merged_in(base: Path, tmp_path: Path) -> None:
    """Of next tokens: what a random model says after many of them hangs on the eight bits of the merged one."""
    adapter = tiny.write_adapter(tmp_path / "adapter", amplitude=0.2)
    random = np.random.default_rng(3)
    prompts = [tuple(map(int, random.integers(3, 200, 30))) for _ in range(12)]

    def next_tokens(path: Path, *, lora: Path | None = None) -> np.ndarray:
        return np.array(greedy(path, prompts, lora=lora, count=1))

    beside = next_tokens(base, lora=made(adapter, base, "gguf-lora") / "adapter.gguf")
    assert (beside == next_tokens(made(adapter, base, "gguf") / "model-Q8_0.gguf")).sum() >= 11
    assert (beside == next_tokens(base)).sum() <= 2, "the adapter must show"


def test_llama_cpp_says_the_same_as_mlx(base: Path, adapter: Path) -> None:
    from punie.backends import _mlx_model

    model = _mlx_model.load(base, adapter=adapter)

    def continued(prompt: Sequence[int]) -> Iterator[int]:
        tokens = list(prompt)
        for _ in range(12):
            logits = np.array(model(mx.array([tokens]))[0, -1])
            logits[NO_LETTERS] = -np.inf
            tokens.append(int(logits.argmax()))
            yield tokens[-1]

    lora = made(adapter, base, "gguf-lora") / "adapter.gguf"
    assert greedy(base, PROMPTS, lora=lora) == [list(continued(prompt)) for prompt in PROMPTS]


def test_the_gguf_adapter_names_what_it_is(base: Path, adapter: Path) -> None:
    reader = _gguf.open_gguf(made(adapter, base, "gguf-lora") / "adapter.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"], fields["adapter.lora.alpha"]) == ("adapter", "lora", 4.0)
    assert fields["general.architecture"] == "llama"
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["blk.1.attn_k.weight.lora_a"] == (tiny.HIDDEN, 2)
    assert shapes["blk.1.attn_k.weight.lora_b"] == (2, 32)


def test_the_merged_file_brings_the_template_of_the_adapter(base: Path, adapter: Path) -> None:
    out = made(adapter, base, "gguf")
    assert _gguf.chat_template(out / "model-Q8_0.gguf") == tiny.TEMPLATE + "{# trained with #}"
    (adapter / "chat_template.jinja").unlink()
    shutil.rmtree(out)
    assert _gguf.chat_template(made(adapter, base, "gguf") / "model-Q8_0.gguf") == tiny.TEMPLATE


# --- all forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["peft", "gguf-lora", "gguf", "mlx"])
def test_every_form_has_a_card_and_the_template(base: Path, adapter: Path, to: Form) -> None:
    out = made(adapter, base, to)
    page = (out / "README.md").read_text()
    assert "LoRA of rank 2" in page
    assert re.search("^## Use", page, re.MULTILINE)
    assert (out / "chat_template.jinja").read_text() == tiny.TEMPLATE + "{# trained with #}"
    with pytest.raises(UsageError, match="not empty"):
        made(adapter, base, to)


def test_what_cannot_be_exported_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    trained = Trained.load(adapter)
    with pytest.raises(UsageError, match="an export is a directory"):
        export(trained, to="gguf", base=base, out=tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="made from a GGUF file"):
        export(trained, to="gguf-lora", base=tmp_path, out=tmp_path / "x")
    (adapter / "manifest.json").write_text('{"base": "0123456789abcdef", "base_name": "x.gguf"}')
    for to in ("peft", "gguf-lora", "gguf", "mlx"):
        with pytest.raises(ConfigError, match="was trained on weights 0123456789ab"):
            export(Trained.load(adapter), to=to, base=base, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_command_lists_what_it_wrote(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["--to", "peft", "--base", str(base), "--out", str(tmp_path / "peft")]
    assert main(["train", "export", str(adapter), *rest]) == 0
    names = [Path(line.split()[0]).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
