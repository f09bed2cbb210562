"""What a teacher is asked, settled before it is: the model, the tasks, and what they will take."""

import json
import os
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_ai.models import Model

from punie import backends
from punie.agent.factory import is_compact
from punie.agent.instructions import prompt
from punie.config import AgentConfig, Limits, load_settings
from punie.errors import UsageError
from punie_training import evaluate, jsonl
from punie_training.families import FAMILIES, Family, family
from punie_training.generate import PROJECT_USED_UP, Harvest, Row, Studio, studios, subjects
from punie_training.sources import cost
from punie_training.sources.attempts import stored
from punie_training.sources.cost import Tokens
from punie_training.sources.taught import SOURCE
from punie_training.tasks import Task

SHORT = """\
When the answer is what a tool returned, give all of its lines, unchanged, one a line, below one short line that says \
what they are. Otherwise answer in one sentence. Say nothing beside a call, and make one call at a time.\
"""
"""What a teacher is told besides Punie's own instructions: an answer has to have the form of the other rows."""
LIMITS = Limits(max_turns=6, max_tool_calls=8)
"""Of a question; the oracle's longest plan has two calls, and who needs many more gives no row to learn from."""
VARIED = 0.7
"""The temperature of several attempts, where none is asked for."""


@dataclass(frozen=True)
class Plan:
    """What is asked of whom."""

    spec: str
    """A model spec or an alias, as for `punie --model`."""
    cache_dir: Path
    out: Path | None = None
    """The file of rows; None names it after the teacher."""
    limit: int = 200
    families: tuple[str, ...] = ()
    """None named means all."""
    seed: int = 0
    attempts: int = 1
    temperature: float | None = None

    def __post_init__(self) -> None:
        known = [f.name for f in FAMILIES]
        if unknown := [name for name in self.families if name not in known]:
            raise UsageError(f"There is no family {', '.join(unknown)}.", f"Families: {', '.join(known)}.")
        if self.limit < 1 or self.attempts < 1:
            raise UsageError("--limit and --attempts must be at least 1.")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise UsageError(f"--temperature must be from 0 to 2, not {self.temperature}.")
        if self.attempts > 1 and self.temperature == 0:
            raise UsageError("Attempts at temperature 0 are all the same.", "Leave out --temperature, or --attempts.")


@dataclass(frozen=True)
class Asked:
    """A task, and the oracle's own conversation about it."""

    task: Task
    own: Row

    @cached_property
    def plan(self) -> str:
        """Changes when a question, a plan or an expectation does."""
        return evaluate.key({"task": json.dumps(asdict(self.task), sort_keys=True)})


@dataclass(frozen=True)
class Course:
    """Everything that is settled before the teacher is asked."""

    plan: Plan
    spec: str
    """Without aliases."""
    model: Model
    config: AgentConfig
    opened: Sequence[Studio]
    asked: Sequence[Asked]
    skipped: Mapping[str, int]
    """Family and reason -> tasks that were drawn and not taken."""
    out: Path

    @property
    def store(self) -> Path:
        """The file of attempts."""
        return self.out.with_suffix(".attempts.jsonl")

    @property
    def teacher(self) -> str:
        """What rows and cards call it: a name, never an address."""
        return self.model.model_name

    @cached_property
    def key(self) -> str:
        """Marks the attempts of this model with these settings."""
        return evaluate.key({"spec": self.spec, "model": self.teacher, "settings": self.config.model_dump_json()})

    def open(self) -> list[tuple[Asked, int]]:
        """What has not been asked yet, each with the number of the attempt."""
        done = stored(self.store, key=self.key)
        numbers = range(self.plan.attempts)
        return [(asked, n) for asked in self.asked for n in numbers if (asked.plan, n) not in done]

    def estimate(self) -> Tokens:
        """What is left, from the oracle's own runs, corrected by what this teacher's attempts took so far."""
        text = "" if is_compact(self.model) else self.config.instructions or ""
        guesses = {asked.plan: cost.conversation(asked.own.messages, instructions=text) for asked in self.asked}
        made = [a for a in stored(self.store, key=self.key).values() if a.plan in guesses]
        left = sum((guesses[asked.plan] for asked, _ in self.open()), Tokens())
        real = sum((a.tokens for a in made), Tokens())
        return cost.scaled(left, by=real, instead_of=sum((guesses[a.plan] for a in made), Tokens()))

    def needs_consent(self) -> str:
        """Why somebody has to agree first; empty if nobody has."""
        return cost.needs_consent(self.estimate(), spec=self.spec, model=self.model) if self.open() else ""

    def announcement(self) -> str:
        """For people, before anything is asked."""
        tokens, left = self.estimate(), len(self.open())
        made = len(self.asked) * self.plan.attempts - left
        return "\n".join(
            [
                f"teacher   {self.teacher}, {cost.host(self.model) or 'in this process'}",
                f"tasks     {len(self.asked)}, {self.plan.attempts} attempt{'s' * (self.plan.attempts > 1)} each: "
                f"{left} to make, {made} made before",
                f"tokens    about {tokens}, without thinking",
                f"price     {cost.shown(cost.price(tokens, spec=self.spec, model=self.model))}",
            ]
        )


