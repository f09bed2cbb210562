"""DoRA: trained like LoRA, and the same model in training, on the MLX backend and merged for llama.cpp."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import tiny
from tests.training.test_trainer import RECIPE, same_state, sentences

from punie.backends import _gguf, _mlx_model
from punie.backends._adapters import refuse_other_base
from punie.backends._mlx import mx
from punie.backends._weights import gguf_files
from punie.backends.llamacpp import LlamaCpp
from punie.errors import ConfigError, WeightsDamaged
from punie_training.export import export
from punie_training.fuse import fuse
from punie_training.recipe import Recipe
from punie_training.trained import Trained
from punie_training.trainer import train

DORA = RECIPE.model_copy(update={"lora": RECIPE.lora.model_copy(update={"kind": "dora"})})
TOKENS = (1, 5, 6, 7, 8, 44)
PROMPT = tuple(range(40, 70))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    return train(DORA, rows=sentences(), base=base, out=tmp_path_factory.mktemp("run"), template=tiny.TEMPLATE)


def logits(path: Path, adapter: Path | None = None) -> np.ndarray:
    return np.array(_mlx_model.load(path, adapter=adapter)(mx.array([TOKENS])))


def test_it_learns_lengths_too(finished, base):
    assert finished.history[-1].loss < 0.5 * finished.history[0].loss
    saved = load_file(finished.adapter / "adapters.safetensors")
    assert {name.rpartition(".")[2] for name in saved} == {"lora_a", "lora_b", "m"}
    name = "model.layers.1.mlp.down_proj"
    lengths = np.linalg.norm(_gguf.load_state(base)[f"{name}.weight"], axis=1)
    assert saved[f"{name}.m"].dtype == np.float32
    assert 1e-3 < np.abs(saved[f"{name}.m"] / lengths - 1).max() < 1


def test_it_goes_on_where_it_stopped(finished, base, tmp_path):
    def stop(step):
        if step.update == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(DORA, rows=sentences(), base=base, out=tmp_path, on_step=stop)
    train(DORA, rows=sentences(), base=base, out=tmp_path, resume=True)
    assert same_state(tmp_path, finished.adapter.parent)


def test_the_backend_computes_what_mlx_lm_does(finished, base):
    from mlx_lm.tuner.utils import load_adapters

    wanted = np.array(load_adapters(_mlx_model.load(base), str(finished.adapter))(mx.array([TOKENS])))
    found = logits(base, finished.adapter)
    assert np.abs(found - wanted).max() < 1e-3
    assert np.abs(found - logits(base)).max() > 0.1, "the adapter must show"


def test_an_mlx_directory_has_it_in_its_weights(finished, base, tmp_path):
    fused = fuse(Trained.load(finished.adapter), base=base, out=tmp_path / "out", group=32)
    assert np.abs(logits(fused.directory) - logits(base, finished.adapter)).max() < 1e-3


def test_llama_cpp_answers_with_it_merged_in(finished, base, tmp_path):
    files = gguf_files(base, adapter=finished.adapter, cache_dir=tmp_path)
    merged, before = _gguf.load_state(files.weights), _gguf.load_state(base)
    adapter = Trained.load(finished.adapter).lora
    for name in adapter.factors:
        wanted = adapter.changed(name, before[f"{name}.weight"])
        assert np.abs(np.linalg.norm(wanted, axis=1) / adapter.magnitudes[name] - 1).max() < 1e-5
        assert np.abs(merged[f"{name}.weight"] - wanted).max() < 0.01, "no more than eight bits lose"
    assert said_by_llama_cpp(files.weights) == said_by_mlx(base, finished.adapter) != said_by_mlx(base, None)


def said_by_llama_cpp(path: Path) -> str:
    engine = LlamaCpp(path, context_window=128, threads=1)
    asked = {"max_tokens": 6, "temperature": 0, "seed": 0, "stop": (), "cancelled": threading.Event()}
    said = "".join(piece.text for piece in engine.generate(PROMPT, **asked))
    engine.close()
    return said


def said_by_mlx(path: Path, adapter: Path | None) -> str:
    model, tokens = _mlx_model.load(path, adapter=adapter), list(PROMPT)
    for _ in range(6):
        tokens.append(int(model(mx.array([tokens]))[0, -1].argmax().item()))
    return _gguf.tokenizer(path).decode(tokens[len(PROMPT) :])


@pytest.mark.parametrize("to", ["peft", "gguf-lora"])
def test_what_cannot_hold_it_is_not_written(finished, base, tmp_path, to):
    with pytest.raises(ConfigError, match="DoRA") as caught:
        export(Trained.load(finished.adapter), to=to, base=base, out=tmp_path / "out")
    assert "--to gguf or mlx" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_another_base_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="does not fit other"):
        refuse_other_base(finished.adapter, tiny.write_gguf(tmp_path / "other.gguf", seed=5))


def test_lengths_that_are_missing_are_no_adapter(finished, base, tmp_path):
    tensors = load_file(finished.adapter / "adapters.safetensors")
    save_file({n: v for n, v in tensors.items() if not n.endswith(".m")}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((finished.adapter / "adapter_config.json").read_bytes())
    for refusing in (lambda: Trained.load(tmp_path), lambda: refuse_other_base(tmp_path, base)):
        with pytest.raises(WeightsDamaged, match=r"\.m\b"):
            refusing()


def test_recipes_from_before_have_the_hash_they_had():
    root = Path(__file__).parents[2]
    manifest = json.loads((root / "src/punie/adapters/smollm2-135m/manifest.json").read_text())
    recipe = Recipe.model_validate(manifest["settings"])
    assert recipe.hash == manifest["recipe"]
    assert recipe.lora.kind == "lora"
