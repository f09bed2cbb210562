"""The loss of a batch of rows that begin alike, computed with the common prefix only once.

The rows of a tool-calling data set all start with the same instructions, often more than half of their tokens. Here
the prefix runs through the network as one sequence beside the suffixes of the batch: the linear layers see all tokens
in one product, and each suffix attends to the prefix's keys and values and causally to itself. Loss and gradients
equal those of whole rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from punie.backends._mlx import mx  # isort: skip
from mlx.nn.utils import checkpoint

from punie.wire import Example
from punie_training import _ops
from punie_training.plan import shared_prefix


@dataclass(frozen=True)
class Batch:
    """Arrays: `prefix` (P), `suffix` (B, S) right-padded, `positions` into B*S, their `targets` and `weights`."""

    prefix: mx.array
    suffix: mx.array
    positions: mx.array
    targets: mx.array
    weights: mx.array
    """What each learned token counts, float32; their sum is what a loss is divided by."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that pass through the network, padding included."""
        return self.prefix.size + self.suffix.size


def collate(rows: Sequence[Example]) -> Batch:
    """Arrays for rows that each have a learned token after their first one."""
    prefix = shared_prefix(rows)
    width = max(len(row.tokens) for row in rows) - 1 - prefix
    suffix = np.zeros((len(rows), width), dtype=np.int32)
    positions, targets, weights = [], [], []
    for number, row in enumerate(rows):
        suffix[number, : len(row.tokens) - 1 - prefix] = row.tokens[prefix:-1]
        learned = [i for i, wanted in enumerate(row.mask) if wanted and i > 0]
        positions += [number * width + i - 1 - prefix for i in learned]
        targets += [row.tokens[i] for i in learned]
        weights += [row.mask[i] for i in learned]
    head = np.array(rows[0].tokens[:prefix], dtype=np.int32)
    arrays = (mx.array(x) for x in (head, suffix, positions, targets))
    return Batch(*arrays, weights=mx.array(weights, dtype=mx.float32))


def summed_loss(model: Any, batch: Batch, *, recompute: bool = False) -> mx.array:
    """Weighted sum of the cross entropies of the learned tokens; `model` is an mlx-lm Llama or Qwen2 model.

    `recompute`: keep only what goes into each block, and compute the rest again when the gradient needs it.
    """
    hidden = _suffix_states(model.model, batch, recompute=recompute)[batch.positions]
    embedding = model.model.embed_tokens
    project = embedding.as_linear if model.args.tie_word_embeddings else model.lm_head
    return (_ops.cross_entropy(project(hidden).astype(mx.float32), batch.targets) * batch.weights).sum()


def _suffix_states(network: Any, batch: Batch, *, recompute: bool) -> mx.array:
    """Normalised last hidden states of the suffixes, (B*S, D)."""
    hidden = network.embed_tokens(mx.concatenate([batch.prefix, batch.suffix.reshape(-1)]))
    shape = (batch.prefix.size, batch.suffix.shape[0], batch.suffix.shape[1])
    masks = _causal_mask(shape[0]), _causal_mask(shape[2])
    for layer in network.layers:
        block = partial(_block, layer, shape=shape, masks=masks)
        hidden = checkpoint(layer, block)(hidden) if recompute else block(hidden)
    return network.norm(hidden[shape[0] :])


def _block(layer: Any, x: mx.array, *, shape: tuple[int, int, int], masks: tuple[mx.array, mx.array]) -> mx.array:
    """One layer of the network: attention and the feed-forward part, each beside what goes into it."""
    x = x + _attention(layer.self_attn, layer.input_layernorm(x), shape=shape, masks=masks)
    normed = layer.post_attention_layernorm(x)
    return x + layer.mlp.down_proj(_ops.swiglu(layer.mlp.gate_proj(normed), layer.mlp.up_proj(normed)))


def _attention(block: Any, x: mx.array, *, shape: tuple[int, int, int], masks: tuple[mx.array, mx.array]) -> mx.array:
    """Attention of the prefix to itself, and of each suffix to the prefix and to itself.

    In float32, also where the weights have 16 bits: scores of Qwen2 can be too large for float16, and sums over
    thousands of tokens are too fine for bfloat16.
    """
    heads, groups = block.n_kv_heads, block.n_heads // block.n_kv_heads
    queries, keys, values = (
        _split(project(x).astype(mx.float32), heads=heads, repeats=repeats, shape=shape)
        for project, repeats in ((block.q_proj, groups), (block.k_proj, 1), (block.v_proj, 1))
    )
    queries = [_rotate(block.rope, y * block.scale, offset=at) for y, at in zip(queries, (0, shape[0]), strict=True)]
    keys = [_rotate(block.rope, y, offset=at).swapaxes(-1, -2) for y, at in zip(keys, (0, shape[0]), strict=True)]
    among_prefix = _ops.softmax(_product(queries[0], keys[0]) + masks[0])
    own_scores = _product(queries[1], keys[1]) + masks[1]
    to_prefix, to_own = _ops.joint_softmax(_product(queries[1], keys[0]), own_scores)
    suffix_out = _product(to_prefix, values[0]) + _product(to_own, values[1])
    merged = mx.concatenate([_merge(_product(among_prefix, values[0])), _merge(suffix_out)])
    return block.o_proj(merged.astype(x.dtype))


def _split(y: mx.array, *, heads: int, repeats: int, shape: tuple[int, int, int]) -> list[mx.array]:
    """Prefix and suffix parts of a projection, each (key-value heads, rows, query heads per key, length, D)."""
    prefix, rows, length = shape
    parts = y[:prefix].reshape(1, prefix, heads, repeats, -1), y[prefix:].reshape(rows, length, heads, repeats, -1)
    return [part.transpose(2, 0, 3, 1, 4) for part in parts]


def _rotate(rope: Any, y: mx.array, *, offset: int) -> mx.array:
    return rope(y.reshape(1, -1, *y.shape[-2:]), offset=offset).reshape(y.shape)


def _product(left: mx.array, right: mx.array) -> mx.array:
    """Matrix product per head; rows and query heads that share the right side become one tall left matrix."""
    shared = right.shape[1] == 1
    tall = (
        left.reshape(left.shape[0], -1, left.shape[-1]) if shared else left.reshape(*left.shape[:2], -1, left.shape[-1])
    )
    out = tall @ (right.squeeze((1, 2)) if shared else right.squeeze(2))
    return out.reshape(*left.shape[:-1], right.shape[-1])


def _merge(y: mx.array) -> mx.array:
    """(heads, rows, query heads, length, D) back to (tokens, features)."""
    return y.transpose(1, 3, 0, 2, 4).reshape(y.shape[1] * y.shape[3], -1)


def _causal_mask(length: int) -> mx.array:
    """Additive mask: adding is vectorised on a CPU, selecting is not."""
    order = mx.arange(length)
    return mx.where(order[:, None] >= order[None], 0.0, -1e9)
