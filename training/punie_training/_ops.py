"""Softmax, sigmoid and cross entropy built from additions and multiplications.

MLX vectorises arithmetic on a CPU, but not `exp`: nine nanoseconds an element, where a multiplication takes a tenth
of one. The exponentials of attention, SwiGLU and the loss would cost as much as all matrix products together.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from punie.backends._mlx import ON_GPU, mx

P = ParamSpec("P")
R = TypeVar("R")

# Minimax polynomial of 2**f on [-0.5, 0.5]; relative error 1e-7, one unit in the last place of float32.
_POWER_OF_TWO = (0.00133908633635, 0.00967603191826, 0.0555035711422, 0.240221074853, 0.693147188026, 1.0)
_LOG2_E = 1.4426950408889634
# Adding 1.5 * 2**23 rounds a float32 to an integer and leaves that integer in its low bits.
_ROUNDING = 12582912.0
# exp(-40) is 4e-18: beside a maximum of 1 it is nothing in float32, and its products never become slow denormals.
_LIMIT = 40.0


def exp(x: mx.array) -> mx.array:
    """Float32 exponential of `x` clipped to [-40, 40]; the native one on a GPU."""
    if ON_GPU:
        return mx.exp(x)
    y = mx.clip(x, -_LIMIT, _LIMIT) * _LOG2_E
    shifted = y + _ROUNDING
    fraction = y - (shifted - _ROUNDING)
    power = mx.array(_POWER_OF_TWO[0])
    for coefficient in _POWER_OF_TWO[1:]:
        power = power * fraction + coefficient
    exponent = shifted.view(mx.int32) << 23
    return (power.view(mx.int32) + exponent).view(mx.float32)


def _with_gradient(gradient: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function this gradient in place of the derived one; it gets (inputs, cotangents, outputs)."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        made = mx.custom_function(function)
        made.vjp(gradient)
        return cast("Callable[P, R]", made)

    return decorate


def _sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp(-x))


def _softmax_gradient(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    product = cotangent * output
    return product - output * product.sum(-1, keepdims=True)


@_with_gradient(_softmax_gradient)
def softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis."""
    weights = exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


Pair = tuple[mx.array, mx.array]


def _swiglu_gradient(primals: Pair, cotangent: mx.array, _: mx.array) -> Pair:
    gate, up = primals
    share = _sigmoid(gate)
    passed = gate * share
    return cotangent * up * (share + passed * (1.0 - share)), cotangent * passed


@_with_gradient(_swiglu_gradient)
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """`gate * sigmoid(gate) * up`; only the two are kept for the gradient, what lies between is computed again."""
    return gate * _sigmoid(gate) * up


def _joint_softmax_gradient(_: Pair, cotangents: Pair, outputs: Pair) -> Pair:
    left, right = cotangents[0] * outputs[0], cotangents[1] * outputs[1]
    total = left.sum(-1, keepdims=True) + right.sum(-1, keepdims=True)
    return left - outputs[0] * total, right - outputs[1] * total


@_with_gradient(_joint_softmax_gradient)
def joint_softmax(left: mx.array, right: mx.array) -> Pair:
    """Softmax over the concatenation of two last axes, without concatenating them."""
    top = mx.maximum(left.max(-1, keepdims=True), right.max(-1, keepdims=True))
    left, right = exp(left - top), exp(right - top)
    total = left.sum(-1, keepdims=True) + right.sum(-1, keepdims=True)
    return left / total, right / total


def _cross_entropy_gradient(primals: Pair, cotangent: mx.array, _: mx.array) -> Pair:
    logits, targets = primals
    gradient = exp(logits - _logsumexp(logits)).at[mx.arange(len(targets)), targets].add(-1.0)
    return gradient * cotangent[:, None], mx.zeros_like(targets)


@_with_gradient(_cross_entropy_gradient)
def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Negative log probability of `targets` (N) under `logits` (N, V): N numbers."""
    return (_logsumexp(logits) - mx.take_along_axis(logits, targets[:, None], axis=-1))[:, 0]


def _logsumexp(logits: mx.array) -> mx.array:
    top = logits.max(-1, keepdims=True)
    return mx.log(exp(logits - top).sum(-1, keepdims=True)) + top
