"""`punie train tracker` and `verify`: the table of all rungs, and the proof that a row of it can be made again."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from punie.errors import PunieError, UsageError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from punie_training.corpora import Split
    from punie_training.recipe import Recipe
    from punie_training.results import Kept, Report, Training
    from punie_training.tracker import Declared, Row

HOME = Path("training")


class Differs(PunieError):  # noqa: N818 - it says what happened, as the errors of punie do
    """A row made again is not what was kept."""


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give `punie train` these commands."""
    tracker = commands.add_parser("tracker", help="write the table of all rungs, or add a row to it")
    tracker.add_argument("--add", metavar="ROW", help="keep a record of this row; ROW-seedN for another seed")
    tracker.add_argument("--evaluation", type=Path, help="what `punie train eval --out` wrote")
    tracker.add_argument("--run", type=Path, help="what `punie train run` wrote; rows with a recipe need it")
    tracker.set_defaults(command=_tracker)
    again = commands.add_parser("verify", help="make a row of the tracker again and compare")
    again.add_argument("row", help="a kept record; ROW-seedN for another seed")
    again.add_argument("--adapter", type=Path, help="take this adapter in place of training one")
    again.add_argument("--out", type=Path, help="where it is made; default: training/runs/verify-ROW")
    again.set_defaults(command=_verify)
    ladder = commands.add_parser("ladder", help="train, evaluate and keep the rows of the tracker that have no record")
    ladder.add_argument("rows", nargs="*", metavar="ROW", help="these alone; ROW-seedN for another seed")
    ladder.add_argument("--list", action="store_true", help="name the rows that are missing and stop")
    ladder.set_defaults(command=_ladder)
    for parser in (again, ladder):
        parser.add_argument("--data", type=Path, default=HOME / "data" / "train.jsonl", help="the rows to train on")
        parser.add_argument("--scale", type=float, default=1.0, help="as for `punie train eval`")
        parser.add_argument("--concepts", type=int, default=70, help="as for `punie train eval`")
    for parser in (tracker, again, ladder):
        parser.add_argument("--home", type=Path, default=HOME, help="directory of tracker.toml, recipes and results")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# --- the tracker ---------------------------------------------------------------------------------------------------


def _tracker(options: argparse.Namespace) -> int:
    from punie_training.tracker import Declared  # pydantic_ai is slow to import

    declared = Declared.load(options.home / "tracker.toml")
    if options.add:
        _add(declared, options)
    elif options.run or options.evaluation:
        raise UsageError("--run and --evaluation are for --add ROW.", "Say which row they are of.")
    for path in write(declared, options.home):
        _say(str(path))
    return 0


def _add(declared: "Declared", options: argparse.Namespace) -> None:
    from punie_training import results, tracker

    row = declared.find(options.add)
    if options.evaluation is None:
        raise UsageError(f"An evaluation of {options.add} is wanted.", "Give --evaluation DIRECTORY.")
    kept = results.keep(
        options.add,
        evaluation=options.evaluation,
        run=options.run,
        recipe=_recipe(row, options.add, options.home),
        split=row.split,
        adapter=tracker.adapter_hash(row, home=options.home),
        results=options.home / "results",
    )
    _say(f"kept {kept.name}: {kept.report.n} cases, adapter {kept.report.identity.get('adapter', '?')}")


def _ladder(options: argparse.Namespace) -> int:
    from punie_training.ladder import Ladder
    from punie_training.tracker import Declared

    declared = Declared.load(options.home / "tracker.toml")
    ladder = Ladder(
        declared, options.home, options.data, options.cache_dir, _say, scale=options.scale, concepts=options.concepts
    )
    if options.list:
        _say("\n".join(ladder.missing()) or "Every row has its record.")
        return 0
    for kept in ladder.climb(options.rows or ladder.missing()):
        write(declared, options.home)
        _say(f"kept {kept.name}: {kept.report.n} cases, adapter {kept.report.identity.get('adapter', '?')}")
    return 0


def _recipe(row: "Row", name: str, home: Path) -> "Recipe | None":
    from punie_training import results, tracker

    return tracker.recipe_of(row, seed=results.parts(name)[1], recipes=home / "recipes")


