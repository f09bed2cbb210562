"""`punie train data`: build the rows, check a file of rows, measure the oracle, import a set, ask a teacher."""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

from punie.errors import PermissionNeeded, PunieError
from punie_training.recipe import Data

_WHERE = Path("training") / "data"
_AUDIT = Path("training") / "audit.toml"
_SHOWN = ("rows", "balance", "families", "yields", "rejected", "dropped")
"""What of the card is printed; the rest is in the files."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser its actions; without one it builds, as `build` does."""
    _build_options(parser, suppressed=False)
    actions = parser.add_subparsers(metavar="ACTION")
    _build_options(actions.add_parser("build", help="write the training rows and their data card"), suppressed=True)
    _check_options(actions.add_parser("check", help="find mistakes in a file of rows"))
    _audit_options(actions.add_parser("audit", help="measure how often the oracle is wrong"))
    _teach_options(actions.add_parser("teach", help="let a model answer the tasks; what the oracle confirms is kept"))
    _import_options(actions.add_parser("import", help="bring a public tool-calling set into the form of the rows"))


def _build_options(parser: argparse.ArgumentParser, *, suppressed: bool) -> None:
    """A suppressed default leaves alone what was given before the word `build`."""
    for name, value, text in (
        ("--out", _WHERE, "directory to write into"),
        ("--rows", 3200, "tool rows to aim for"),
        ("--seed", 0, ""),
    ):
        parser.add_argument(name, type=type(value), default=argparse.SUPPRESS if suppressed else value, help=text)
    parser.set_defaults(command=_build)


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON lines, one row each")
    parser.add_argument("--against", type=Path, help="another split, which must not share questions with FILE")
    parser.add_argument(
        "--base", type=Path, help="GGUF file or MLX directory to measure with; default: the embedded one"
    )
    parser.add_argument("--max-tokens", type=int, default=Data().max_tokens, help="the recipe's data.max_tokens")
    parser.add_argument("--all", action="store_true", help="print every finding")
    parser.set_defaults(command=_check)


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="JSON lines, or one JSON array")
    parser.add_argument("--format", choices=("auto", "glaive", "sharegpt", "openai"), default="auto")
    parser.add_argument("--out", dest="target", type=Path, required=True, help="JSON lines file to write")
    parser.add_argument("--licence", default="", help="SPDX identifier of the set's licence, for its data card")
    parser.add_argument("--limit", type=int, help="stop after so many rows")
    parser.add_argument("--keep-system", action="store_true", help="keep system texts instead of Punie's own")
    parser.set_defaults(command=_import)


def _audit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", default=_WHERE / "train.jsonl", help="rows that Punie has made")
    parser.add_argument("--rows", dest="count", type=int, default=200, help="how many to draw")
    parser.add_argument("--seed", dest="draw_seed", type=int, default=0, help="which rows")
    parser.add_argument("--read", type=Path, default=_AUDIT, help="what people have judged")
    parser.add_argument("--out", dest="target", type=Path, default=Path("training") / "runs" / "audit")
    parser.set_defaults(command=_audit)


def _teach_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model spec, as for `punie --model`")
    parser.add_argument(
        "--out", dest="target", type=Path, help="JSON lines file to write; default: named after the model"
    )
    parser.add_argument("--limit", type=int, default=200, help="tasks to ask")
    parser.add_argument("--families", default="", help="names with commas; default: all")
    parser.add_argument("--seed", type=int, default=0, help="which tasks")
    parser.add_argument("--attempts", type=int, default=1, help="answers to each task, of which the shortest is kept")
    parser.add_argument("--temperature", type=float, help="default: 0, or 0.7 for several attempts")
    parser.add_argument("--yes", action="store_true", help="agree to the price and to the network beforehand")
    parser.set_defaults(command=_teach)


def _build(options: argparse.Namespace) -> int:
    from punie_training import generate  # pydantic_ai is slow to import

    started = time.perf_counter()
    card = asyncio.run(generate.build(options.out, cache_dir=options.cache_dir, wanted=options.rows, seed=options.seed))
    _say(json.dumps({key: card[key] for key in _SHOWN}, indent=2))
    _say(f"{options.out / 'train.jsonl'}, its card in card.md, in {time.perf_counter() - started:.0f} s")
    return 0


def _check(options: argparse.Namespace) -> int:
    from punie_training.check import Settings, check  # pydantic_ai is slow to import

    settings = Settings(options.against, options.base, options.max_tokens, options.cache_dir)
    report = check(options.file, settings)
    _say(report.render(everything=options.all))
    return report.exit_code


def _audit(options: argparse.Namespace) -> int:
    from punie_training import audit  # pydantic_ai is slow to import

    read, (count, seed) = audit.verdicts(options.read), (options.count, options.draw_seed)
    judged = audit.audit(options.file, count=count, seed=seed, cache_dir=options.cache_dir, read=read)
    page = audit.write(judged, options.target, data=options.file, seed=seed)
    _say(f"wrong answers: {audit.rate(judged)}; every row: {page}")
    return 0


def _teach(options: argparse.Namespace) -> int:
    from punie_training.sources import course, teach  # pydantic_ai is slow to import

    plan = course.Plan(
        spec=options.model,
        cache_dir=options.cache_dir,
        out=options.target,
        limit=options.limit,
        families=tuple(options.families.replace(",", " ").split()),
        seed=options.seed,
        attempts=options.attempts,
        temperature=options.temperature,
    )
    settled = asyncio.run(course.prepare(plan))
    _say(settled.announcement())
    if (why := settled.needs_consent()) and not options.yes:
        _ask_consent(f"Asking {settled.teacher} {why}")
    summary = asyncio.run(teach.teach(settled, say=_progress))
    _say(summary.render())
    if not summary.rows:
        raise PunieError(f"No answer of {summary.teacher} gives a row.", f"They are in {settled.store}.")
    return 0


def _ask_consent(what: str) -> None:
    """Raise PermissionNeeded unless somebody at the terminal agrees."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise PermissionNeeded(f"{what}, and nobody is there to agree.", "Agree beforehand with --yes.")
    _say(f"{what}. Go on? [y/N]")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise PermissionNeeded("Nothing was asked.", "Answer y, or agree beforehand with --yes.")


def _progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _import(options: argparse.Namespace) -> int:
    from punie_training.sources import imports  # pydantic_ai is slow to import

    wanted = imports.Wanted(options.format, options.licence, options.limit, keep_system=options.keep_system)
    summary = imports.convert(options.file, options.target, wanted, stream=sys.stderr)
    _say(summary.render())
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
