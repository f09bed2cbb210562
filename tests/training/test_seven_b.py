"""The recipe of the 7B the whole way, on a tiny random model of the same architecture, at 4 bits, on a CPU."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from pydantic_ai.messages import ModelMessage
from tests.backends import families, tiny

from punie import wire
from punie.agent import TurnEnded, create_agent, run_turn
from punie.backends import _mlx_files
from punie.backends._local import Loaded, LocalModel
from punie.backends._mlx import mx, optimizers
from punie.backends.catalogue import entry
from punie.cli import main
from punie.config import AgentConfig
from punie.tools import Workspace
from punie.wire import Example, Wire
from punie_training import _ops, evaluate, examine, forecast
from punie_training._loss import collate, summed_loss
from punie_training.adapter import add_lora
from punie_training.base import load
from punie_training.examples import declarations, prepare
from punie_training.generate import Studio
from punie_training.recipe import Data, Lora, Optim, Recipe, Watch
from punie_training.suite import Case
from punie_training.tasks import Expect, Step, Task, Turn

RECIPE = Path(__file__).parents[2] / "training" / "recipes" / "qwen2.5-coder-7b.toml"
NAME = "qwen2.5-coder-7b"
CONFIG = AgentConfig(tools=("find_subclasses",), max_tokens=96)
ASK, ANSWER = "Find all classes that inherit from Protocol", "2 classes inherit from Protocol:\n[[result]]"
CALL = wire.call("find_subclasses", {"name": "Protocol"})
GREET, GREETING = "What is a protocol?", "A protocol is a set of methods."
OFFERED = [tool for tool in declarations() if tool["function"]["name"] == "find_subclasses"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights at 4 bits with scales of 16, as they are published."""
    from punie.agent.instructions import prompt

    place = tmp_path_factory.mktemp("base")
    qwen2 = families.FAMILIES[0]
    texts = [qwen2.template, json.dumps(declarations()), prompt("system"), ASK, ANSWER, GREET, GREETING, CALL.arguments]
    path = families.write_model(place / "tiny-4bit", qwen2, texts=texts * 3, vocabulary=1500)
    weights = path / "model.safetensors"
    stored = cast("dict[str, mx.array]", mx.load(str(weights)))
    halved = {name: v.astype(mx.float16) if v.dtype == mx.float32 else v for name, v in stored.items()}
    mx.eval(halved)
    mx.save_safetensors(str(weights), halved, {"format": "mlx"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return path


class Kept(tiny.ScriptedEngine):
    """Keeps what it was asked to continue."""

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [request["prompt"] for request in self.requests]  # type: ignore[misc]


async def talk(base: Path, root: Path, *texts: str) -> tuple[list[tuple[int, ...]], Sequence[ModelMessage]]:
    """What an agent asks a model of this base, which says these texts; and the conversation that came of it."""
    found = _mlx_files.directory_files(str(base))
    engine = Kept(*texts)
    loaded = Loaded(engine, Wire.load(found.tokenizer, template=found.template), load_s=0.0)
    agent = create_agent(CONFIG, model=LocalModel(lambda: loaded, name="tiny", context_window=4096))
    ended = [
        e async for e in run_turn(agent, ASK, workspace=Workspace(root), config=CONFIG) if isinstance(e, TurnEnded)
    ]
    return engine.prompts, ended[0].messages


@pytest.fixture
async def rows(base: Path, project: Path, tmp_path: Path) -> Path:
    """Rows as the generator writes them: a real run, and a general question, a few times each."""
    _, messages = await talk(base, project, CALL.render(), ANSWER)
    turns = [message for message in wire.conversation(messages) if message.role != "system"]
    said = [
        {"role": t.role, "content": t.content, "calls": [{"name": c.name, "arguments": json.loads(c.arguments)}]}
        if (c := next(iter(t.calls), None))
        else {"role": t.role, "content": t.content}
        for t in turns
    ]
    asked = {"family": "subclasses", "project": "shop", "messages": said, "tools": OFFERED}
    plain = [{"role": "user", "content": GREET}, {"role": "assistant", "content": GREETING}]
    direct = {"family": "concept", "messages": plain, "tools": OFFERED}
    made = [json.dumps({"id": str(i), **(direct if i % 4 == 3 else asked)}) for i in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(made) + "\n")
    return path


async def test_rows_are_what_the_model_is_asked_and_says(base: Path, project: Path, rows: Path) -> None:
    """Every prompt of the run is the beginning of its row; what is learned is what was said, with its end."""
    prompts, _ = await talk(base, project, CALL.render(), ANSWER)
    prepared = prepare(Recipe.load(RECIPE), data=rows, base=base)
    found = _mlx_files.directory_files(str(base))
    renderer = Wire.load(found.tokenizer, template=found.template)
    example = next(e for e in prepared.examples if 1.0 in e.mask)
    assert len(prompts) == 2
    assert all(example.tokens[: len(prompt)] == prompt for prompt in prompts)
    learned = [t for t, weight in zip(example.tokens, example.mask, strict=True) if weight]
    text = renderer.tokenizer.decode(learned, skip_special_tokens=False)
    assert text == f"{CALL.render()}<|im_end|>{ANSWER}<|im_end|>"
    assert prepared.template == found.template


def test_both_tokens_end_a_turn(base: Path) -> None:
    found = _mlx_files.directory_files(str(base))
    names = Wire.load(found.tokenizer, template=found.template).tokenizer
    assert {names.id_to_token(token) for token in found.end} == set(entry(NAME).end)


def by_heart(directory: Path) -> Path:
    """The recipe, changed only in how far and how fast it goes: random weights have to learn the words too."""
    text = RECIPE.read_text()
    for old, new in (("lr = 1e-4", "lr = 8e-3"), ("epochs = 1", "epochs = 60"), ("scale = 2.0", "scale = 4.0")):
        assert old in text
        text = text.replace(old, new)
    path = directory / "by-heart.toml"
    path.write_text(text.replace("direct_weight = 0.3", "direct_weight = 1.0"))
    return path


async def test_the_whole_way(base: Path, rows: Path, project: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, adapter = by_heart(tmp_path), tmp_path / "training" / "runs" / "by-heart" / "adapter"
    assert main(["train", "run", str(recipe), "--data", str(rows), "--base", str(base)]) == 0
    assert json.loads((adapter / "adapter_config.json").read_text())["num_layers"] == -1
    for bits in ("8", "4"):
        out = ["--out", str(tmp_path / f"fused-{bits}"), "--bits", bits, "--data", str(rows), "--probes", "1"]
        assert main(["train", "fuse", str(adapter), "--base", str(base), *out]) == 0
    printed = capsys.readouterr().out
    survival = {
        int(line.split()[0]): float(line.split()[1]) for line in printed.splitlines() if line[:4].strip() in "48"
    }
    assert survival[4] < survival[8]
    assert survival[8] > 0.99
    for spec in (f"mlx:{base}+{adapter}", f"mlx:{tmp_path / 'fused-8'}"):
        model = examine.build(examine.Plan(spec, "test", tmp_path / "eval", cache_dir=tmp_path), CONFIG)
        assert isinstance(model, LocalModel)
        try:
            outcome = await evaluate.run_case(canary(), model=model, config=CONFIG, studio=Studio("shop", project))
        finally:
            model.close()
        assert (outcome.first_call_right, outcome.valid_calls, outcome.stop_reason) == (True, True, "done"), spec
        assert outcome.answer.startswith("2 classes inherit from Protocol:")
        assert "class Priced(Protocol)" in outcome.answer


def canary() -> Case:
    turn = Turn("canary", ASK, (Step("find_subclasses", {"name": "Protocol"}),), "", Expect("words"))
    return Case("canary", Task("canary", "shop", (turn,)))


def test_the_recipe_runs_as_it_is(base: Path, rows: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run", str(RECIPE), "--data", str(rows), "--base", str(base)]) == 0
    manifest = json.loads((tmp_path / "training" / "runs" / NAME / "adapter" / "manifest.json").read_text())
    assert manifest["recipe"] == Recipe.load(RECIPE).hash
    assert manifest["settings"]["base"] == NAME
    assert manifest["loss"] > 0
    assert "4 rows in" in capsys.readouterr().err


# --- gradients -----------------------------------------------------------------------------------------------------


def short_rows(count: int, *, prefix: int, length: int, learned: int = 6) -> list[Example]:
    return [
        Example((*[5] * prefix, 7 + i, *[9 + i] * length), (0,) * (prefix + 1 + length - learned) + (1,) * learned)
        for i in range(count)
    ]


def gradients(model, batch, *, recompute: bool):
    from mlx.nn.utils import value_and_grad
    from mlx.utils import tree_flatten

    loss, found = value_and_grad(model, lambda b: summed_loss(model, b, recompute=recompute))(batch)
    mx.eval(loss, found)
    return float(loss), dict(tree_flatten(found))


@pytest.fixture
def model(base: Path):
    made = load(base)
    add_lora(made, Lora(rank=4, layers="all"), seed=1)
    step = optimizers.Adam(learning_rate=0.05)
    _, found = gradients(made, collate(short_rows(2, prefix=6, length=9)), recompute=False)
    from mlx.utils import tree_unflatten

    step.update(made, tree_unflatten(list(found.items())))  # B starts as zeros, where A has no gradient
    mx.eval(made.parameters())
    return made


def test_recomputing_changes_no_gradient(model) -> None:
    batch = collate(short_rows(3, prefix=6, length=9))
    (kept, a), (again, b) = (gradients(model, batch, recompute=flag) for flag in (False, True))
    assert again == pytest.approx(kept, rel=1e-5)
    assert a.keys() == b.keys()
    assert all(mx.allclose(a[name], b[name], rtol=1e-3, atol=1e-5) for name in a)
    assert max(float(mx.abs(value).max()) for value in a.values()) > 1e-3


def test_weights_of_16_bits_are_widened_on_a_cpu_and_train_without(base: Path, monkeypatch) -> None:
    """Unwidened, with the operations an Apple GPU uses: the loss is that of 32 bits, and every gradient is a number."""
    batch, found = collate(short_rows(1, prefix=3, length=5)), {}
    for widen in (True, False):
        made = load(base, widen=widen)
        kinds = {p.dtype for n, p in _flat(made).items() if n.endswith("scales")}
        assert kinds == {mx.float32 if widen else mx.float16}
        add_lora(made, Lora(rank=2, layers="all"), seed=1)
        monkeypatch.setattr(_ops, "ON_GPU", not widen)
        found[widen] = gradients(made, batch, recompute=False)
    assert found[False][0] == pytest.approx(found[True][0], rel=0.02)
    assert all(bool(mx.isfinite(value).all()) for value in found[False][1].values())


def _flat(model) -> dict[str, mx.array]:
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


# --- the plan ------------------------------------------------------------------------------------------------------


def small(tmp_path: Path) -> Path:
    """Wide enough for activations to be most of the peak."""
    shape = {**families.SHARED, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    qwen2 = families.Family("qwen2", families.QWEN2, {**shape, "tie_word_embeddings": False})
    return families.write_model(tmp_path / "small", qwen2, texts=["the text"])


@pytest.mark.parametrize("recompute", [False, True])
def test_planned_memory_is_within_a_third_of_the_measured_peak(tmp_path: Path, recompute: bool) -> None:
    path = small(tmp_path)
    rows = short_rows(4, prefix=120, length=30)
    recipe = Recipe(
        data=Data(max_tokens=400),
        lora=Lora(layers="all"),
        optim=Optim(batch_tokens=400, recompute=recompute),
        eval=Watch(dev_rows=0),
    )
    base = forecast.Base("small", forecast._memory.plan_for(path, context=1).shape, forecast.weight_bytes(path), 0, "")
    planned = forecast.planned(recipe, rows, base)
    model = load(path)
    add_lora(model, recipe.lora, seed=0)
    assert sum(value.size for value in dict(_trained(model)).values()) == planned.matrices
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    gradients(model, collate(rows), recompute=recompute)
    grown = mx.get_peak_memory() - before
    memory = planned.memory
    wanted = memory.kept + max(memory.working, memory.logits)
    assert 3 / 4 < wanted / grown < 4 / 3, (wanted, grown)
    assert memory.weights == pytest.approx(sum(v.nbytes for n, v in _flat(model).items() if "lora" not in n), rel=0.05)


def _trained(model):
    from mlx.utils import tree_flatten

    return tree_flatten(model.trainable_parameters())


def test_the_numbers_of_the_catalogue_are_those_of_the_published_model() -> None:
    """Counted from its dimensions, the 7B has the parameters and the size that the catalogue states."""
    known = entry(NAME)
    config = known.config
    h, i, layers, v = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    keys = h // config["num_attention_heads"] * config["num_key_value_heads"]
    block = 2 * h * h + 2 * h * keys + 3 * h * i + (h + 2 * keys) + 2 * h
    assert layers * block + 2 * v * h + h == known.parameters
    assert known.parameters * 4.5 / 8 == pytest.approx(known.mlx_size_bytes, rel=0.01)
    assert forecast.trained_numbers(forecast._memory.shape_of(config), Lora(layers="all")) == 40_370_176


def test_the_plan_command(base: Path, rows: Path, tmp_path: Path, capsys) -> None:
    asked = ["train", "plan", str(RECIPE), "--data", str(rows), "--base", str(base)]
    assert main([*asked, "--tokens-per-second", "50", "--json", "--memory", "30GB"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["dev_rows"], found["measured"], found["fits"]) == (4, 4, False, True)
    assert found["seconds"] == pytest.approx(found["row_tokens"] / 50)
    (tmp_path / "train.log").write_text(
        "1/2 loss 1.0 norm 1.00 40 tok/s 4 rows\n2/2 loss 1.0 norm 1.00 60 tok/s 4 rows\n"
    )
    assert main([*asked, "--like", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "planned, not measured" in printed
    assert "50 tokens/s of the rows" in printed
    assert "the seed measured 18.5 GB at batch 2" in printed
    assert main([*asked, "--memory", "100MB"]) == 1
    assert "planned to take" in capsys.readouterr().err
