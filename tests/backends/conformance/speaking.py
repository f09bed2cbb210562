"""A model whose weights make it say what it was built to say: real files for real engines, and no training.

Attention and feed-forward add nothing to the residual stream, so the next token depends on the last one alone: the
output matrix holds one sum of embeddings for each token, those of the tokens it follows. The chat template ends a
prompt with one of the `<|say-...|>` tokens, chosen by what is in the conversation, and that token begins a text.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from tests.backends import tiny
from tokenizers.pre_tokenizers import ByteLevel

from punie.backends import _gguf

WINDOW = 4096
PLAIN = ("Noth", "ing", " was", " train", "ed,", " and", " yet", " it", " speaks.")
ANSWER = ("Fl", "ask", " is at", " src/", "app.py", ":4.")
ONE = ("<tool_call>\n", '{"name": "find_', 'symbol", "argu', 'ments": {"na', 'me": "Flask"}}', "\n</tool_call>")
TWO = (
    *("<tool_", 'call>\n{"name": ', '"find_symbol", ', '"arguments": {"name"', ': "Flask"}}\n', "</tool_call>\n"),
    *("<tool_c", 'all>\n{"name": "sea', 'rch", "arguments": ', '{"pattern": ', '"Blueprint"}}\n</', "tool_call>"),
)
WORDS = tuple(f" {first}{vowel}{last}" for first in "bdgklmnprst" for vowel in "aeiou" for last in "fnrx")
"""Of the text that never ends and, at a temperature, never repeats itself."""
CHAINS: Mapping[str, Sequence[str]] = {"plain": PLAIN, "answer": ANSWER, "one": ONE, "two": TWO}
SELECTORS = {name: f"<|say-{name}|>" for name in (*CHAINS, "babble")}
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- if message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set tool_call = call.function or call -%}
{{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' -}}
{%- if tool_call.arguments is string -%}{{- tool_call.arguments -}}
{%- else -%}{{- tool_call.arguments | tojson -}}{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if messages[-1].role == 'tool' -%}{{- '<|say-answer|>' -}}
{%- elif tools and tools | length > 1 -%}{{- '<|say-two|>' -}}
{%- elif tools -%}{{- '<|say-one|>' -}}
{%- elif messages[0].role == 'system' -%}{{- '<|say-babble|>' -}}
{%- else -%}{{- '<|say-plain|>' -}}{%- endif -%}
{%- endif -%}
"""
_HIDDEN, _LAYERS, _HEADS, _KEY_HEADS, _INNER = 256, 4, 4, 2, 64
_CERTAIN, _LIKELY, _LIKELIEST = 30.0, 12.0, 2.0
"""Logits: of the one token that may follow, of each word that may follow a word, and what the next in line has more."""
_END = "<|im_end|>"


def vocabulary() -> list[str]:
    """Control tokens, then text in the byte-level alphabet. Words can be put together of their letters, chains not."""
    said = [_byte_level(text) for chain in CHAINS.values() for text in chain]
    made = [merge.replace(" ", "") for merge in _merges()]
    return [*tiny.SPECIALS, *SELECTORS.values(), *sorted(ByteLevel.alphabet()), *made, *said]


def _merges() -> list[str]:
    """A server that looks for a stop sequence among tokens must find a word as the token that the model says."""
    pairs = [(word[:end], word[end]) for word in map(_byte_level, WORDS) for end in (1, 2, 3)]
    return list(dict.fromkeys(f"{begun} {letter}" for begun, letter in pairs))


def _byte_level(text: str) -> str:
    """ASCII as byte-level BPE writes it."""
    return text.replace(" ", "\u0120").replace("\n", "\u010a")


def write_gguf(path: Path) -> Path:
    """The model as llama.cpp reads it."""
    writer = GGUFWriter(path, "llama")
    writer.add_name("speaking")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(_HIDDEN // _HEADS)
    writer.add_vocab_size(len(vocabulary()))
    _write_tokenizer(writer)
    for name, values in _tensors().items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tokenizer(writer: GGUFWriter) -> None:
    tokens = vocabulary()
    control = len(tiny.SPECIALS) + len(SELECTORS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * control + [TokenType.NORMAL] * (len(tokens) - control))
    writer.add_token_merges(_merges())
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index(_END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _tensors() -> dict[str, np.ndarray]:
    embeddings, output = _speech()
    keys = _HIDDEN // _HEADS * _KEY_HEADS
    made = {"token_embd.weight": embeddings, "output.weight": output, "output_norm.weight": np.ones(_HIDDEN)}
    shapes = {
        "attn_q": (_HIDDEN, _HIDDEN),
        "attn_k": (keys, _HIDDEN),
        "attn_v": (keys, _HIDDEN),
        "attn_output": (_HIDDEN, _HIDDEN),
        "ffn_gate": (_INNER, _HIDDEN),
        "ffn_up": (_INNER, _HIDDEN),
        "ffn_down": (_HIDDEN, _INNER),
    }
    for layer in range(_LAYERS):
        made |= {f"blk.{layer}.{name}.weight": np.zeros(shape) for name, shape in shapes.items()}
        made |= {f"blk.{layer}.{name}.weight": np.ones(_HIDDEN) for name in ("attn_norm", "ffn_norm")}
    return made


def _speech() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of unit RMS, and the output matrix (tokens x hidden) that reads them."""
    random = np.random.default_rng(0)
    tokens = vocabulary()
    embeddings = random.choice([-1.0, 1.0], size=(len(tokens), _HIDDEN))
    number = {token: i for i, token in enumerate(tokens)}
    output = np.zeros_like(embeddings)
    for before, after in _successions():
        output[number[after]] += _CERTAIN / _HIDDEN * embeddings[number[before]]
    words = [number[_byte_level(word)] for word in WORDS]
    begins = [*words, number[SELECTORS["babble"]]]
    half = _HIDDEN // 2
    embeddings[begins, :half] = embeddings[begins[0], :half]  # what all words have in common
    output[words, :half] += _LIKELY / half * embeddings[begins[0], :half]
    output[words, half:] += _LIKELIEST / half * embeddings[np.roll(begins, 1)[: len(words)], half:]
    return embeddings, output


def _successions() -> Iterator[tuple[str, str]]:
    for name, chain in CHAINS.items():
        said = [SELECTORS[name], *map(_byte_level, chain), _END]
        yield from pairwise(said)


def write_mlx(directory: Path) -> Path:
    """The same model as MLX and its server read it."""
    from punie.backends import _mlx_model

    directory.mkdir(parents=True, exist_ok=True)
    gguf, tokenizer = write_gguf(directory / "speaking.gguf"), directory / "tokenizer.json"
    _gguf.tokenizer(gguf).save(str(tokenizer))
    made = _mlx_model.ensure_directory(gguf, tokenizer=tokenizer, cache=directory)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _END, "chat_template": TEMPLATE}
    (made / "tokenizer_config.json").write_text(json.dumps(described))
    return made