def write(declared: "Declared", home: Path) -> Sequence[Path]:
    """Write page, JSON and plots; returns their paths."""
    from punie.backends._files import write_text
    from punie_training import results, tracker, tracker_page, tracker_plots
    from punie_training.recipe import Recipe

    found = tracker.Tracker.load(declared, results.load_all(home / "results"))
    curves = {name: Recipe.load(home / "recipes" / f"{name}.toml").data for name in declared.curve.rows}
    mixes = {name: Recipe.load(home / "recipes" / f"{name}.toml").data for name in declared.mix.rows}
    plots = tracker_plots.draw(found, home / "results", shares={**curves, **mixes})
    pages = {home / "TRACKER.md": tracker_page.markdown(found), home / "tracker.json": tracker_page.as_json(found)}
    for path, text in pages.items():
        write_text(path, text)
    return [*pages, *plots]


# --- the proof -----------------------------------------------------------------------------------------------------


def _verify(options: argparse.Namespace) -> int:
    from punie_training import results, verify
    from punie_training.tracker import Declared

    row = Declared.load(options.home / "tracker.toml").find(options.row)
    kept = results.load(options.home / "results" / options.row)
    out: Path = options.out or HOME / "runs" / f"verify-{options.row}"
    adapter = _adapter(row, kept, out, options)
    report = _evaluated(row, kept, adapter, options, out / "evaluation")
    for line in verify.shown(kept, report):
        _say(line)
    _refuse(options.row, verify.of_evaluation(kept.report, report))
    _say(f"{options.row} is what was kept.")
    return 0


def _refuse(name: str, found: "Sequence[object]") -> None:
    for difference in found:
        _say(f"DIFFERS {difference}")
    if found:
        raise Differs(
            f"{name} differs from its record in {len(found)} place{'s' * (len(found) > 1)}.", "Each is named above."
        )


def _adapter(row: "Row", kept: "Kept", out: Path, options: argparse.Namespace) -> Path | None:
    """The adapter to evaluate: the given one, or one trained now, if recipe and data are still the same."""
    from punie_training import verify

    if options.adapter:
        if kept.training:
            _refuse(kept.name, verify.of_training(kept.training, _manifest(options.adapter)))
        return options.adapter
    recipe = _recipe(row, kept.name, options.home)
    if recipe is None or kept.training is None:
        if kept.report.identity.get("adapter", "none") != "none" and row.beside:
            raise UsageError(
                f"{kept.name} is not trained by itself.", f"Give the adapter of {row.beside} with --adapter."
            )
        return None
    _refuse(kept.name, verify.of_training(kept.training, _planned(recipe, options.data)))
    return _trained(row, kept.training, out, options)


def _planned(recipe: "Recipe", data: Path) -> Mapping[str, object]:
    """What a run of the recipe would be made of, known before it starts."""
    import hashlib

    from punie_training import plan
    from punie_training.base import digest  # needs MLX, which is an extra
    from punie_training.checkpoint import fingerprint
    from punie_training.examples import prepare

    prepared = prepare(recipe, data=data)
    chosen = plan.select(prepared.examples, recipe)
    return {
        "recipe": recipe.hash,
        "data": fingerprint(chosen.train),
        "base": digest(prepared.base),
        "template": hashlib.sha256(prepared.template.encode()).hexdigest(),
        "rows": len(chosen.train),
    }


def _trained(row: "Row", kept: "Training", out: Path, options: argparse.Namespace) -> Path:
    from punie_training import trainer  # needs MLX, which is an extra

    recipe, run = options.home / "recipes" / f"{row.name}.toml", out / "run"
    arguments = ("--data", str(options.data), "--seed", str(kept.seed), "--out", str(run), "--resume")
    trainer.main([str(recipe), *arguments])
    return run / "adapter"


def _manifest(adapter: Path) -> Mapping[str, object]:
    try:
        return json.loads((adapter / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"{adapter / 'manifest.json'} cannot be read: {error}.") from error


def _evaluated(row: "Row", kept: "Kept", adapter: Path | None, options: argparse.Namespace, out: Path) -> "Report":
    from punie_training import results
    from punie_training.examine import Plan, examine
    from punie_training.recipe import Recipe

    identity = kept.report.identity
    plan = Plan(
        model=identity.get("spec", "local"),
        split=cast("Split", identity.get("split", "test")),
        out=out,
        cache_dir=options.cache_dir,
        adapter=adapter,
        bare=adapter is None and identity.get("adapter") == "none",
        scale=options.scale,
        concepts=options.concepts,
        again=Recipe.load(options.home / "recipes" / f"{row.beside}.toml") if row.again else None,
        data=options.data,
    )
    asyncio.run(examine(plan, say=_say))
    return results.report(out)