# --- before --------------------------------------------------------------------------------------------------------


async def prepare(plan: Plan, *, env: Mapping[str, str] = os.environ, opened: Sequence[Studio] = ()) -> Course:
    """Build the model and draw the tasks; nothing is asked yet.

    Raises ConfigError for a spec that cannot be read or has no key. `opened` takes the place of the train projects.
    """
    _refuse_other_rows(plan.out)
    settings = load_settings(cwd=Path.cwd(), env=env, flags={"model": plan.spec}).settings.agent_config()
    model = backends.build(settings.model, settings, cache_dir=plan.cache_dir)
    projects = opened or studios("train", cache_dir=plan.cache_dir)
    skipped: Counter[str] = Counter()
    asked = await draw(projects, plan, skipped)
    name = re.sub(r"[^\w.-]+", "-", model.model_name)
    out = plan.out or Path("training", "data", f"taught-{name}.jsonl")
    return Course(plan, settings.model, model, _config(plan, settings, model), projects, asked, skipped, out)


def _refuse_other_rows(out: Path | None) -> None:
    """Raise UsageError for a file that is there and holds rows of another origin."""
    if out and out.exists() and not str(next(jsonl.records(out))[1].get("source", "")).startswith(SOURCE):
        raise UsageError(f"{out} holds rows that no teacher gave.", "Name another file with --out.")


def _config(plan: Plan, settings: AgentConfig, model: Model) -> AgentConfig:
    """Of the user's settings those that say what a model is; how it is asked is the same for all."""
    given: dict[str, Any] = {"model": settings.model, "engine": settings.engine, "models": settings.models}
    if not is_compact(model):
        given["instructions"] = f"{prompt('system')}\n\n{SHORT}"
    samples_its_own_way = model.profile.get("anthropic_disallows_sampling_settings")
    varied = VARIED if plan.attempts > 1 and not samples_its_own_way else None
    temperature = varied if plan.temperature is None else plan.temperature
    if temperature is not None:
        given["temperature"] = temperature
    return AgentConfig(limits=LIMITS, **given)


async def draw(opened: Sequence[Studio], plan: Plan, skipped: Counter[str]) -> tuple[Asked, ...]:
    """Draw tasks as the generator does, under the same caps, and only such as the oracle's own run gets right.

    Each family begins anew, with another project, so that asking for more keeps what was asked for. What was drawn
    and not taken is counted in `skipped`.
    """
    kinds = [family(name) for name in plan.families] or list(FAMILIES)
    found: list[Asked] = []
    seen: set[str] = set()
    for kind, count in zip(kinds, _counts(kinds, plan.limit), strict=True):
        asked = subjects(opened, split="train", seed=plan.seed)
        streams = [(studio, kind.tasks(subject)) for studio, subject in zip(opened, asked, strict=True)]
        start = FAMILIES.index(kind) * len(streams) // len(FAMILIES)
        crop = Harvest(count, seen=seen)
        found += [each async for each in _drawn(kind, streams[start:] + streams[:start], crop, count=count)]
        skipped.update(crop.skipped)
        skipped.update(f"{kind.name}: the oracle's own run: {each.reason}" for each in crop.rejected)
    return tuple(random.Random(plan.seed).sample(found, len(found)))


def _counts(kinds: Sequence[Family], limit: int) -> list[int]:
    """How many tasks of each family; together exactly as many as are wanted."""
    total, upto, counts = sum(kind.share for kind in kinds), 0.0, list[int]()
    for kind in kinds:
        upto += kind.share / total * limit
        counts.append(round(upto) - sum(counts))
    return counts


async def _drawn(
    kind: Family, streams: list[tuple[Studio, Iterator[Task]]], crop: Harvest, *, count: int
) -> AsyncIterator[Asked]:
    while count > 0 and streams:
        for studio, tasks in list(streams):
            task = next(tasks, None) if count else None
            if task is None:
                streams.remove((studio, tasks))
            elif reason := crop.refuses(task):
                crop.skipped[f"{kind.name}: {reason}"] += 1
                if reason == PROJECT_USED_UP:
                    streams.remove((studio, tasks))
            elif crop.add(outcome := await studio.run(task, changes=kind.changes)) and isinstance(outcome, Row):
                count -= 1
                yield Asked(task, outcome)
