"""docs/training.md names every step; that its commands are ones is tested with those of all pages."""

import re
import shlex
import tomllib
from pathlib import Path

from punie.config import Settings
from punie_training.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("punie ")
]


def test_the_page_names_all_steps_and_files_that_are_there() -> None:
    trained = {shlex.split(line)[2] for line in COMMANDS if line.startswith("punie train ")}
    assert trained == {"data", "plan", "run", "eval", "report", "compare", "fuse"}
    assert any("--resume" in line for line in COMMANDS)
    recipes = set(re.findall(r"training/recipes/[\w.-]+\.toml", PAGE))
    assert recipes
    assert all((ROOT / recipe).is_file() for recipe in recipes)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"'\.\[(\w+)\]'", PAGE)) == {"training"} & extras.keys()


def test_the_settings_of_the_page_are_settings() -> None:
    [block] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(block))
    assert settings.model == "local:my-7b"
    assert settings.models["my-7b"].base == Recipe.load(ROOT / "training" / "recipes" / "qwen2.5-coder-7b.toml").base
