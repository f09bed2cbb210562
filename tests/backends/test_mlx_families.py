"""The families of the catalogue the whole way: 4-bit weights, LoRA on them, fused, served, calls in their dialect."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten
from pydantic_ai import Agent, Tool
from tests.backends import families
from tests.backends.families import FAMILIES, Family
from tests.backends.test_mlx import pieces, text

from punie import wire
from punie.backends import _memory, _mlx_files, _mlx_model, _weights
from punie.backends._engine import CallGrammar
from punie.backends._headers import safetensors_tensors
from punie.backends._mlx import mx
from punie.backends.mlx import Mlx, build
from punie.local_models import EngineOptions

CALL = wire.call("read_file", {"path": "src/a b.py"})
ASK, ANSWER = "What is in it?", "It says hello."
GREET, GREETING = "Hello", "Good day."


def read_file(path: str) -> str:
    """Read."""
    return f"hello from {path}"


TOOLS = (Tool(read_file).tool_def,)
DECLARED = wire.declarations(TOOLS)
TALK = (
    wire.Message("user", ASK),
    wire.Message("assistant", "", (CALL,)),
    wire.Message("tool", read_file("src/a b.py")),
    wire.Message("assistant", ANSWER),
)
GREETED = (wire.Message("user", GREET), wire.Message("assistant", GREETING))


@dataclass(frozen=True)
class Made:
    """A model that was written, its adapter, and how well that was learnt."""

    family: Family
    base: Path
    adapter: Path
    loss: float

    @property
    def files(self) -> _mlx_files.ModelFiles:
        return _mlx_files.directory_files(str(self.base))

    def wire(self) -> wire.Wire:
        return wire.Wire.load(self.files.tokenizer, template=self.files.template)

    def engine(self, *, adapter: bool = True, path: Path | None = None, options: EngineOptions | None = None) -> Mlx:
        return Mlx(
            path or self.base,
            self.wire().tokenizer,
            context_window=families.WINDOW,
            end=self.files.end,
            adapter=self.adapter if adapter else None,
            options=options or EngineOptions(),
        )


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.kind)
def made(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param.kind)
    texts = [request.param.template, json.dumps(DECLARED), ASK, ANSWER, GREET, GREETING, CALL.arguments]
    base = families.write_model(place / "base", request.param, texts=texts)
    found = _mlx_files.directory_files(str(base))
    renderer = wire.Wire.load(found.tokenizer, template=found.template)
    rows = [renderer.example(TALK, DECLARED), other_end(renderer.example(GREETED, DECLARED), renderer)]
    loss = families.train_adapter(base, place / "adapter", rows)
    return Made(request.param, base, place / "adapter", loss)


def other_end(example: wire.Example, renderer: wire.Wire) -> wire.Example:
    """The same row with its last turn ended by the other token that ends turns."""
    ids = renderer.tokenizer.get_vocab()
    end, other = ids["<|im_end|>"], ids["<|endoftext|>"]
    at = len(example.tokens) - 1 - example.tokens[::-1].index(end)
    return wire.Example((*example.tokens[:at], other), example.mask[: at + 1])


def test_a_directory_of_the_family_says_what_it_is(made):
    found = made.files
    names = {made.wire().tokenizer.id_to_token(token) for token in found.end}
    assert names == {"<|im_end|>", "<|endoftext|>"}
    assert found.context_window == families.WINDOW
    assert made.wire().dialect == ("xml" if made.family.kind == "qwen3_moe" else "json")
    stored = sum(path.stat().st_size for path in made.base.glob("*.safetensors"))
    assert 0.9 * stored < _memory.plan_for(made.base, context=512).weights <= stored


def test_the_adapter_stays_beside_quantised_layers(made):
    model = _mlx_model.load(made.base, adapter=made.adapter)
    kinds = {type(m.linear).__name__ for _, m in model.named_modules() if hasattr(m, "linear")}
    assert kinds == ({"QuantizedLinear"} | ({"QuantizedSwitchLinear"} if made.family.kind == "qwen3_moe" else set()))
    learned = safetensors_tensors(made.adapter / "adapters.safetensors")
    held: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    assert {name: held[name].shape for name in learned} == {name: value.shape for name, value in learned.items()}
    assert made.loss < 0.05


def test_both_ends_of_turn_end_the_answer(made):
    engine, renderer = made.engine(), made.wire()
    for messages, said in ((TALK[:3], ANSWER), (GREETED[:1], GREETING)):
        found = pieces(engine, prompt=renderer.prompt(messages, DECLARED), max_tokens=60)
        assert (text(found), found[-1].finish) == (said, "stop")


def test_calls_come_in_the_dialect_of_the_template(made):
    said = text(pieces(made.engine(), prompt=made.wire().prompt(TALK[:1], DECLARED), max_tokens=90))
    assert said == CALL.render(made.wire().dialect)
    reply = wire.parse(said, names=("read_file",), dialect=made.wire().dialect)
    assert (reply.text, reply.calls) == ("", (CALL,))


def test_guesses_and_grammar_change_no_valid_call(made):
    engine, prompt = made.engine(), made.wire().prompt(TALK[:1], DECLARED)
    wanted = text(pieces(engine, prompt=prompt, max_tokens=90))
    assert text(pieces(engine, prompt=prompt, max_tokens=90, speculate=True)) == wanted
    if made.wire().dialect == "json":
        grammar = CallGrammar((("read_file", json.dumps(TOOLS[0].parameters_json_schema)),))
        for speculate in (False, True):
            asked = {"grammar": grammar, "speculate": speculate}
            assert text(pieces(engine, prompt=prompt, max_tokens=90, **asked)) == wanted


@pytest.mark.parametrize(
    "made", [f for f in FAMILIES if f.template is families.QWEN2], ids=lambda f: f.kind, indirect=True
)
def test_the_call_that_was_learnt_is_bent_to_another_schema(made):
    """Where the model would write what is not allowed it writes what is. There is no grammar for calls in XML."""
    schema = {"properties": {"file": {"enum": ["x.py", "src/a b.py"]}}, "required": ["file"]}
    grammar = CallGrammar((("look", json.dumps(schema)), ("see", json.dumps(schema))))
    for speculate in (False, True):
        prompt = made.wire().prompt(TALK[:1], DECLARED)
        found = text(pieces(made.engine(), prompt=prompt, max_tokens=90, grammar=grammar, speculate=speculate))
        call = wire.parse(found, names=("look", "see")).calls[0]
        assert call.name in {"look", "see"}
        assert json.loads(call.arguments)["file"] in {"x.py", "src/a b.py"}


def test_fused_it_says_the_same(made, tmp_path):
    fused = families.fuse(made.base, made.adapter, tmp_path / "fused")
    prompt = made.wire().prompt(TALK[:1], DECLARED)
    beside, within = (_mlx_model.load(made.base, adapter=made.adapter), _mlx_model.load(fused))
    rows = [np.array(model(mx.array([prompt]))[0].astype(mx.float32)) for model in (beside, within)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=0.02, atol=0.02)
    assert text(pieces(made.engine(adapter=False, path=fused), prompt=prompt, max_tokens=90)) == CALL.render(
        made.wire().dialect
    )


def test_a_cache_of_few_bits_still_makes_the_call(made):
    options = EngineOptions(kv_bits=8, kv_quantize_after=64)
    prompt = made.wire().prompt(TALK[:1], DECLARED)
    found = pieces(made.engine(options=options), prompt=prompt, max_tokens=90, speculate=True)
    assert wire.parse(text(found), names=("read_file",), dialect=made.wire().dialect).calls == (CALL,)


async def test_an_agent_calls_a_tool_and_answers(made, tmp_path):
    model = build(str(made.base), made.adapter, cache_dir=tmp_path, on_progress=_weights.silent)
    called = []

    def read_file(path: str) -> str:
        """Read."""
        called.append(path)
        return f"hello from {path}"

    agent = Agent(model, tools=[read_file])
    try:
        result = await agent.run(ASK, model_settings={"max_tokens": 90})
        assert (result.output, called) == (ANSWER, ["src/a b.py"])
        assert result.usage.cache_read_tokens > 0, "the second request extends the first"
        assert (await agent.run(GREET)).output == GREETING
        assert model.model_name.startswith("base+adapter@")
    finally:
        model.close()
