from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_ai import Agent
from tests.backends import mlx_directory, tiny

from punie import backends
from punie.backends import build, engine_for
from punie.backends._local import LocalModel
from punie.backends._weights import adapter_hash, find_weights, model_dir, place_of
from punie.backends.catalogue import EMBEDDED, entries, entry, known, split_name
from punie.config import AgentConfig
from punie.errors import ConfigError, NotEnoughMemory, WeightsMissing
from punie.local_models import EngineOptions, UserModel

CODER, LARGE = "qwen2.5-coder-7b", "qwen3-coder-30b"


# --- the catalogue ---


@pytest.mark.parametrize("name", [EMBEDDED, CODER, LARGE])
def test_every_entry_says_what_a_user_must_know(name):
    model = entry(name)
    assert model.title
    assert model.licence == "Apache-2.0"
    assert 0 < model.size_bytes < model.memory_bytes
    assert model.context_window
    assert model.context_window >= 8192
    assert model.dialect
    assert len(model.end) == len(model.end_ids) == 2, "a model that is stopped by one of them runs on behind the other"
    assert model.runs_on("mlx")
    assert model.runs_on("llamacpp")
    assert model.source == ("package" if name == EMBEDDED else "hub")
    assert model.note


@pytest.mark.parametrize("name", [CODER, LARGE])
def test_four_bit_weights_are_as_large_as_the_parameters_say(name):
    model = entry(name)
    assert model.mlx_size_bytes == pytest.approx(model.parameters * 4.5 / 8, rel=0.01)
    assert model.size_bytes == pytest.approx(model.parameters * 4.9 / 8, rel=0.02)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("qwen2.5-coder7b", CODER), ("qwen3-coder", LARGE), ("QWEN3-CODER-30B", LARGE), ("smollm", EMBEDDED)],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, meant):
    with pytest.raises(ConfigError, match=name) as caught:
        entry(name)
    assert f"Did you mean local:{meant}?" in caught.value.next_step
    assert all(known_name in caught.value.next_step for known_name in entries())


def test_a_name_like_no_other_lists_all():
    with pytest.raises(ConfigError) as caught:
        entry("xyz")
    assert "Did you mean" not in caught.value.next_step
    assert EMBEDDED in caught.value.next_step


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", (EMBEDDED, None)),
        (CODER, (CODER, None)),
        (f"{CODER}+/a/b", (CODER, Path("/a/b"))),
        ("+x", (EMBEDDED, Path("x"))),
        (f"{CODER}+c++", (CODER, Path("c++"))),
    ],
)
def test_an_adapter_follows_a_plus(text, parts):
    assert split_name(text) == parts


# --- the user's own ---


def test_a_model_of_the_users_is_known_beside_the_others(tmp_path):
    own = {"mine": UserModel(path=tmp_path / "a.gguf")}
    found = known(own)
    assert list(found) == [*entries(), "mine"]
    assert (found["mine"].origin, found["mine"].title) == ("yours", "mine")
    with pytest.raises(ConfigError, match="mein") as caught:
        entry("mein", own)
    assert "local:mine" in caught.value.next_step


def test_a_model_with_a_base_takes_what_it_does_not_say_itself():
    found = entry("tuned", {"tuned": UserModel(base=CODER, adapter=Path("/a"), engine=EngineOptions(kv_bits=8))})
    base = entry(CODER)
    assert (found.title, found.gguf_sha256, found.end_ids) == (base.title, base.gguf_sha256, base.end_ids)
    assert (found.adapter, found.engine.kv_bits, found.origin) == (Path("/a"), 8, "yours")


def test_weights_of_a_base_are_not_fetched_twice(tmp_path):
    shared = entry("tuned", {"tuned": UserModel(base=CODER)})
    assert place_of(shared, "llamacpp", tmp_path) == place_of(entry(CODER), "llamacpp", tmp_path)
    own = entry("tuned", {"tuned": UserModel(base=CODER, gguf_id="me/mine", gguf_name="x.gguf")})
    assert place_of(own, "llamacpp", tmp_path) == model_dir(tmp_path, "tuned") / "x.gguf"
    assert own.gguf_sha256 is None, "the checksum is that of another file"
    assert own.title == entry(CODER).title


