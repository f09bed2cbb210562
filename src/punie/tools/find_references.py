"""Where a name is used."""

from pydantic_ai import RunContext

from punie.tools._names import case_note, clean_name, nearest_line, respelled
from punie.tools._output import clip, counted, listing
from punie.tools._workspace import Workspace


def find_references(ctx: RunContext[Workspace], name: str) -> str:
    """Find where a name is used or imported.

    Args:
        name: Name of a class, function, method or variable.
    """
    index = ctx.deps.index
    # A use rarely spells the whole dotted name, so only its last part can be looked for.
    wanted = clean_name(name).rpartition(".")[2]
    found = index.references(wanted)
    snapshot = index.refresh()
    notes = index.gaps(snapshot, wanted)
    if not found and (other := respelled(wanted, snapshot)):
        notes.append(case_note(wanted))
        wanted, found = other, index.references(other)
    header = f"{counted(len(found), 'reference')} to {clip(wanted)}"
    items = [f"{clip(use.path, limit=400)}:{use.line} {clip(use.text)}" for use in found]
    if not found:
        notes = [*nearest_line(wanted, snapshot.by_name), *notes]
    return listing(header, items, narrow=f"narrow with search({wanted}, glob=...)", notes=notes)
