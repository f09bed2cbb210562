"""Which classes inherit from a class."""

from pydantic_ai import RunContext

from punie.tools._names import case_note, clean_name, heirs, nearest_line, respelled
from punie.tools._output import clip, listing
from punie.tools._workspace import Workspace


def find_subclasses(ctx: RunContext[Workspace], name: str) -> str:
    """Find the classes that inherit from a class.

    Args:
        name: Name of the base class, such as Protocol.
    """
    index = ctx.deps.index
    snapshot = index.refresh()
    wanted = clean_name(name)
    bases = {base.rpartition(".")[2] for symbol in snapshot.classes for base in symbol.bases}
    notes = index.gaps(snapshot, wanted.rpartition(".")[2])
    if other := respelled(wanted, snapshot, others=bases):
        notes.append(case_note(wanted))
        wanted = other
    direct, indirect = heirs(snapshot, wanted)
    found = [*direct, *indirect]
    header = f"{'1 class inherits' if len(found) == 1 else f'{len(found)} classes inherit'} from {clip(wanted)}"
    items = [f"{clip(symbol.path, limit=400)}:{symbol.line} {clip(symbol.text)}" for symbol in found]
    if not found:
        notes = [*nearest_line(wanted, bases), *notes]
    return listing(header, items, narrow="ask for one of these classes to see its own subclasses", notes=notes)
