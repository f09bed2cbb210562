"""Train an adapter on one conversation, load it beside the weights, and ask: `train_adapter.py BASE DIRECTORY`.

BASE is an MLX model directory, or a GGUF file, with a chat template. With the tiny random model that the tests give it,
this takes seconds; real weights want real data and a recipe: see docs/training.md. `pip install "punie[training]"`.
"""

import json
import sys
from pathlib import Path

from punie import AgentConfig, Workspace, create_agent
from punie_training.examples import prepare
from punie_training.recipe import Lora, Optim, Recipe, Watch
from punie_training.trainer import Step, train

QUESTION, ANSWER = "What is Punie?", "A coding agent that runs on your own machine."


def show(step: Step) -> None:
    if step.update in {1, step.total}:
        print(f"update {step.update} of {step.total}: loss {step.loss:.2f}")


base, directory = Path(sys.argv[1]), Path(sys.argv[2])
turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
data = directory / "rows.jsonl"
data.write_text(json.dumps({"id": "1", "family": "concept", "messages": turns, "tools": []}) + "\n", "utf-8")

recipe = Recipe(
    base=str(base),
    lora=Lora(rank=8, layers="all"),
    optim=Optim(lr=1e-2, warmup=3, epochs=80),
    eval=Watch(dev_rows=0),
)
prepared = prepare(recipe, data=data)
trained = train(
    recipe,
    rows=prepared.examples,
    base=prepared.base,
    template=prepared.template,
    out=directory / "run",
    on_step=show,
)

engine = "mlx" if base.is_dir() else "gguf"
agent = create_agent(AgentConfig(model=f"{engine}:{base}+{trained.adapter}", tools=(), max_tokens=60))
print(agent.run_sync(QUESTION, deps=Workspace(directory)).output)
