"""Tiny random models of the families in the catalogue, true to their architecture, as MLX directories of 4 bits.

The templates are those of Qwen2.5-Coder-7B-Instruct and Qwen3-Coder-30B-A3B-Instruct (Apache-2.0, Alibaba Cloud),
reduced to what a conversation with tools needs: same order, same tags, same calls, shorter explanations.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx.utils import tree_flatten, tree_unflatten
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from punie import wire
from punie.backends import _mlx_model
from punie.backends._mlx import mx, optimizers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>")
HIDDEN, LAYERS, WINDOW = 64, 2, 1024

QWEN2 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\n<tool_call>\\n" }}
    {{- "{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>" }}
    {{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3_CODER = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {{- "<|im_start|>system\\n" + (system_message or "You are Qwen.") + "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "\\n<function>\\n<name>" ~ tool.name ~ "</name>" }}
        {{- '\\n<parameters>' }}
        {%- for param_name, param_fields in tool.parameters.properties | items %}
            {{- '\\n<parameter>\\n<name>' ~ param_name ~ '</name>' }}
            {{- '\\n<type>' ~ (param_fields.type | string) ~ '</type>\\n</parameter>' }}
        {%- endfor %}
        {{- '\\n</parameters>\\n</function>' }}
    {%- endfor %}
    {{- "\\n</tools>\\n\\n<tool_call>\\n<function=name>\\n<parameter=name>\\nvalue\\n</parameter>\\n</function>\\n" }}
    {{- "</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user\\n' }}
        {%- endif %}
        {{- '<tool_response>\\n' + message.content + '\\n</tool_response>\\n' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

SHARED = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": WINDOW,
}


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    kind: str
    """`model_type` in config.json."""
    template: str
    config: dict[str, Any]


FAMILIES = (
    Family("qwen2", QWEN2, {**SHARED, "tie_word_embeddings": False}),
    Family(
        "qwen3_moe",
        QWEN3_CODER,
        {
            **SHARED,
            "head_dim": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
        },
    ),
)


def write_tokenizer(path: Path, *, texts: Sequence[str], vocabulary: int = 500) -> Tokenizer:
    """Qwen's kind of byte-level BPE with its control tokens and tags, trained on these texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in TAGS])
    tokenizer.save(str(path))
    return tokenizer


def write_model(directory: Path, family: Family, *, texts: Sequence[str], vocabulary: int = 500) -> Path:
    """Random weights at 4 bits (the choice of experts at 8, as published), with all that a directory has."""
    from mlx_lm.utils import quantize_model, save_config, save_model

    directory.mkdir(parents=True)
    tokenizer = write_tokenizer(directory / "tokenizer.json", texts=texts, vocabulary=vocabulary)
    ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
    config = {**family.config, "model_type": family.kind, "vocab_size": tokenizer.get_vocab_size() + 13}
    config["eos_token_id"] = ids["<|im_end|>"]
    model = _classes(family.kind, config)
    model.lm_head.weight *= 8  # so that it can be sure of a token
    mx.eval(model.parameters())
    model, config = quantize_model(model, config, group_size=64, bits=4)
    save_model(directory, model)
    save_config(config, directory / "config.json")
    ends = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    (directory / "chat_template.jinja").write_text(family.template)
    return directory


def _classes(kind: str, config: dict[str, Any]) -> Any:
    from mlx_lm.models import qwen2, qwen3_moe

    mx.random.seed(0)
    module = {"qwen2": qwen2, "qwen3_moe": qwen3_moe}[kind]
    return module.Model(module.ModelArgs.from_dict(config))


def train_adapter(base: Path, directory: Path, examples: Sequence[wire.Example], *, most: int = 200) -> float:
    """Learn these rows by heart with LoRA on every layer; returns the last loss, a mean per token."""
    from mlx.nn.utils import value_and_grad
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = _mlx_model.load(base)
    model.freeze()
    parameters = {"rank": 8, "scale": 4.0, "dropout": 0.0}
    linear_to_lora_layers(model, LAYERS, parameters)
    optimizer = optimizers.Adam(learning_rate=2e-3)
    step = value_and_grad(model, partial(_loss, model))
    batch = _padded(examples)
    last = 0.0
    for _ in range(most):
        loss, gradients = step(*batch)
        optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), optimizer.state, loss)
        last = float(loss)
        if last < 0.01:
            break
    directory.mkdir(parents=True)
    learned: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(directory / "adapters.safetensors"), learned)
    config = {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return last


def _loss(model: Any, tokens: mx.array, weights: mx.array) -> mx.array:
    from mlx.nn.losses import cross_entropy

    losses = cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def _padded(examples: Sequence[wire.Example]) -> tuple[mx.array, mx.array]:
    longest = max(len(example.tokens) for example in examples)
    tokens = [[*example.tokens, *[0] * (longest - len(example.tokens))] for example in examples]
    weights = [[*example.mask, *[0.0] * (longest - len(example.mask))] for example in examples]
    return mx.array(tokens), mx.array(weights)


def fuse(base: Path, adapter: Path, directory: Path) -> Path:
    """Base and adapter as one model without quantised layers where the adapter is, as `mlx_lm.fuse` writes it."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import dequantize_model, load_model, save_config, save_model

    model, config = load_model(base)
    model = load_adapters(model, str(adapter))
    fused = [(name, m.fuse(dequantize=True)) for name, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    model = dequantize_model(model)
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors*", "config.json"))
    save_model(directory, model)
    save_config({k: v for k, v in config.items() if not k.startswith("quantization")}, directory / "config.json")
    return directory
