import numpy as np
import pytest

from punie.backends._mlx import mx  # isort: skip
from mlx.nn import losses
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten
from tests.backends import tiny

from punie.wire import Example
from punie_training import _ops
from punie_training._loss import collate, summed_loss
from punie_training.adapter import add_lora
from punie_training.base import load
from punie_training.plan import shared_prefix
from punie_training.recipe import Lora

PREFIX = tuple(range(10, 24))


def row(*parts: tuple[bool, str], prefix: tuple[int, ...] = PREFIX) -> Example:
    """A row that learns the parts marked True; a token is a letter's number."""
    tokens, mask = list(prefix), [0] * len(prefix)
    for learned, text in parts:
        tokens += [ord(c) % 250 for c in text]
        mask += [int(learned)] * len(text)
    return Example(tuple(tokens), tuple(mask))


ROWS = (
    row((False, "find Flask"), (True, "call"), (False, "src/app.py:12"), (True, "there.")),
    row((False, "what"), (True, "a protocol is a structural type")),
    row((False, "who"), (True, "x")),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = load(tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf"))
    add_lora(made, Lora(rank=4, layers=tiny.LAYERS), seed=3)
    # lora_b starts as zeros, where the gradient of lora_a is zero too: a test that could not fail.
    noise = {
        n: mx.random.normal(v.shape, key=mx.random.key(i)) * 0.1
        for i, (n, v) in enumerate(dict(tree_flatten(made.trainable_parameters())).items())
    }
    made.load_weights(list(noise.items()), strict=False)
    return made


def plain_loss(model, rows):
    """One row at a time through the model's own forward pass."""
    total = mx.array(0.0)
    for example in rows:
        logits = model(mx.array([example.tokens[:-1]]))[0]
        each = losses.cross_entropy(logits, mx.array(example.tokens[1:]))
        total = total + (each * mx.array(example.mask[1:])).sum()
    return total


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:]], ids=["three", "one", "two"])
def test_loss_and_gradients_equal_those_of_whole_rows(model, rows):
    loss, gradients = value_and_grad(model, lambda: summed_loss(model, collate(rows)))()
    wanted_loss, wanted = value_and_grad(model, lambda: plain_loss(model, rows))()
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    found = dict(tree_flatten(gradients))
    for name, expected in dict(tree_flatten(wanted)).items():
        scale = float(mx.abs(expected).max())
        assert scale > 0, name
        np.testing.assert_allclose(np.array(found[name]), np.array(expected), atol=scale * 2e-4, err_msg=name)


def test_padding_does_not_change_a_row(model):
    alone = summed_loss(model, collate(ROWS[2:])).item() + summed_loss(model, collate(ROWS[:1])).item()
    assert summed_loss(model, collate((ROWS[2], ROWS[0]))).item() == pytest.approx(alone, rel=1e-5)


def test_prefix_is_what_the_rows_share_before_anything_is_learned():
    assert shared_prefix(ROWS) == len(PREFIX)  # "f" or "w"
    assert shared_prefix((ROWS[1], ROWS[2])) == len(PREFIX) + 2  # "wh"
    single = row((False, "ab"), (True, "c"))
    assert shared_prefix((single,)) == len(PREFIX) + 1  # the last position before "c" predicts it


def test_rows_that_begin_differently_are_refused():
    with pytest.raises(ValueError, match="begin with the same token"):
        shared_prefix((row((True, "a"), prefix=(1, 2, 3)), row((True, "a"), prefix=(2, 2, 3))))


def test_only_learned_tokens_are_targets():
    batch = collate(ROWS[:1])
    assert batch.targets.size == len("call") + len("there.")
    assert batch.targets.tolist() == [ord(c) % 250 for c in "callthere."]


def test_exponential_is_accurate_to_float32():
    x = np.linspace(-39, 39, 20_001, dtype=np.float32)
    relative = np.array(_ops.exp(mx.array(x))) / np.exp(x.astype(np.float64)) - 1
    assert np.abs(relative).max() < 5e-6
    assert np.abs(relative[np.abs(x) < 1]).max() < 5e-7


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda x: _ops.swiglu(x, x[::-1]), lambda x: x * mx.sigmoid(x) * x[::-1]),
        (lambda x: _ops.softmax(x), lambda x: mx.softmax(x, axis=-1)),
        (lambda x: mx.concatenate(list(_ops.joint_softmax(x[:, :3], x[:, 3:])), -1), lambda x: mx.softmax(x, axis=-1)),
        (
            lambda x: _ops.cross_entropy(x, mx.array([1, 0, 4, 2])).sum(),
            lambda x: losses.cross_entropy(x, mx.array([1, 0, 4, 2]), reduction="sum"),
        ),
    ],
    ids=["swiglu", "softmax", "joint softmax", "cross entropy"],
)
def test_operations_and_their_gradients_equal_those_of_mlx(ours, theirs):
    x = mx.random.normal((4, 9), key=mx.random.key(1)) * 5
    weight = mx.random.normal((4, 9), key=mx.random.key(2))
    np.testing.assert_allclose(np.array(ours(x)), np.array(theirs(x)), rtol=1e-5, atol=1e-7)
    found, wanted = (mx.grad(lambda x, f=f: (f(x) * weight).sum())(x) for f in (ours, theirs))
    np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-4, atol=1e-5)
