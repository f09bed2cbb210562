"""`punie train`: make the data, train, evaluate, report."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from punie.backends._weights import default_cache_dir
from punie.errors import UsageError
from punie_training import adapter_command, data_command, forecast_command, tracker_command

HOME = Path("training")
Command = Callable[[argparse.Namespace], int]


EXAMPLES = """\
examples:
  punie train list                         recipes, data, runs
  punie train run training/recipes/0001-first-cut.toml
  punie train eval --split dev --scale 0.1 --out training/runs/mine
  punie train report training/runs/mine

exit codes:
  0 done   1 failed   2 usage or configuration   130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    run: Command = options.command
    return run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="punie train",
        description="Make the data, train, evaluate, report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cache-dir", type=Path, default=default_cache_dir(), help="where corpora and weights are kept"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data_command.arguments(commands.add_parser("data", help="build, check or import training rows"))
    _run_command(commands.add_parser("run", help="train a recipe"))
    _eval_command(commands.add_parser("eval", help="run the evaluation suite on a model"))
    forecast_command.add(commands)
    listing = commands.add_parser("list", help="list recipes, data and runs")
    listing.set_defaults(command=_list)
    reporting = commands.add_parser("report", help="print the report of an evaluation, or of several seeds")
    reporting.add_argument("directory", type=Path, nargs="+", help="what `punie train eval --out` wrote")
    reporting.set_defaults(command=_report)
    adapter_command.add(commands)
    tracker_command.add(commands)
    return parser


def _run_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="options of the trainer")
    parser.set_defaults(command=_run)


def _eval_command(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="local", help="a model spec, as for `punie --model`")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--adapter", type=Path, help="an adapter of the embedded model, in place of the shipped one")
    which.add_argument("--bare", action="store_true", help="the embedded model without an adapter")
    parser.add_argument(
        "--split", choices=("test", "dev", "train"), default="test", help="train: projects that are seen in training"
    )
    parser.add_argument("--again", metavar="RECIPE", type=Path, help="ask the questions that this recipe trains on")
    parser.add_argument("--data", type=Path, default=HOME / "data" / "train.jsonl", help="the rows, for --again")
    parser.add_argument("--scale", type=float, default=1.0, help="shrink or grow the tool questions")
    parser.add_argument("--concepts", type=int, default=70, help="general questions")
    parser.add_argument("--out", type=Path, default=HOME / "runs" / "eval")
    parser.set_defaults(command=_eval)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _run(options: argparse.Namespace) -> int:
    from punie_training import trainer  # needs MLX, which is an extra

    return trainer.main([str(options.recipe), *options.rest])


def _eval(options: argparse.Namespace) -> int:
    from punie_training.examine import Plan, examine  # pydantic_ai is slow to import
    from punie_training.recipe import Recipe

    plan = Plan(
        model=options.model,
        split="train" if options.again else options.split,
        out=options.out,
        cache_dir=options.cache_dir,
        adapter=options.adapter,
        bare=options.bare,
        scale=options.scale,
        concepts=options.concepts,
        again=Recipe.load(options.again) if options.again else None,
        data=options.data,
    )
    _say(asyncio.run(examine(plan, say=_say)).read_text("utf-8"))
    return 0


def _list(options: argparse.Namespace) -> int:
    del options
    for title, pattern in (("recipes", "recipes/*.toml"), ("data", "data/**/*.jsonl"), ("runs", "runs/*")):
        _say(f"{title}:")
        for path in sorted(HOME.glob(pattern)):
            _say(f"  {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    if len(options.directory) > 1:
        from punie_training import compare, seeds  # pydantic_ai is slow to import

        _say(seeds.markdown([compare.Evaluation.load(directory) for directory in options.directory]))
        return 0
    page = options.directory[0] / "report.md"
    if not page.is_file():
        raise UsageError(f"{page} is not there.", "Run `punie train eval --out DIRECTORY` first.")
    _say(page.read_text("utf-8"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
