"""`punie train ladder`: each row of the tracker that has no record yet, trained, evaluated and kept, in order."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from punie.errors import ModelError, UsageError
from punie_training import examine, results
from punie_training.corpora import Split
from punie_training.recipe import Recipe
from punie_training.tracker import Declared, Row, adapter_hash, recipe_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ladder:
    """Where the rows are declared, and what they are made of."""

    declared: Declared
    home: Path
    data: Path
    cache_dir: Path
    say: Say
    scale: float = 1.0
    concepts: int = 70

    def missing(self) -> Sequence[str]:
        """The rows without a record, in the order of the tracker."""
        kept = {name.partition("-seed")[0] for name in self._kept()}
        return [row.name for row in self.declared.row if row.name not in kept]

    def climb(self, names: Sequence[str]) -> Iterator[results.Kept]:
        """Make one row after the other; what was cut off goes on where it stopped, what is kept stays.

        Raises UsageError for an unknown row, and for one whose adapter another row has to train first.
        """
        rows = [(name, self.declared.find(name)) for name in names]
        for name, row in rows:
            if name in self._kept():
                self.say(f"{name}: kept already")
                continue
            self.say(f"{name}: {row.about}")
            yield self._made(name, row)

    def _kept(self) -> set[str]:
        return {path.parent.name for path in (self.home / "results").glob("*/report.json")}

    def _made(self, name: str, row: Row) -> results.Kept:
        recipe = recipe_of(row, seed=results.parts(name)[1], recipes=self.home / "recipes")
        run = self.home / "runs" / name
        if recipe:
            self._train(row, recipe, run)
        adapter = self._adapter(row, run)
        asyncio.run(examine.examine(self._plan(row, adapter, run / "evaluation"), say=self.say))
        return results.keep(
            name,
            evaluation=run / "evaluation",
            run=run if recipe else None,
            recipe=recipe,
            split=row.split,
            adapter=adapter_hash(row, home=self.home),
            results=self.home / "results",
        )

    def _train(self, row: Row, recipe: Recipe, run: Path) -> None:
        if (run / "adapter" / "manifest.json").exists():
            return
        path = self.home / "recipes" / f"{row.name}.toml"
        arguments = ("--data", str(self.data), "--seed", str(recipe.seed), "--out", str(run), "--resume")
        # In a process of its own, so that the memory of the evaluation is not that of the training before it.
        command = (sys.executable, "-m", "punie", "train", "run", str(path), *arguments)
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            raise ModelError(f"{row.name} was not trained; why is said above.", "Go on with the same command.")

    def _adapter(self, row: Row, run: Path) -> Path | None:
        """The adapter a row is about; None for the bare model and for the one that ships."""
        if row.recipe:
            return run / "adapter"
        if not row.beside:
            return None
        adapter = self.home / "runs" / row.beside / "adapter"
        if not adapter.is_dir():
            raise UsageError(f"{row.name} is about the adapter of {row.beside}, which is not in {adapter}.")
        return adapter

    def _plan(self, row: Row, adapter: Path | None, out: Path) -> examine.Plan:
        return examine.Plan(
            model="local",
            split=cast("Split", row.split),
            out=out,
            cache_dir=self.cache_dir,
            adapter=adapter,
            bare=row.adapter == "none",
            scale=self.scale,
            concepts=self.concepts,
            again=Recipe.load(self.home / "recipes" / f"{row.beside}.toml") if row.again else None,
            data=self.data,
        )
