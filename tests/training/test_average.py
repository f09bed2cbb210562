import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.backends import tiny

from punie.backends._weights import adapter_hash
from punie.cli import main
from punie.errors import ConfigError, UsageError
from punie_training.average import average


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """Three adapters, the second and third with the first one's weights times 2 and 6."""
    made = [tiny.write_adapter(tmp_path / str(factor)) for factor in (1, 2, 6)]
    for adapter, factor in zip(made, (1, 2, 6), strict=True):
        weights = load_file(made[0] / "adapters.safetensors")
        save_file({k: (factor * v).astype(v.dtype) for k, v in weights.items()}, adapter / "adapters.safetensors.new")
        (adapter / "manifest.json").write_text(json.dumps({"base": "one", "name": str(factor)}))
    for adapter in made:
        (adapter / "adapters.safetensors.new").replace(adapter / "adapters.safetensors")
    return made


def test_the_mean_of_a_chain_says_what_it_is_made_of(chain: list[Path], tmp_path: Path) -> None:
    assert main(["train", "average", *map(str, chain), "--out", str(tmp_path / "mean")]) == 0
    first, mean = (load_file(path / "adapters.safetensors") for path in (chain[0], tmp_path / "mean"))
    assert mean.keys() == first.keys()
    for name, value in mean.items():
        assert value.dtype == first[name].dtype
        np.testing.assert_allclose(value, 3 * first[name].astype(np.float32), rtol=1e-3, atol=1e-6)
    manifest = json.loads((tmp_path / "mean" / "manifest.json").read_text())
    assert manifest == {"base": "one", "name": "mean", "averaged": [adapter_hash(adapter) for adapter in chain]}


def test_adapters_of_other_bases_and_shapes_are_not_averaged(chain: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        average(chain[:1], tmp_path / "mean")
    (chain[0] / "manifest.json").write_text(json.dumps({"base": "two"}))
    with pytest.raises(ConfigError, match="base"):
        average(chain, tmp_path / "mean")
    weights = load_file(chain[1] / "adapters.safetensors")
    weights.pop(next(iter(weights)))
    kept = {
        k: v for k, v in weights.items() if k.rpartition(".")[0] in {n.rpartition(".")[0] for n in list(weights)[2:]}
    }
    save_file(kept, chain[1] / "adapters.safetensors")
    with pytest.raises(ConfigError):
        average(chain[1:], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
