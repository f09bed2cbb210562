"""Where a class, function, method or constant is defined."""

from pydantic_ai import RunContext

from punie.tools._facts import Symbol
from punie.tools._names import case_note, clean_name, definitions, nearest_line, respelled
from punie.tools._output import clip, counted, listing
from punie.tools._workspace import Workspace


def find_symbol(ctx: RunContext[Workspace], name: str) -> str:
    """Find where a class, function or variable is defined.

    Args:
        name: Name, such as Flask, Flask.run or flask.app.Flask.
    """
    index = ctx.deps.index
    snapshot = index.refresh()
    wanted = clean_name(name)
    notes = index.gaps(snapshot, wanted.rpartition(".")[2])
    if other := respelled(wanted, snapshot):
        notes.append(case_note(wanted))
    found = definitions(snapshot, other or wanted)
    header = f"{counted(len(found), 'definition')} of {clip(other or wanted)}"
    if not found:
        notes = [*nearest_line(wanted, snapshot.by_name), *notes]
    return listing(header, [_item(symbol) for symbol in found], narrow="narrow with a qualified name", notes=notes)


def _item(symbol: Symbol) -> str:
    text = " ".join([*symbol.decorators, symbol.text])
    return f"{clip(symbol.path, limit=400)}:{symbol.span} {clip(text)}"
