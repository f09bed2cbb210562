from pathlib import Path

import pytest
from pydantic import ValidationError

from punie.config import AgentConfig, Limits, Resolved, load_settings, setting_keys, user_config_file
from punie.errors import ConfigError
from punie.local_models import EngineOptions


class Setup:
    """A user directory and a project directory with their files."""

    def __init__(self, root: Path) -> None:
        self.cwd = root / "project"
        self.cwd.mkdir()
        self.env = {"XDG_CONFIG_HOME": str(root / "xdg"), "HOME": str(root)}
        self.user_file = root / "xdg" / "punie" / "config.toml"
        self.project_file = self.cwd / ".punie" / "config.toml"

    def user(self, text: str) -> None:
        self.user_file.parent.mkdir(parents=True, exist_ok=True)
        self.user_file.write_text(text)

    def project(self, text: str, *, trusted: bool = True) -> None:
        self.project_file.parent.mkdir(exist_ok=True)
        self.project_file.write_text(text)
        if trusted:
            self.user(f'trusted_projects = ["{self.cwd}"]\n')

    def load(self, cwd: Path | None = None, /, *, flags: dict[str, object] | None = None, **env: str) -> Resolved:
        return load_settings(cwd=cwd or self.cwd, env={**self.env, **env}, flags=flags or {})

    def refusal(self, **env: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_settings(cwd=self.cwd, env={**self.env, **env}, flags={})
        assert caught.value.exit_code == 2
        return str(caught.value)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_defaults_without_any_file(setup: Setup):
    resolved = setup.load()
    assert resolved.settings.agent_config() == AgentConfig()
    assert {*resolved.sources.values()} == {"default"}
    assert resolved.user_file == setup.user_file
    assert resolved.project_file is None


def test_each_layer_wins_over_the_weaker_ones_and_is_named_as_the_source(setup: Setup):
    setup.project('model = "project"\nseed = 3\nmax_tokens = 30\n[limits]\nmax_turns = 7\n')
    setup.user(setup.user_file.read_text() + 'model = "user"\nseed = 2\nmax_tokens = 20\ntemperature = 0.5\n')
    resolved = setup.load(PUNIE_SEED="4", PUNIE_MAX_TOKENS="40", flags={"max_tokens": 50, "seed": None})
    got = {key: (value, source) for key, value, source in resolved.rows()}
    assert got["temperature"] == (0.5, f"{setup.user_file}:5")
    assert got["model"] == ("project", f"{setup.project_file}:1")
    assert got["limits.max_turns"] == (7, f"{setup.project_file}:5")
    assert got["seed"] == (4, "PUNIE_SEED")
    assert got["max_tokens"] == (50, "--max-tokens")
    assert got["limits.max_tool_calls"] == (24, "default")


def test_one_limit_leaves_the_others_as_they_are(setup: Setup):
    setup.user("[limits]\nmax_turns = 3\n")
    resolved = setup.load(PUNIE_LIMITS__MAX_TOOL_CALLS="5")
    assert resolved.settings.limits == Limits(max_turns=3, max_tool_calls=5)


def test_engine_options_come_from_file_and_environment(setup: Setup):
    setup.user("[engine]\ncontext = 4096\n")
    resolved = setup.load(PUNIE_ENGINE__KV_BITS="8")
    assert resolved.settings.agent_config().engine == EngineOptions(context=4096, kv_bits=8)
    assert resolved.sources["engine.context"] == f"{setup.user_file}:2"
    assert resolved.sources["engine.kv_bits"] == "PUNIE_ENGINE__KV_BITS"
    assert "engine.kv_bits" in setup.refusal(PUNIE_ENGINE__KV_BITS="5")
    setup.project("[engine]\nmemory_gb = 64\n")
    assert "a project cannot set 'engine.memory_gb'" in setup.refusal()


def test_a_models_table_reaches_the_agent_with_its_place(setup: Setup):
    setup.user('seed = 3\n["models"."my.model"]\nbase = "qwen3-coder-30b"\nengine = { kv_bits = 4 }\n')
    resolved = setup.load()
    (model,) = resolved.settings.agent_config().models.items()
    assert (model[0], model[1].base, model[1].engine.kv_bits) == ("my.model", "qwen3-coder-30b", 4)
    assert resolved.sources["models"] == f"{setup.user_file}:2"


@pytest.mark.parametrize("text", ["read_file, search", '["read_file", "search"]'])
def test_environment_lists_are_words_or_json(setup: Setup, text: str):
    assert setup.load(PUNIE_TOOLS=text).settings.tools == ("read_file", "search")


def test_empty_environment_variable_is_unset(setup: Setup):
    assert setup.load(PUNIE_MODEL="").settings.model == "local"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modle = "x"\n', ":1: unknown setting 'modle'. Did you mean 'model'?"),
        ("# a\n[limits]\nmax_trns = 2\n", ":3: unknown setting 'limits.max_trns'. Did you mean 'limits.max_turns'?"),
        ("\n[limits]\nmax_turns = 0\n", ":3: setting 'limits.max_turns' is wrong: Input should be greater than 0."),
        ("temperature = 'hot'\n", ":1: setting 'temperature' is wrong: Input should be a valid number"),
        ("seed = 1\nmodel = \n", ":2: invalid TOML:"),
        ("limits = 3\n", ":1: unknown setting 'limits'."),
        ('stop_sequences = [""]\n', ":1: setting 'stop_sequences' is wrong:"),
        ("api_key = 'x'\n", ":1: unknown setting 'api_key'."),
    ],
)
def test_wrong_user_file_is_refused_with_file_line_and_key(setup: Setup, text: str, said: str):
    setup.user(text)
    assert setup.refusal().startswith(f"{setup.user_file}{said}")


