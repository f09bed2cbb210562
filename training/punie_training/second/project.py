"""One project as find, grep and the tokens of its files know it."""

import re
import subprocess
from functools import cache, cached_property
from pathlib import Path

from punie_training.second.source import Definition, Source


class Project:
    """One directory."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def output(self, *command: str) -> list[str]:
        """The lines that a command prints in the project."""
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
        )
        return done.stdout.decode("utf-8", "replace").splitlines()

    def find(self, *options: str, folder: str = ".") -> set[str]:
        """Files that find finds."""
        return {p.removeprefix("./") for p in self.output("find", folder, "-type", "f", *options)}

    def grep(self, text: str, *options: str, path: str = "", literal: bool = True) -> set[str]:
        """`path:line` of each line with the text, or with what the pattern fits."""
        where = [path] if path else ["-r", "."]
        found = self.output("grep", "-HnIF" if literal else "-HnIE", *options, "-e", text, *where)
        return {":".join(line.removeprefix("./").split(":", 2)[:2]) for line in found}

    @cached_property
    def sources(self) -> list[Source]:
        """Every Python file."""
        return [Source(self.root, p) for p in sorted(self.find("-name", "*.py") | self.find("-name", "*.pyi"))]

    @cached_property
    def definitions(self) -> list[Definition]:
        """Everything that is defined anywhere."""
        return [d for s in self.sources for d in s.definitions]

    def defined(self, name: str) -> list[Definition]:
        """Definitions of a plain name, `Class.method` or `package.module.name`."""
        exact = [d for d in self.definitions if name in {d.name, d.qualname}]
        module, _, last = name.rpartition(".")
        return exact or [d for d in self.definitions if d.qualname == last and d.path in _files_of(module)]

    def subclasses(self, name: str) -> set[str]:
        """Places of all classes below one, whatever their depth, matched by name as imports rename them."""
        edges: list[tuple[str, Definition]] = []
        for source in self.sources:
            renamed = {here: there for _, there, here, _ in source.imports if there and here != there}
            for made in source.definitions:
                for item in made.items if made.kind == "class" else ():
                    base = re.match(r"[\w .]+(?= \[|$)", item)
                    if base:
                        plain = base[0].replace(" ", "")
                        edges.append((renamed.get(plain, plain).rpartition(".")[2], made))
        found, wanted = dict[str, Definition](), {name.rpartition(".")[2]}
        while True:
            new = {d.place: d for base, d in edges if base in wanted and d.place not in found}
            if not new:
                return set(found)
            found.update(new)
            wanted = {d.name for d in found.values()} | wanted

    def uses(self, name: str) -> tuple[set[str], set[str]]:
        """Places where a name is used, and where it may be."""
        certain, perhaps = set[str](), set[str]()
        for source in self.sources:
            if name in source.text:
                sure, other = source.uses(name)
                certain |= {f"{source.path}:{line}" for line in sure}
                perhaps |= {f"{source.path}:{line}" for line in other}
        return certain, perhaps


def _files_of(module: str) -> set[str]:
    path = module.replace(".", "/")
    names = {f"{path}.py", f"{path}/__init__.py", f"{path}.pyi", f"{path}/__init__.pyi"}
    return names | {f"src/{n}" for n in names}


@cache
def project(root: str) -> Project:
    """The project of a directory."""
    return Project(root)
