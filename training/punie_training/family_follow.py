"""Second questions in a conversation: some answered from what is on the screen, some with another tool."""

from collections.abc import Callable, Iterator, Sequence

from punie_training import family_changes, family_files, family_search, family_symbols
from punie_training.tasks import Expect, Subject, Turn, with_result

Pair = tuple[Turn, Turn]
THANKS = ("Thanks!", "Thank you", "thanks", "Great, thanks", "ok thanks", "Perfect, thank you!", "cheers")


def follow_up(subject: Subject) -> Iterator[Pair]:
    """Yield pairs of a first and a second question."""
    makers = [_count, _count, _first, _other, _used, _code, _who_inherits, _defined, _thanks]
    yield from subject.dealt(make(subject) for make in makers)


def sequence(subject: Subject) -> Iterator[Pair]:
    """Yield pairs of questions that have nothing to do with each other: what was found before answers nothing now."""
    commands = (family_changes.command, family_changes.known_command)
    lookups = (
        *(family_symbols.subclasses, family_symbols.definition, family_symbols.references, family_symbols.arguments),
        *(family_symbols.count_references, family_symbols.is_async, family_symbols.no_definition),
        *(family_files.read, family_files.list_files, family_files.outline, family_files.count_files),
        *(family_search.search, family_search.no_match),
    )
    streams = {make: make(subject) for make in (*commands, *lookups)}
    kinds = [commands, lookups, lookups]  # a third of the questions are about commands
    while True:
        first, second = (subject.rng.choice(subject.rng.choice(kinds)) for _ in range(2))
        turns = next(streams[first], None), next(streams[second], None)
        if turns[0] is None or turns[1] is None:
            return
        yield turns[0], turns[1]


def _lists(subject: Subject) -> Iterator[Turn]:
    """First questions that are answered by a list of places, in turn from three families."""
    families = (family_symbols.subclasses, family_symbols.references, family_search.search)
    turns = subject.dealt(family(subject) for family in families)
    yield from (turn for turn in turns if turn.expect.kind == "places")


def _count(subject: Subject) -> Iterator[Pair]:
    for turn in _lists(subject):
        if not turn.answer[0].isdigit():
            continue  # the answer does not begin with the total
        template, question = subject.voice.put("follow_count")
        total = len(turn.expect.values)
        answer = turn.answer.split(":\n")[0] + "."
        yield turn, Turn(template, question, (), answer, Expect("count", total=total))


def _first(subject: Subject) -> Iterator[Pair]:
    for turn in _lists(subject):
        if len(turn.expect.values) < 2 or turn.template.startswith("subclasses"):
            continue  # subclasses are sorted by distance first, which the oracle does not know
        place = min(turn.expect.values, key=_by_line)
        template, question = subject.voice.put("follow_first")
        yield turn, Turn(template, question, (), f"The first one is {place}.", Expect("places", (place,)))


def _by_line(place: str) -> tuple[str, int]:
    path, _, line = place.rpartition(":")
    return path, int(line)


def _other(subject: Subject) -> Iterator[Pair]:
    families: Sequence[Callable[[Subject], Iterator[Turn]]] = (
        family_symbols.subclasses,
        family_symbols.references,
        family_symbols.definition,
        family_symbols.count_subclasses,
        family_symbols.count_references,
    )
    for family in subject.shuffled(families * 6):
        turns = family(subject)
        first, second = next(turns, None), next(turns, None)
        if first and second:
            template, question = subject.voice.put("follow_other", n=subject.voice.name(second.subject))
            yield first, _reworded(second, template=template, question=question)


def _definitions(subject: Subject, kinds: frozenset[str]) -> Iterator[Turn]:
    """First questions that end at one definition of a kind."""
    for turn in family_symbols.definition(subject):
        found = subject.oracle.by_name[turn.subject]
        if len(found) == 1 and found[0].kind in kinds and "." not in turn.subject:
            yield turn


def _used(subject: Subject) -> Iterator[Pair]:
    for turn in _definitions(subject, frozenset({"class", "function", "constant"})):
        if 0 < len(subject.oracle.references(turn.subject)) <= family_symbols.MOST_ITEMS:
            template, question = subject.voice.put("follow_used")
            second = family_symbols.references_of(subject, turn.subject)
            yield turn, _reworded(second, template=template, question=question)


def _who_inherits(subject: Subject) -> Iterator[Pair]:
    for turn in _definitions(subject, frozenset({"class"})):
        if subject.oracle.subclasses(turn.subject):
            template, question = subject.voice.put("follow_subclasses")
            second = family_symbols.subclasses_of(subject, turn.subject)
            yield turn, _reworded(second, template=template, question=question)


def _code(subject: Subject) -> Iterator[Pair]:
    for turn in _definitions(subject, frozenset({"class", "function"})):
        found = subject.oracle.by_name[turn.subject][0]
        template, question = subject.voice.put("follow_code")
        head = f"The code of {found.name}"
        steps = (family_symbols.read_code(found),)
        expect = family_symbols.code(subject, found)
        yield turn, Turn(template, question, steps, with_result(head), expect, found.name)


def _defined(subject: Subject) -> Iterator[Pair]:
    for turn in _lists(subject):
        if turn.template.startswith(("subclasses", "references")) and turn.subject in subject.oracle.by_name:
            template, question = subject.voice.put("follow_defined")
            second = family_symbols.definition_of(subject, turn.subject)
            yield turn, _reworded(second, template=template, question=question)


def _thanks(subject: Subject) -> Iterator[Pair]:
    for turn in (t for _ in range(2) for t in _lists(subject)):
        index = subject.rng.randrange(len(THANKS))
        expect = Expect("words", says=("welcome",))
        yield turn, Turn(f"thanks/seen{index}", THANKS[index], (), "You're welcome.", expect)


def _reworded(turn: Turn, *, template: str, question: str) -> Turn:
    return Turn(template, question, turn.steps, turn.answer, turn.expect, turn.subject)
