"""GGUF files read and written with numpy: weights under their Hugging Face names, tokenizer, merge of an adapter."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from punie.backends._headers import FETCH_AGAIN, gguf_header
from punie.errors import ModelError, WeightsDamaged, WeightsMissing

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor
    from tokenizers import Tokenizer

    Array = np.ndarray[Any, np.dtype[np.float32]]


_WHOLE_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_CONTROL, _USER_DEFINED = 3, 4
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"qwen2": _QWEN, "llama-bpe": _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")}
_INDIVIDUAL_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})
_PLAIN = frozenset({"gpt-2", "default"})


def load_state(path: Path) -> dict[str, "Array"]:
    """Every weight of a GGUF file as float32 under its Hugging Face name, q and k rows in Hugging Face order."""
    reader = open_gguf(path)
    heads = Heads.of(reader)
    return {hf_name(t.name): heads.unpermute(t.name, dequantised(t)) for t in reader.tensors if hf_name(t.name)}


def config(path: Path) -> dict[str, object]:
    """The `config.json` of the model as transformers and mlx-lm write it."""
    reader = open_gguf(path)
    arch = text_field(reader, "general.architecture")
    if arch not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ModelError(f"{path.name}: models of kind {arch!r} cannot be converted.", f"These can: {known}.")
    heads = Heads.of(reader)
    hidden = _number(reader, f"{arch}.embedding_length")
    names = {t.name for t in reader.tensors}
    return {
        "architectures": [_ARCHITECTURES[arch]],
        "model_type": arch,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _number(reader, f"{arch}.feed_forward_length"),
        "num_hidden_layers": _number(reader, f"{arch}.block_count"),
        "num_attention_heads": heads.query,
        "num_key_value_heads": heads.key,
        "head_dim": _number(reader, f"{arch}.attention.key_length", hidden // heads.query),
        "max_position_embeddings": _number(reader, f"{arch}.context_length"),
        "rms_norm_eps": round(_real(reader, f"{arch}.attention.layer_norm_rms_epsilon", 1e-5), 9),
        "rope_theta": _real(reader, f"{arch}.rope.freq_base", 10000.0),
        "rope_traditional": False,
        "rope_scaling": None,
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": False,
        "bos_token_id": _number(reader, "tokenizer.ggml.bos_token_id", 0),
        "eos_token_id": _number(reader, "tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def context_length(path: Path) -> int:
    """Tokens the model was trained to see at once."""
    metadata = gguf_header(path).metadata
    found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if not isinstance(found, int):
        raise WeightsDamaged(f"{path} does not say how many tokens the model takes.", FETCH_AGAIN)
    return found


def chat_template(path: Path) -> str:
    """The Jinja chat template in the file's metadata; empty when it has none."""
    return str(gguf_header(path).metadata.get("tokenizer.chat_template", ""))


def tokenizer(path: Path) -> "Tokenizer":
    """The byte-level BPE tokenizer in the file's metadata, special tokens marked as such."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    reader = open_gguf(path)
    kind = text_field(reader, "tokenizer.ggml.model", "none")
    pre = text_field(reader, "tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PLAIN | _INDIVIDUAL_DIGITS | set(_SPLITS):
        raise ModelError(
            f"{path.name}: its tokenizer ({kind}/{pre}) is not one that Punie can build.",
            "Serve the file with llama-server and use --model openai:NAME@http://127.0.0.1:8080/v1",
        )
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ", 1)) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    vocab = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    made.pre_tokenizer = _pre_tokenizer(pre)
    made.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in {_CONTROL, _USER_DEFINED}:
            added = AddedToken(token, special=kind == _CONTROL, normalized=False)
            made.add_special_tokens([added]) if kind == _CONTROL else made.add_tokens([added])
    return made


def _pre_tokenizer(pre: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre in _SPLITS:
        split = Split(Regex(_SPLITS[pre]), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    plain = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), plain]) if pre in _INDIVIDUAL_DIGITS else plain


# --- reading -------------------------------------------------------------------------------------------------------


def open_gguf(path: Path) -> "GGUFReader":
    """Map the file into memory. Raises WeightsMissing or WeightsDamaged."""
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except FileNotFoundError as error:
        raise WeightsMissing(f"There is no model file {path}.", "Check the path after `gguf:`.") from error
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise WeightsDamaged(f"{path} is not a complete GGUF file ({error}).", FETCH_AGAIN) from error


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; empty for a tensor without an equivalent."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE_MODEL:
        return f"{_WHOLE_MODEL[stem]}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if not layer or layer[2] not in _PER_LAYER:
        return ""
    return f"model.layers.{layer[1]}.{_PER_LAYER[layer[2]]}.{kind}"


def text_field(reader: "GGUFReader", key: str, default: str | None = None) -> str:
    """A text value of the metadata. Raises WeightsDamaged when it is absent and has no default."""
    field = reader.fields.get(key)
    if field is None and default is None:
        raise WeightsDamaged(f"The model file has no {key} in its metadata.", "Fetch another copy of the file.")
    return str(field.contents()) if field else default or ""


def _real(reader: "GGUFReader", key: str, default: float | None = None) -> float:
    field = reader.fields.get(key)
    if field:
        return float(field.contents())
    if default is None:
        raise WeightsDamaged(f"The model file has no {key} in its metadata.", "Fetch another copy of the file.")
    return default


def _number(reader: "GGUFReader", key: str, default: int | None = None) -> int:
    return int(_real(reader, key, default))


def dequantised(tensor: "ReaderTensor") -> "Array":
    """The tensor in float32, in the order of llama.cpp."""
    from gguf.quants import dequantize

    shape = tuple(int(n) for n in reversed(tensor.shape))
    return dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False).reshape(shape)


@dataclass(frozen=True)
class Heads:
    """llama.cpp interleaves the two halves of each rotary head in files of the llama kind, and only there."""

    query: int
    key: int
    interleaved: bool

    @classmethod
    def of(cls, reader: "GGUFReader") -> "Heads":
        """The head counts of the model."""
        arch = text_field(reader, "general.architecture")
        query = _number(reader, f"{arch}.attention.head_count")
        return cls(query, _number(reader, f"{arch}.attention.head_count_kv", query), arch == "llama")

    def _count(self, name: str) -> int:
        part = name.split(".")[-2]
        return {"attn_q": self.query, "attn_k": self.key}.get(part, 0) if self.interleaved else 0

    def unpermute(self, name: str, rows: "Array") -> "Array":
        """Hugging Face's order of rows from llama.cpp's."""
        return self._swap(rows, self._count(name), inner_first=False)

    def permute(self, name: str, rows: "Array") -> "Array":
        """llama.cpp's order of rows from Hugging Face's."""
        return self._swap(rows, self._count(name), inner_first=True)

    @staticmethod
    def _swap(rows: "Array", count: int, *, inner_first: bool) -> "Array":
        if not count:
            return rows
        half = rows.shape[0] // count // 2
        split = (count, 2, half) if inner_first else (count, half, 2)
        return rows.reshape(*split, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
