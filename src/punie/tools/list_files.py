"""Which files the workspace holds."""

from pydantic_ai import RunContext

from punie.tools._glob import compile_glob
from punie.tools._output import clip, listing, nearest_paths
from punie.tools._paths import relative_path
from punie.tools._walk import MAX_FILES
from punie.tools._workspace import Workspace


def list_files(ctx: RunContext[Workspace], glob: str | None = None) -> str:
    """List files, optionally those matching a glob.

    Args:
        glob: Pattern such as *.py, src/**/*.md, or a directory.
    """
    paths = [entry.path for entry in ctx.deps.files()]
    notes = [f"(only the first {MAX_FILES} files were looked at)"] if len(paths) == MAX_FILES else []
    if not glob or not glob.strip():
        return listing(f"{len(paths)} {_noun(len(paths))}", _shown(paths), narrow="narrow with glob=", notes=notes)
    pattern = relative_path(ctx.deps.root, glob) if glob.startswith(str(ctx.deps.root)) else glob
    matches = compile_glob(pattern)
    found = [path for path in paths if matches(path)]
    verb = "matches" if len(found) == 1 else "match"
    header = f"{len(found)} {_noun(len(found))} {verb} {clip(glob)}"
    near = nearest_paths(pattern, paths) if not found else []
    if near:
        notes.append(f"Nearest: {', '.join(_shown(near))}")
    return listing(header, _shown(found), narrow="narrow with glob=", notes=notes)


def _noun(count: int) -> str:
    return "file" if count == 1 else "files"


def _shown(paths: list[str]) -> list[str]:
    return [clip(path, limit=400) for path in paths]
