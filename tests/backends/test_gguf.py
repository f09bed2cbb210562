import numpy as np
import pytest
from tests.backends import tiny

from punie.backends import _gguf
from punie.errors import ModelError, WeightsDamaged, WeightsMissing


def test_state_has_hugging_face_names_and_shapes(tiny_gguf):
    state = _gguf.load_state(tiny_gguf)
    assert len(state) == 2 + 9 * tiny.LAYERS
    assert state["model.embed_tokens.weight"].shape == (len(tiny.vocabulary()), tiny.HIDDEN)
    assert state["model.layers.1.mlp.down_proj.weight"].shape == (tiny.HIDDEN, tiny.INNER)
    assert {values.dtype for values in state.values()} == {np.dtype(np.float32)}


def test_only_query_and_key_rows_change_their_order(tiny_gguf):
    state, stored = _gguf.load_state(tiny_gguf), tiny.tensors(0)
    np.testing.assert_array_equal(state["model.layers.0.self_attn.v_proj.weight"], stored["blk.0.attn_v.weight"])
    query, size = stored["blk.0.attn_q.weight"], tiny.HIDDEN // tiny.HEADS
    # llama.cpp stores the halves of a head in turn: row 2i is row i, row 2i+1 is row i + size/2.
    wanted = np.concatenate([query[h * size : (h + 1) * size][start::2] for h in range(tiny.HEADS) for start in (0, 1)])
    np.testing.assert_array_equal(state["model.layers.0.self_attn.q_proj.weight"], wanted)


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_up.weight"])
def test_permute_undoes_unpermute(tiny_gguf, name):
    heads, rows = _gguf.Heads.of(_gguf.open_gguf(tiny_gguf)), tiny.tensors(0)[name]
    np.testing.assert_array_equal(heads.permute(name, heads.unpermute(name, rows)), rows)


def test_config_describes_the_model(tiny_gguf):
    config = _gguf.config(tiny_gguf)
    assert config["model_type"] == "llama"
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (tiny.HEADS, tiny.KEY_HEADS)
    assert (config["tie_word_embeddings"], config["eos_token_id"]) == (True, 2)
    assert config["max_position_embeddings"] == _gguf.context_length(tiny_gguf) == tiny.WINDOW


def test_tokenizer_merges_splits_digits_and_comes_back(tiny_gguf):
    tokenizer = _gguf.tokenizer(tiny_gguf)
    text = "hello the 1234 é\n\t<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokens = [tokenizer.id_to_token(i) or "" for i in ids]
    assert tokens[:2] == ["hello", "Ġthe"]
    assert [t for t in tokens if t.isdigit()] == list("1234")
    assert ids[-1] == 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_another_kind_of_tokenizer_is_refused_with_a_way_out(tmp_path):
    path = tiny.write_gguf(tmp_path / "spm.gguf", tokenizer="llama")
    with pytest.raises(ModelError, match="llama/smollm") as caught:
        _gguf.tokenizer(path)
    assert "openai:" in caught.value.next_step


def test_a_damaged_file_and_a_missing_one(tiny_gguf, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-20_000])
    with pytest.raises(WeightsDamaged, match=r"cut\.gguf"):
        _gguf.load_state(cut)
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(WeightsDamaged):
        _gguf.open_gguf(tmp_path / "empty.gguf")
    with pytest.raises(WeightsMissing, match=r"nothing\.gguf"):
        _gguf.open_gguf(tmp_path / "nothing.gguf")
