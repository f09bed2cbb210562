"""`punie models` of the installed program: the user's own models, the model hub, and what can go wrong with both."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.backends import mlx_directory, tiny
from tests.backends.hub import COMMIT, REPOSITORY, Hub, serving

from punie.backends.catalogue import EMBEDDED, entries

PUNIE = Path(sys.executable).with_name("punie")
CONTENT = bytes(range(256)) * 4000
ON_HUB = f'[models.tiny]\ngguf_id = "{REPOSITORY}"\ngguf_name = "tiny.gguf"\nlicence = "MIT"\n'
Punie = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def punie(tmp_path: Path) -> Punie:
    base = {name: value for name, value in os.environ.items() if not name.startswith(("PUNIE_", "XDG_", "HF_"))}
    places = {f"XDG_{kind.upper()}_HOME": str(tmp_path / kind) for kind in ("config", "state", "cache")}
    project = tmp_path / "project"
    project.mkdir()

    def run(*arguments: str, config: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "config" / "punie" / "config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(config)
        return subprocess.run(
            [str(PUNIE), "models", *arguments],
            cwd=project,
            env={**base, **places, "HF_HUB_DISABLE_TELEMETRY": "1", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_the_list_says_whose_a_model_is(punie: Punie, tmp_path: Path) -> None:
    done = punie("list", config=ON_HUB + f'[models.mine]\npath = "{tmp_path}/gone.gguf"\n')
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("local:")}
    assert set(rows) == {f"local:{name}" for name in (*entries(), "tiny", "mine")}
    assert "catalogue" in rows[f"local:{EMBEDDED}"]
    assert "yours" in rows["local:tiny"]
    assert "MIT" in rows["local:tiny"]
    assert "punie models pull tiny" in rows["local:tiny"]
    assert "gone.gguf" in rows["local:mine"]


def test_info_plans_the_memory_of_a_file_that_is_here(punie: Punie, tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    config = f'[models.mine]\npath = "{path}"\nlicence = "MIT"\n[models.mine.engine]\ncontext = 100\n'
    done = punie("info", "mine", config=config)
    assert done.returncode == 0, done.stderr
    assert "cache for 100 tokens" in done.stdout
    assert str(path) in done.stdout
    small = punie("info", "mine", config=f"{config}memory_gb = 0.0001\n")
    assert "does not fit" in small.stdout
    directory = mlx_directory.write(tmp_path / "mlx", path)
    for spec in (f"gguf:{path}", f"mlx:{directory}"):
        assert f"cache for {tiny.WINDOW} tokens" in punie("info", spec).stdout


def test_info_of_damaged_weights_says_so(punie: Punie, tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-20_000])
    done = punie("info", f"gguf:{path}")
    assert "not a complete GGUF file" in done.stdout


def test_pull_fetches_from_the_hub(punie: Punie, tmp_path: Path) -> None:
    with serving(Hub({"tiny.gguf": CONTENT})) as served:
        done = punie("pull", "tiny", config=ON_HUB, HF_ENDPOINT=served.url)
    place = tmp_path / "cache" / "punie" / "models" / "tiny" / "tiny.gguf"
    assert (done.returncode, str(place) in done.stdout) == (0, True), done.stderr
    assert place.read_bytes() == CONTENT
    assert "download 100 %" in done.stderr
    assert "ready" in punie("list", config=ON_HUB).stdout
    assert COMMIT not in done.stdout


@pytest.mark.parametrize("env", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_pull_without_a_network(punie: Punie, env: dict[str, str]) -> None:
    done = punie("pull", "tiny", config=ON_HUB, **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be reached" in done.stderr
    assert "tiny.gguf" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("info", "qwen3-coder"), 2, "local:qwen3-coder-30b"),
        (("pull", "smollm-135m"), 2, f"local:{EMBEDDED}"),
        (("test", "local:qwen2.5-coder"), 2, "local:qwen2.5-coder-7b"),
        (("info", "claude"), 2, "claude"),
        (("info", "openai:x@http://127.0.0.1:1/v1"), 2, "not a local model"),
        (("info", "gguf:/nowhere/x.gguf"), 1, "/nowhere/x.gguf"),
        (("test", "qwen3-coder-30b"), 1, "punie models pull qwen3-coder-30b"),
    ],
)
def test_what_cannot_be_named(punie: Punie, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = punie(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            'seed = 1\n[models.x]\npth = "/a"\n',
            ":2: setting 'models.x' is wrong: there is no 'pth'. Did you mean 'path'?",
        ),
        ('[models.x]\ntitle = "a"\n', ":1: setting 'models.x' is wrong: it does not say where the weights are"),
        ('[models.x]\npath = "/a"\nengine = { kv_bits = 3 }\n', "engine.kv_bits"),
        ('[models.x]\npath = "/a"\nengine = { contxt = 4 }\n', "Did you mean 'engine.context'?"),
        ('[models.x]\npath = "/a"\ndialect = "hermes"\n', "there is no 'dialect'"),
        ('[models.x]\nbase = "qwen3-coder"\n', "local:qwen3-coder-30b"),
    ],
)
def test_a_wrong_entry_is_told_with_its_place(punie: Punie, config: str, said: str) -> None:
    done = punie("list", config=config)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_project_cannot_add_models(punie: Punie, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".punie").mkdir()
    (project / ".punie" / "config.toml").write_text(ON_HUB)
    done = punie("list", config=f'trusted_projects = ["{project}"]\n')
    assert done.returncode == 2
    assert "a project cannot set 'models.tiny'" in done.stderr
