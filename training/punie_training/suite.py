"""The evaluation's questions: about projects that training never shows, half of them in wordings it never shows.

The `train` split asks the same about the projects that training does show: what is lost between the two is what a
model has learned by heart.

There is one path from a case to a score, `evaluate` and `score`, which resumes, times and gives copies to those who
change files. A face in terms of pydantic-evals would be a second one, and each release of it demands the release of
pydantic-ai-slim of its own number: it cannot be installed beside the one that Punie runs on unless both come out
together.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from punie_training.corpora import Split
from punie_training.families import FAMILIES
from punie_training.generate import Rejected, Studio, subjects
from punie_training.sources import direct
from punie_training.tasks import Expect, Task, Turn

CASES = {
    "subclasses": 22,
    "definition": 22,
    "references": 22,
    "count": 24,
    "signature": 28,
    "read": 24,
    "outline": 14,
    "list_files": 20,
    "search": 24,
    "two_hop": 18,
    "recovery": 12,
    "empty": 24,
    "command": 10,
    "edit": 14,
    "write": 8,
    "twin": 20,
    "followup": 24,
    "sequence": 20,
}
STANDARD = (
    "Find all classes that inherit from Protocol",
    "What is dependency injection?",
    "Show me examples of using Inject",
)
SUITE_SEED = 77


@dataclass(frozen=True)
class Case:
    """One task, or a general question when the task has no steps and its family is `concept`."""

    id: str
    task: Task

    @property
    def is_concept(self) -> bool:
        """Whether the right thing is to answer without a tool."""
        return self.task.family == "concept"


async def tool_cases(
    split: Split, opened: Sequence[Studio], *, counts: Mapping[str, int], seed: int = SUITE_SEED
) -> list[Case]:
    """Draw verified tasks, half of them in held-out wordings, evenly over the projects."""
    found: list[Case] = []
    for held_out in (False, True):
        asked = subjects(opened, split=split, seed=seed + held_out, held_out=held_out)
        for kind in FAMILIES:
            wanted = (counts.get(kind.name, 0) + (1 - held_out)) // 2
            streams = [(studio, kind.tasks(subject)) for studio, subject in zip(opened, asked, strict=True)]
            # Training has more projects than a family has cases: each family goes on where the last one stopped.
            first = len(found) % len(streams) if split == "train" else 0
            streams = streams[first:] + streams[:first]
            while wanted > 0 and streams:
                for studio, tasks in list(streams):
                    task = next(tasks, None)
                    if task is None:
                        streams.remove((studio, tasks))
                    elif wanted > 0 and not isinstance(await studio.run(task, changes=kind.changes), Rejected):
                        found.append(Case(task.id, task))
                        wanted -= 1
    return found


def concept_cases(split: Split, opened: Sequence[Studio], *, most: int) -> list[Case]:
    """One wording of each general question, asked in one of the projects; twins and lures first."""
    topics = sorted(direct.load(split), key=lambda t: (not t.twin, not t.lures, t.id))
    cases: list[Case] = []
    for index, topic in enumerate(topics[:most]):
        question = (topic.lures or topic.questions)[index % len(topic.lures or topic.questions)]
        turn = Turn(f"concept/{topic.category}", question, (), topic.answer, Expect("words"))
        project = opened[index % len(opened)].project
        cases.append(Case(f"concept-{topic.id}", Task("concept", project, (turn,), seen_wording=False)))
    return cases


async def suite(split: Split, opened: Sequence[Studio], *, scale: float = 1.0, concepts: int = 70) -> tuple[Case, ...]:
    """The whole suite of a split; `scale` shrinks it for choosing checkpoints."""
    counts = {name: max(1, round(count * scale)) for name, count in CASES.items()}
    return (*await tool_cases(split, opened, counts=counts), *concept_cases(split, opened, most=concepts))


def fingerprint(cases: Sequence[Case]) -> str:
    """Changes when any question, plan or expectation does."""
    text = json.dumps([asdict(case) for case in cases], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
