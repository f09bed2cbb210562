import hashlib
import json
import shutil

import pytest
from tests.backends.hub import REPOSITORY, Hub, serving

from punie.backends import _download, _files, _hub
from punie.backends._weights import model_dir, silent
from punie.backends.catalogue import Entry
from punie.errors import NetworkRefused, UsageError, WeightsDamaged, WeightsMissing

CONTENT = bytes(range(256)) * 16_000
GGUF = Entry(name="tiny", gguf_id=REPOSITORY, gguf_name="tiny.gguf")
MLX = Entry(name="tiny", mlx_id=REPOSITORY)
FILES = {"config.json": b"{}", "model.safetensors": CONTENT, "README.md": b"no", "tokenizer.json": b"[]"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(_download, "_FIRST_PAUSE_S", 0.01)


def pull(model, served, cache, *, on_progress=silent):
    engine = "mlx" if model.mlx_id else "llamacpp"
    return _hub.pull(model, engine=engine, cache_dir=cache, on_progress=on_progress, endpoint=served.url)


def test_a_gguf_file_is_fetched_checked_and_found_again(tmp_path):
    steps = []
    with serving(Hub({"tiny.gguf": CONTENT, "other.gguf": b"no"})) as served:
        path = pull(GGUF, served, tmp_path, on_progress=lambda *step: steps.append(step))
    assert path == model_dir(tmp_path, "tiny") / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert served.asked == ["tiny.gguf"]
    assert steps[-1] == ("download", len(CONTENT), len(CONTENT))
    assert _files.is_stamped(path)
    assert pull(GGUF, served, tmp_path) == path, "what is here needs no hub"


def test_an_mlx_directory_is_there_whole_or_not_at_all(tmp_path):
    place = model_dir(tmp_path, "tiny") / "Tiny"
    with serving(Hub(FILES, cut_after=300_000)) as served:
        with pytest.raises(WeightsMissing, match="cut off"):
            pull(MLX, served, tmp_path)
        assert not place.exists()
        served.cut_after = None
        assert pull(MLX, served, tmp_path) == place
    names = sorted(file.name for file in place.iterdir() if "verified" not in file.name)
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (place / "model.safetensors").read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_ended_also_in_another_run(tmp_path):
    with serving(Hub({"tiny.gguf": CONTENT}, cut_after=300_000)) as served:
        with pytest.raises(WeightsMissing, match="cut off") as caught:
            pull(GGUF, served, tmp_path)
        assert "again" in caught.value.next_step
        tried = len(served.asked)
        served.cut_after = None
        assert pull(GGUF, served, tmp_path).read_bytes() == CONTENT
    assert served.asked[0] == "tiny.gguf"
    begins = [int(asked.split("bytes=")[1].rstrip("-")) for asked in served.asked[1:]]
    assert begins == sorted(begins)
    assert begins[tried - 1] > 0, "the second run began where the first one ended"


def test_every_file_of_a_split_model_is_fetched(tmp_path):
    first = "q4/tiny-00001-of-00002.gguf"
    split = Entry(name="tiny", gguf_id=REPOSITORY, gguf_name=first)
    with serving(Hub({first: b"one", "q4/tiny-00002-of-00002.gguf": b"two", "q8/tiny.gguf": b"no"})) as served:
        path = pull(split, served, tmp_path)
    assert path == model_dir(tmp_path, "tiny") / first
    assert path.with_name("tiny-00002-of-00002.gguf").read_bytes() == b"two"
    assert len(served.asked) == 2


@pytest.mark.parametrize("model", [GGUF, GGUF.model_copy(update={"gguf_sha256": hashlib.sha256(b"x").hexdigest()})])
def test_what_arrives_damaged_is_removed(tmp_path, model):
    with serving(Hub({"tiny.gguf": CONTENT}, corrupt=model.gguf_sha256 is None)) as served:
        with pytest.raises(WeightsDamaged, match="SHA-256") as caught:
            pull(model, served, tmp_path)
        assert "again" in caught.value.next_step
        assert [file.name for file in model_dir(tmp_path, "tiny").iterdir()] == [".lock"]


def test_no_room_on_the_disk_is_told_before_anything_is_fetched(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with serving(Hub({"tiny.gguf": CONTENT}, lies_about_size=free)) as served:
        with pytest.raises(WeightsMissing, match="no room") as caught:
            pull(GGUF, served, tmp_path)
        assert served.asked == []
    assert "PUNIE_CACHE_DIR" in caught.value.next_step


@pytest.mark.parametrize(("status", "error"), [(404, WeightsMissing), (401, WeightsMissing), (403, WeightsMissing)])
def test_a_repository_that_is_not_there_for_this_user(tmp_path, status, error):
    with serving(Hub({}, status=status)) as served, pytest.raises(error, match=f"{REPOSITORY}.*{status}") as caught:
        pull(GGUF, served, tmp_path)
    assert str(model_dir(tmp_path, "tiny") / "tiny.gguf") in caught.value.next_step
    assert len(str(caught.value).splitlines()) <= 3


def test_a_repository_without_the_file(tmp_path):
    with serving(Hub({"other.gguf": b"no"})) as served, pytest.raises(WeightsMissing, match=r"no tiny\.gguf"):
        pull(GGUF, served, tmp_path)


def test_without_a_network(tmp_path):
    with pytest.raises(NetworkRefused, match="cannot be reached") as caught:
        _hub.pull(GGUF, engine="llamacpp", cache_dir=tmp_path, on_progress=silent, endpoint="http://127.0.0.1:9")
    assert str(model_dir(tmp_path, "tiny") / "tiny.gguf") in caught.value.next_step
    assert len(str(caught.value).splitlines()) <= 3


def test_what_is_not_on_the_hub(tmp_path):
    with pytest.raises(UsageError, match="not on the model hub"):
        _hub.pull(GGUF, engine="mlx", cache_dir=tmp_path, on_progress=silent)


def test_a_fetched_directory_needs_nothing_else(tmp_path):
    with serving(Hub({"config.json": json.dumps({"a": 1}).encode()})) as served:
        assert json.loads((pull(MLX, served, tmp_path) / "config.json").read_text()) == {"a": 1}