def test_a_base_that_is_not_there_names_the_nearest():
    with pytest.raises(ConfigError, match=r"models\.mine") as caught:
        known({"mine": UserModel(base="qwen3-coder")})
    assert LARGE in caught.value.next_step


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"title": "x"},
        {"gguf_id": "a/b"},
        {"gguf_name": "b.gguf", "path": "/x"},
        {"mlx_id": "no-slash"},
        {"path": "/x", "gguf_sha256": "12"},
        {"path": "/x", "engines": ["cuda"]},
        {"path": "/x", "engine": {"kv_bits": 5}},
        {"path": "/x", "nmae": "x"},
    ],
)
def test_what_an_entry_says_is_checked(said):
    with pytest.raises(ValidationError):
        UserModel.model_validate(said)


@pytest.mark.parametrize("models", [{"a+b": {"path": "/x"}}, {"a:b": {"path": "/x"}}, {"": {"path": "/x"}}])
def test_a_name_that_could_not_be_written_after_local(models):
    with pytest.raises(ValidationError):
        AgentConfig.model_validate({"models": models})


# --- which engine, which file ---


def test_the_engine_follows_the_weights_that_are_here(tmp_path):
    model = entry(CODER)
    preferred = "mlx" if backends.prefers_mlx() else "llamacpp"
    other = "llamacpp" if preferred == "mlx" else "mlx"
    assert engine_for(model, tmp_path) == preferred
    place = place_of(model, other, tmp_path)
    place.mkdir(parents=True)
    assert engine_for(model, tmp_path) == other
    place_of(model, preferred, tmp_path).mkdir(parents=True)
    assert engine_for(model, tmp_path) == preferred


def test_a_path_decides_on_its_engine(tmp_path):
    (tmp_path / "x.gguf").touch()
    for path, engine in ((tmp_path, "mlx"), (tmp_path / "x.gguf", "llamacpp")):
        assert engine_for(entry("mine", {"mine": UserModel(path=path)}), tmp_path) == engine
    only = {"mine": UserModel(path=tmp_path / "x.gguf", engines=("mlx",))}
    with pytest.raises(ConfigError, match="no weights of mine"):
        engine_for(entry("mine", only), tmp_path)


def test_weights_that_are_not_here_say_how_they_come(tmp_path):
    with pytest.raises(WeightsMissing, match=r"18\.6 GB") as caught:
        find_weights(entry(LARGE), engine="llamacpp", cache_dir=tmp_path)
    assert f"punie models pull {LARGE}" in caught.value.next_step
    assert str(model_dir(tmp_path, LARGE)) in caught.value.next_step
    assert len(str(caught.value).splitlines()) <= 3
    mine = entry("mine", {"mine": UserModel(path=tmp_path / "gone.gguf")})
    with pytest.raises(WeightsMissing, match=r"gone\.gguf") as caught:
        find_weights(mine, engine="llamacpp", cache_dir=tmp_path)
    assert "models.mine.path" in caught.value.next_step


async def test_a_model_of_the_users_answers_with_its_adapter(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    config = AgentConfig(models={"mine": UserModel(path=tiny_gguf, adapter=adapter, engine=EngineOptions(context=300))})
    model = build("local:mine", config, cache_dir=tmp_path / "cache")
    assert isinstance(model, LocalModel)
    assert model.model_name.endswith(adapter_hash(adapter))
    assert (await Agent(model).run("hello", model_settings={"max_tokens": 4})).usage.output_tokens == 4
    assert model.context_window == 300
    model.close()
    other = tiny.write_adapter(tmp_path / "other", seed=1)
    named = build(f"local:mine+{other}", config, cache_dir=tmp_path / "cache")
    assert named.model_name.endswith(adapter_hash(other))


@pytest.mark.parametrize("kind", ["gguf", "mlx"])
async def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(kind, tiny_gguf, tmp_path):
    path = tiny_gguf
    if kind == "mlx":
        path = mlx_directory.write(tmp_path / "model", tiny_gguf)
    config = AgentConfig(engine=EngineOptions(memory_gb=0.0001))
    with pytest.raises(NotEnoughMemory, match=r"0\.1 MB can be had"):
        await Agent(build(f"{kind}:{path}", config, cache_dir=tmp_path / "cache")).run("hi")
