"""Which families of questions there are and how much of the data each makes up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from punie_training import family_changes, family_files, family_follow, family_search, family_symbols, family_twins
from punie_training.tasks import Subject, Task, Turn

Questions = Callable[[Subject], Iterator[Turn]]


@dataclass(frozen=True)
class Family:
    """Some generators of questions, and their share: a weight beside the other families'."""

    name: str
    share: float
    questions: tuple[Questions, ...] = ()
    changes: bool = False
    """Whether its calls change or run something, so that each gets a copy of the project."""
    pairs: Callable[[Subject], Iterator[family_follow.Pair]] | None = None
    """Conversations of two questions, in place of `questions`."""

    def tasks(self, subject: Subject) -> Iterator[Task]:
        """Yield tasks about one project until it has no more to ask about."""
        for pair in self.pairs(subject) if self.pairs else ():
            yield self._task(subject, pair)
        streams = [questions(subject) for questions in subject.shuffled(self.questions)]
        while streams:
            for stream in list(streams):
                turn = next(stream, None)
                if turn is None:
                    streams.remove(stream)
                else:
                    yield self._task(subject, (turn,))

    def _task(self, subject: Subject, turns: Sequence[Turn]) -> Task:
        return Task(self.name, subject.project, tuple(turns), seen_wording=not subject.voice.held_out)


_S, _F, _T, _C = family_symbols, family_files, family_search, family_changes

FAMILIES: tuple[Family, ...] = (
    Family("subclasses", 0.08, (_S.subclasses,)),
    Family("definition", 0.08, (_S.definition,)),
    Family("references", 0.1, (_S.references,)),
    Family("count", 0.08, (_S.count_subclasses, _S.count_references, _F.count_files, _T.count_matches, _F.line_count)),
    Family("signature", 0.12, (_S.arguments, _S.bases, _S.is_async, _S.decorators, _S.returns, _S.default)),
    Family("read", 0.11, (_F.read,)),
    Family("outline", 0.075, (_F.outline,)),
    Family("list_files", 0.09, (_F.list_files,)),
    Family("search", 0.12, (_T.search,)),
    Family("two_hop", 0.08, (_S.two_hop,)),
    Family("recovery", 0.055, (_F.recovery,)),
    Family(
        "empty",
        0.09,
        (_S.no_subclasses, _S.no_definition, _S.no_references, _S.no_code, _F.no_file, _T.no_match, _T.no_import),
    ),
    Family("command", 0.04, (_C.command, _C.known_command), changes=True),
    Family("edit", 0.12, (_C.edit,), changes=True),
    Family("write", 0.04, (_C.write,), changes=True),
    Family("twin", 0.14, (family_twins.twins,)),
    Family("followup", 0.1, pairs=family_follow.follow_up),
    Family("sequence", 0.4, changes=True, pairs=family_follow.sequence),
)


def quota(kind: Family, *, wanted: int) -> int:
    """How many of so many rows a family makes up."""
    return round(kind.share / sum(f.share for f in FAMILIES) * wanted)


def family(name: str) -> Family:
    """Return a family by its name."""
    return next(f for f in FAMILIES if f.name == name)
