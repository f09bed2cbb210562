"""`punie train choose`, `compare`, `promote`, `average`, `fuse`, `export`: what becomes of a trained adapter."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from punie.errors import UsageError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from punie_training.trained import Trained


def add(commands: "_SubParsersAction[argparse.ArgumentParser]") -> None:
    """Give `punie train` these commands."""
    _choose_options(commands.add_parser("choose", help="make the checkpoint that behaves best the adapter of its run"))
    _compare_options(commands.add_parser("compare", help="compare two evaluations case by case"))
    _promote_options(commands.add_parser("promote", help="ship an adapter, if it is better and nowhere worse"))
    _average_options(commands.add_parser("average", help="write the mean of the adapters of one chain of runs"))
    _fuse_options(commands.add_parser("fuse", help="merge an adapter into its model, as an MLX directory"))
    _export_options(commands.add_parser("export", help="write an adapter in a form that other programs read"))


def _choose_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="what `punie train run` wrote")
    parser.add_argument("--last", type=int, metavar="N", help="look at the last N checkpoints only")
    parser.set_defaults(command=_choose)


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, help="directory of an evaluation")
    parser.add_argument("b", type=Path, help="directory of another one, with the same suite")
    parser.set_defaults(command=_compare)


def _promote_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--evaluation", type=Path, required=True, help="what `punie train eval --adapter` wrote")
    parser.add_argument("--current", type=Path, help="what `punie train eval` wrote for the shipped adapter")
    parser.add_argument("--margin", type=float, default=0.02, help="share of cases that may be lost anywhere")
    parser.add_argument("--shipped", type=Path, help="directory to replace; default: the installed one")
    parser.set_defaults(command=_promote)


def _average_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapters", type=Path, nargs="+", help="in the order they were trained")
    parser.add_argument("--out", type=Path, required=True, help="a directory that is not there yet")
    parser.set_defaults(command=_average)


def _fuse_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a directory that is not there yet")
    parser.add_argument("--base", type=Path, help="GGUF file or MLX directory; default: the recipe's")
    parser.add_argument("--bits", type=int, choices=(4, 5, 6, 8), help="quantise the result")
    parser.add_argument("--group", type=int, choices=(32, 64, 128), default=64, help="weights that share a scale")
    parser.add_argument("--data", type=Path, help="rows to compare the result on; default: general questions")
    parser.add_argument("--probes", type=int, default=8, help="how many of them; 0 to skip the comparison")
    parser.set_defaults(command=_fuse)


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--to", choices=("peft", "gguf-lora", "gguf", "mlx"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="a directory that is not there yet")
    parser.add_argument("--base", type=Path, help="GGUF file or MLX directory; default: the recipe's")
    parser.set_defaults(command=_export)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _choose(options: argparse.Namespace) -> int:
    from punie_training import choose  # pydantic_ai is slow to import
    from punie_training.examine import Plan, examine

    if options.last is not None and options.last < 1:
        raise UsageError(f"--last must be at least 1, not {options.last}.")

    async def examined(adapter: Path, out: Path) -> Path:
        plan = Plan("local", "dev", out, options.cache_dir, adapter, scale=choose.SCALE, concepts=choose.CONCEPTS)
        return await examine(plan, say=lambda _: None)

    best = asyncio.run(choose.choose(options.run, examine=examined, say=_say, last=options.last))
    _say(f"{options.run / 'adapter'} is checkpoint {best.directory.name} now")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from punie_training.compare import Evaluation, compare, markdown  # pydantic_ai is slow to import

    _say(markdown(compare(Evaluation.load(options.a), Evaluation.load(options.b))))
    return 0


def _promote(options: argparse.Namespace) -> int:
    from punie_training import compare, promote  # pydantic_ai is slow to import

    evaluation = compare.Evaluation.load(options.evaluation)
    current = compare.Evaluation.load(options.current) if options.current else None
    if current:
        _say(compare.markdown(compare.compare(current, evaluation)))
    verdict = promote.promote(
        options.adapter,
        evaluation=evaluation,
        current=current,
        shipped=options.shipped or promote.SHIPPED,
        margin=options.margin,
    )
    _say(f"{options.adapter} is what Punie ships now. Better: {'; '.join(verdict.wins)}")
    return 0


def _average(options: argparse.Namespace) -> int:
    from punie_training.average import average  # needs MLX, which is an extra

    _say(f"mean of {len(options.adapters)} adapters in {average(options.adapters, options.out)}")
    return 0


def _fuse(options: argparse.Namespace) -> int:
    from punie_training import fuse  # needs MLX, which is an extra
    from punie_training.probes import probes

    trained, base = _trained(options)
    given = {"template": trained.template, "data": options.data, "count": options.probes, "name": trained.base_name}
    talks = probes(base, **given) if options.probes else ()
    fused = fuse.fuse(trained, base=base, out=options.out, bits=options.bits, group=options.group, probes=talks)
    _say(fuse.shown(fused, bits=options.bits))
    return 0


def _export(options: argparse.Namespace) -> int:
    from punie_training.export import export  # needs MLX, which is an extra

    trained, base = _trained(options)
    out = export(trained, to=options.to, base=base, out=options.out)
    for path in sorted(out.iterdir()):
        _say(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
    return 0


def _trained(options: argparse.Namespace) -> "tuple[Trained, Path]":
    """The adapter and the model it is for."""
    from punie_training.served import find_base
    from punie_training.trained import Trained

    trained = Trained.load(options.adapter)
    return trained, options.base or find_base(trained.base_name, cache_dir=options.cache_dir)
