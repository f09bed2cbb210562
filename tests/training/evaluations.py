"""Evaluations as `punie train eval` leaves them in a directory."""

import json
from dataclasses import asdict, replace
from pathlib import Path

from punie.backends._weights import adapter_hash
from punie.backends.catalogue import EMBEDDED, entry
from punie_training import evaluate, report
from punie_training.compare import Evaluation
from punie_training.evaluate import Outcome
from punie_training.examine import digest

TEMPLATE = "a template"
FAMILIES = {"definition": 80, "references": 80, "edit": 16, "concept": 60}


def outcome(family: str, number: int, *, right: bool) -> Outcome:
    """A case answered with one call and no mistake, or with the wrong one."""
    direct = family == "concept"
    called = right != direct
    return Outcome(
        id=f"{family}-{number}",
        family=family,
        project="shop",
        template=f"{family}/1",
        seen_wording=number % 2 == 0,
        question=f"{family} {number}?",
        needs_tool=not direct,
        answer="yes",
        said="yes",
        calls=(("find_symbol", "{}"),) if called else (),
        valid_calls=called,
        first_call_right=right,
        precision=float(right),
        recall=float(right),
        f1=float(right),
        right=right,
        looped=False,
        invented_paths=0,
        turns=2,
        stop_reason="done",
        total_s=0.5,
        prefill_s=0.2,
        decode_s=0.2,
        tools_s=0.1,
        input_tokens=100,
        output_tokens=10,
        cached_tokens=50,
    )


def run(**wrong: int) -> list[Outcome]:
    """The suite, with this many wrong outcomes in the families named, called but wrong."""
    made = []
    for family, count in FAMILIES.items():
        for number in range(count):
            found = outcome(family, number, right=number >= wrong.get(family, 0))
            made.append(found if family == "concept" else replace(found, calls=(("x", "{}"),), valid_calls=True))
    return made


def written(
    directory: Path, outcomes: list[Outcome], *, adapter: Path, canary: bool = True, **other: str
) -> Evaluation:
    """Write an evaluation of the adapter and load it."""
    identity = {
        "model": "tiny",
        "base": base()[:16],
        "adapter": adapter_hash(adapter),
        "template": digest(TEMPLATE),
        "settings": "s",
        "split": "test",
        "suite": "q",
        **other,
    }
    report.write(outcomes, directory, identity=identity, canary=canary)
    lines = [json.dumps({"key": evaluate.key(identity), **asdict(o)}) for o in outcomes]
    apart = json.dumps({"key": evaluate.key(identity), **asdict(replace(outcomes[0], id="canary", family="canary"))})
    (directory / "outcomes.jsonl").write_text("\n".join([*lines, apart, '{"key": "torn']))
    return Evaluation.load(directory)


def base() -> str:
    """The hash of the embedded model."""
    file = entry(EMBEDDED).file
    assert file
    return file.sha256
