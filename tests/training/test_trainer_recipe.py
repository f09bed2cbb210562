from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.backends import tiny

from punie.backends._mlx import mx
from punie.errors import ConfigError
from punie.wire import Example
from punie_training import plan
from punie_training._loss import collate
from punie_training.adapter import add_lora, weights
from punie_training.base import load
from punie_training.examples import choose, loss_weight
from punie_training.recipe import Data, Lora, Optim, Recipe, Watch
from punie_training.rows import Row
from punie_training.sources import direct

RECIPES = Path(__file__).parents[2] / "training" / "recipes"
BASE = Recipe(data=Data(rows=30), lora=Lora(rank=4, layers=2), optim=Optim(warmup=2, batch_tokens=60))

# One other value for every field. `base` decides which model is fetched; the command line shows it in `prepare`.
OTHERS = {
    "seed": 1,
    "start": "another-run",
    "data.rows": 20,
    "data.direct_share": 0.5,
    "data.direct_weight": 0.5,
    "data.sources": {"generated": 3, "direct": 2},
    "data.families": ("count",),
    "data.projects": 1,
    "data.max_tokens": 30,
    "data.mask_share": 0.5,
    "data.twins": 1,
    "data.trace": "none",
    "data.answers": False,
    "data.copied": True,
    "lora.kind": "dora",
    "lora.rank": 2,
    "lora.scale": 1.0,
    "lora.keys": ("self_attn.q_proj",),
    "lora.layers": 1,
    "optim.lr": 1e-3,
    "optim.warmup": 0,
    "optim.epochs": 2,
    "optim.batch_tokens": 100,
    "optim.accumulation": 3,
    "optim.clip": 0.5,
    "optim.weight_decay": 0.1,
    "optim.beta2": 0.9,
    "optim.window": 4,
    "optim.recompute": True,
    "eval.dev_rows": 4,
    "eval.every": 3,
}
# What `optimizers` and the loop take as they are; test_trainer.py shows their effect on the trained weights.
SEEN_IN_TRAINING = {"start", "optim.beta2", "optim.clip", "optim.weight_decay", "eval.every", "optim.recompute"}


def rows() -> tuple[Row, ...]:
    """Forty rows, of which the first two are about one topic: a general question and its twin."""
    topic = next(topic for topic in direct.load("train") if topic.twin)
    made = []
    for i in range(40):
        project = "" if i % 4 == 0 else ("flask", "rich")[i % 2]
        messages = [
            {"role": "user", "content": topic.questions[0] if i == 0 else f"question {i}"},
            {"role": "assistant", "calls": [{"name": "search", "arguments": {"pattern": "x"}}]},
            {"role": "tool", "content": "one match\nx.py:1"},
            {"role": "assistant", "content": "a" * (1 + i % 20) + "\n[[result]]" * (i == 7)},
        ]
        row = {
            "id": str(i),
            "family": ("count", "search")[i // 2 % 2],
            "project": project,
            "template": f"twin/{topic.id}" if i == 1 else "",
            "messages": messages if project else [messages[0], messages[-1]],
        }
        made.append(Row.model_validate(row))
    return tuple(made)


def example(row: Row) -> Example:
    said = (f"{turn.content}{''.join(call.name for call in turn.calls)}" for turn in row.messages[1:])
    length = 10 + len("".join(said)) + int(row.id)
    return Example((1, 2, *range(5, 3 + length)), (0,) * (length - 3) + (1,) * 3)


def weighted(row: Row, data: Data) -> Example:
    plain = example(row)
    return replace(plain, mask=tuple(counts * loss_weight(row, data) for counts in plain.mask))


def effects(recipe: Recipe, model) -> tuple[object, ...]:
    """Everything the recipe decides before the first update."""
    chosen = plan.select([weighted(r, recipe.data) for r in choose(rows(), recipe.data, seed=recipe.seed)], recipe)
    updates = plan.updates(chosen.train, recipe, shared=plan.beginnings(chosen.train))
    rates = tuple(plan.learning_rate(recipe, update=u, total=20) for u in range(20))
    add_lora(model, recipe.lora, seed=recipe.seed)
    trained = weights(model)
    x = model.layers[-1].self_attn.q_proj
    return (
        chosen,
        updates,
        rates,
        x.scale,
        {n: (v.shape, float(mx.abs(v).sum())) for n, v in trained.items()},
    )


@pytest.fixture
def model(tiny_base):
    return lambda: load(tiny_base)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return tiny.write_gguf(tmp_path_factory.mktemp("base") / "tiny.gguf")


def changed(field: str) -> Recipe:
    values = BASE.model_dump()
    *path, name = field.split(".")
    part = values[path[0]] if path else values
    part[name] = OTHERS[field]
    return Recipe.model_validate(values)


def test_every_field_is_listed_here():
    parts = {"data": Data, "lora": Lora, "optim": Optim, "eval": Watch}
    fields = {f"{part}.{name}" for part, kind in parts.items() for name in kind.model_fields}
    assert fields | set(Recipe.model_fields) - set(parts) == set(OTHERS) | {"base"}


@pytest.mark.parametrize("field", sorted(OTHERS.keys() - SEEN_IN_TRAINING))
def test_every_field_reaches_the_data_or_the_trainer(field, model):
    assert effects(changed(field), model()) != effects(BASE, model())


def test_equal_recipes_have_equal_effects(model):
    assert effects(BASE, model()) == effects(Recipe.model_validate(BASE.model_dump()), model())


@pytest.mark.parametrize("field", sorted(OTHERS))
def test_every_field_changes_the_hash(field):
    assert changed(field).hash != BASE.hash


def test_the_hash_does_not_depend_on_how_a_recipe_is_written(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[optim]\nlr = 0.0004\n[data]\n")
    assert Recipe.load(path).hash == Recipe().hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rank = 16", "rank"),
        ("[lora]\nrnak = 16", "no key lora.rnak.\nDid you mean lora.rank?"),
        ("[optim]\nbatch_token = 16", "Did you mean optim.batch_tokens?"),
        ("rank = 16", "no key rank.\nDid you mean lora.rank?"),
        ("[data]\nrank = 16", "Did you mean lora.rank?"),
        ("warmpu = 3", "Did you mean optim.warmup?"),
        ("[optm]\nlr = 1", "Did you mean optim?"),
        ("sede = 1", "Did you mean seed?"),
        ("[eval]\nxyzzyq = 1", "These there are: eval.dev_rows, eval.every."),
        ("[lora]\nkind = 'rola'", "lora.kind: Input should be 'lora' or 'dora'."),
        ("[lora]\nrank = -1", "lora.rank"),
        ("[lora", "not valid TOML"),
        ('[data]\ntrace = "none"\nanswers = false', "neither calls nor answers"),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path, text, said):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="recipe\\.toml") as caught:
        Recipe.load(path)
    assert said in str(caught.value)