def test_file_that_is_not_text_is_refused(setup: Setup):
    setup.user("")
    setup.user_file.write_bytes(b"model = \xff\n")
    assert setup.refusal() == f"{setup.user_file}: is not UTF-8 text (byte 8)."


def test_wrong_environment_names_the_variable(setup: Setup):
    assert setup.refusal(PUNIE_SEED="x").startswith("PUNIE_SEED: setting 'seed' is wrong:")
    assert setup.refusal(PUNIE_MODLE="x").startswith("PUNIE_MODLE: unknown setting 'modle'.")


def test_untrusted_project_file_is_not_even_parsed(setup: Setup):
    setup.project("this is not TOML", trusted=False)
    resolved = setup.load()
    assert resolved.settings.model == "local"
    said = f"{setup.project_file} is not read: {setup.cwd} is not trusted. `punie trust` trusts it."
    assert resolved.notices == (said,)
    assert not resolved.trusted


def test_trust_does_not_reach_into_a_directory_below(setup: Setup):
    setup.user(f'trusted_projects = ["{setup.cwd.parent}"]\n')
    setup.project('model = "x"\n', trusted=False)
    assert setup.load().settings.model == "local"


def test_project_file_is_found_from_a_directory_inside_the_repository(setup: Setup):
    setup.project('model = "x"\n')
    inner = setup.cwd / "a" / "b"
    inner.mkdir(parents=True)
    assert setup.load(inner).settings.model == "local"
    (setup.cwd / ".git").mkdir()
    assert setup.load(inner).settings.model == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('permission_mode = "bypassPermissions"\n', "a project cannot set 'permission_mode'."),
        ('allowed_tools = ["run_command"]\n', "a project cannot set 'allowed_tools'."),
        ('[aliases]\nlocal = "openai:x@http://evil"\n', "a project cannot set 'aliases.local'."),
        ('trusted_projects = ["/"]\n', "a project cannot set 'trusted_projects'."),
        ('model = "openai:x@http://evil/v1"\n', "a project cannot choose the server its model runs on ('model')."),
    ],
)
def test_trusted_project_cannot_widen_what_punie_may_do(setup: Setup, text: str, said: str):
    setup.project(text)
    assert said in setup.refusal()


def test_aliases_and_disallowed_tools_shape_the_agent(setup: Setup):
    setup.user('model = "fast"\ndisallowed_tools = ["run_command"]\n[aliases]\nfast = "gguf:/m.gguf"\n')
    config = setup.load().settings.agent_config()
    assert config.model == "gguf:/m.gguf"
    assert "run_command" not in config.tools
    assert "max_tokens" not in config.model_fields_set


def test_agent_config_is_frozen_and_refuses_unknown_keys():
    with pytest.raises(ValidationError, match="modle"):
        AgentConfig(modle="x")  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValidationError, match="frozen"):
        AgentConfig().model = "x"  # pyright: ignore[reportAttributeAccessIssue]


def test_every_key_has_a_row(setup: Setup):
    assert tuple(key for key, _, _ in setup.load().rows()) == setting_keys()


def test_user_file_is_below_home_on_every_system(tmp_path: Path):
    assert user_config_file({"HOME": str(tmp_path)}) == tmp_path / ".config" / "punie" / "config.toml"
    assert user_config_file({"HOME": str(tmp_path), "XDG_CONFIG_HOME": "relative"}).is_relative_to(tmp_path)
