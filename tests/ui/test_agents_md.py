"""What is said of AGENTS.md before a conversation begins: what it costs, or that it waits for trust."""

from pathlib import Path

import pytest

from punie.config import trust_store
from punie.ui import configure
from punie.ui._setup import Setup, memory_of, prepare
from punie.ui.options import Options

SERVICE = "openai:x@http://127.0.0.1:1"


class Place:
    """A project in a home."""

    def __init__(self, root: Path) -> None:
        self.env = {"HOME": str(root / "home"), "PATH": ""}
        self.project = root / "home" / "project"
        (self.project / ".git").mkdir(parents=True)
        (self.project / "sub").mkdir()
        (self.project / "AGENTS.md").write_text("x" * 300)
        (self.project / "sub" / "CLAUDE.md").write_text("x" * 30)

    def prepare(self, model: str = SERVICE, **env: str) -> Setup:
        return prepare(Options(cwd=self.project / "sub", model=model), env={**self.env, **env})

    def trust(self) -> None:
        trust_store(self.env).add(self.project)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_it_waits_for_trust_and_says_so_in_one_line(place: Place):
    setup = place.prepare()
    assert [path.name for path in setup.waiting] == ["AGENTS.md", "CLAUDE.md"]
    assert setup.notices == (
        f"AGENTS.md, sub/CLAUDE.md are not read: {place.project} is not trusted. `punie trust` trusts it.",
    )
    assert setup.about == ()
    assert memory_of(setup).read(budget_tokens=1000).files == ()


def test_trusted_it_says_what_every_request_costs(place: Place):
    place.trust()
    setup = place.prepare()
    assert (setup.waiting, setup.notices) == ((), ())
    assert setup.about == ("AGENTS.md, sub/CLAUDE.md: about 110 tokens in every request",)
    assert [file.name for file in memory_of(setup).read(budget_tokens=1000).files] == ["AGENTS.md", "sub/CLAUDE.md"]


def test_the_users_own_needs_no_trust(place: Place):
    own = Path(place.env["HOME"]) / ".config" / "punie" / "AGENTS.md"
    own.parent.mkdir(parents=True)
    own.write_text("x" * 3)
    assert place.prepare().about == ("your AGENTS.md: about 1 tokens in every request",)


@pytest.mark.parametrize("trusted", [False, True])
def test_the_embedded_model_gets_none_and_nothing_is_asked_for_it(place: Place, *, trusted: bool):
    if trusted:
        place.trust()
    for model, env in (("local", {}), ("local:smollm2-135m", {}), (SERVICE, {"PUNIE_AGENTS_MD_TOKENS": "0"})):
        setup = place.prepare(model, **env)
        assert (setup.waiting, setup.notices, setup.about) == ((), (), ())
    assert bool(place.prepare("local", PUNIE_AGENTS_MD_TOKENS="100").about) == trusted


def test_settings_are_shown_with_it(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    place.trust()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, place.env.get(name, ""))
    configure.run("show", options=Options(cwd=place.project, model=SERVICE))
    assert "punie: AGENTS.md: about 100 tokens in every request\n" in capsys.readouterr().err