def test_keys_that_came_later_leave_the_hashes_of_older_recipes_as_they_were():
    known = {
        "0002-smaller-steps": "6fdd399178c82ee9c3551aaa33200c8a1398686e1133512c9c3874ce431757b7",
        "0003-more-steps": "c1e69223076384810f6eae27c9b00a348356fbb96ca3760d4be427c2a88a338d",
        "0004-more-words": "25e66cf943d531c511ad8efa76cfda07aeb2f59c7f4198e4bd5aeb0f24239808",
    }
    assert {name: Recipe.load(RECIPES / f"{name}.toml").hash for name in known} == known


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Recipe.load(tmp_path / "none.toml")


@pytest.mark.parametrize("lora", [Lora(keys=("self_attn.z_proj",), layers=1), Lora(layers=9)])
def test_lora_that_does_not_fit_the_model_is_refused(model, lora):
    with pytest.raises(ConfigError):
        add_lora(model(), lora, seed=0)


def test_shares_of_direct_rows():
    for share, total in ((0.0, 30), (0.5, 20), (1.0, 10)):
        chosen = choose(rows(), Data(direct_share=share), seed=0)
        assert len(chosen) == total
        assert sum(not row.project for row in chosen) == round(total * share)


def test_rows_that_cannot_be_learned_from_are_counted():
    fine, long, empty = Example((1, 2, 3), (0, 0, 1)), Example((1,) * 40, (0,) * 39 + (1,)), Example((1, 2), (0, 0))
    recipe = Recipe(data=Data(max_tokens=30), eval=Watch(dev_rows=0))
    chosen = plan.select([fine, long, empty, fine], recipe)
    assert (len(chosen.train), chosen.too_long, chosen.nothing_to_learn) == (2, 1, 1)


def test_every_row_is_trained_once_an_epoch_within_the_token_budget():
    made = [example(row) for row in rows()]
    recipe = Recipe(optim=Optim(epochs=2, batch_tokens=150, accumulation=2))
    shared = plan.beginnings(made)
    updates = plan.updates(made, recipe, shared=shared)
    batches = [batch for update in updates for batch in update]
    assert sorted(i for batch in batches for i in batch) == sorted([*range(len(made))] * 2)
    assert all(plan.computed(batch, made, shared=shared) <= 150 for batch in batches if len(batch) > 1)
    assert {len(update) for update in updates} <= {1, 2}


def test_rows_that_begin_otherwise_do_not_cost_the_others_what_they_share():
    same, other = (1, *range(100, 140)), (1, 2, *range(200, 230))
    heads = [other if i % 5 == 0 else same for i in range(40)]
    made = [Example((*head, i, 7, 8), (0,) * (len(head) + 1) + (1, 1)) for i, head in enumerate(heads)]
    shared = plan.beginnings(made)
    assert shared == tuple(map(len, heads))
    recipe = Recipe(optim=Optim(batch_tokens=60, window=20))
    batches = [batch for update in plan.updates(made, recipe, shared=shared) for batch in update]
    assert sorted(i for batch in batches for i in batch) == list(range(40))
    assert all(len({shared[i] for i in batch}) == 1 for batch in batches)
    for batch in batches:
        arrays = collate([made[i] for i in batch])
        assert arrays.prefix.size >= shared[batch[0]]
        assert arrays.computed_tokens <= 60
    assert plan.beginnings(made[1:5]) == (len(same),) * 4


def test_learning_rate_rises_then_falls_to_nothing():
    recipe = Recipe(optim=Optim(lr=1.0, warmup=4))
    rates = [plan.learning_rate(recipe, update=u, total=20) for u in range(20)]
    assert rates.index(max(rates)) == 4
    assert rates[4] == 1.0
    assert rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] < 0.02


def test_rows_are_taken_by_source_in_the_numbers_wanted():
    mixed = [row.model_copy(update={"source": "glaive"}) if i % 4 == 1 else row for i, row in enumerate(rows())]
    chosen = choose(mixed, Data(sources={"glaive": 4, "generated": 7}), seed=3)
    assert Counter(row.origin for row in chosen) == {"glaive": 4, "generated": 7}


def test_an_unknown_source_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"No row is from the source glaiv\.\n.*generated \(30\), direct \(10\)"):
        choose(rows(), Data(sources={"glaiv": 4}), seed=0)
