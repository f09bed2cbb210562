"""Tool questions that sound like general ones: the counterpart of "What is a Protocol?" asks for the code."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from punie_training import family_files, family_search, family_symbols
from punie_training.sources.direct import Topic
from punie_training.tasks import Subject, Turn

# Twins whose answer is not the one their family gives, or whose words say more than the plan does.
OTHER_ANSWER = re.compile(
    r"coroutine|return|first argument|first line|first \d+|line \d+|\buse|import|licence|Which default"
    r"|wildcard|code call|anything|break|more than once",
    re.IGNORECASE,
)
PLAIN_SEARCH = re.compile(r"(Search|Grep|Find the (lines|error)|Where does the (code|text))", re.IGNORECASE)
SOURCES: dict[str, Callable[[Subject], Iterator[Turn]]] = {
    "subclasses": family_symbols.subclasses,
    "definition": family_symbols.definition,
    "references": family_symbols.references,
    "signature": family_symbols.arguments,
    "two_hop": family_symbols.two_hop,
    "search": family_symbols.references,
    "outline": family_files.outline,
    "read": family_files.read,
}


def twins(subject: Subject) -> Iterator[Turn]:
    """Each twin once, with a name or path of the project."""
    for topic in subject.shuffled([t for t in subject.twins if t.tool_family in SOURCES and _fits(t)]):
        turn = _counterpart(subject, topic)
        if turn is not None:
            yield turn


def _fits(topic: Topic) -> bool:
    if topic.tool_family == "search":
        return bool(PLAIN_SEARCH.match(topic.tool_twin)) and "{name}" in topic.tool_twin
    return not OTHER_ANSWER.search(topic.tool_twin)


def _counterpart(subject: Subject, topic: Topic) -> Turn | None:
    turns = SOURCES[topic.tool_family or ""](subject)
    if topic.tool_family == "read":
        turns = (t for t in turns if t.template.startswith("read_file/"))
    # The question puts in the subject, so a name that is spelled with its module would be in the call alone.
    turn = next((t for t in turns if t.steps[0].arguments.get("name") in {None, t.subject}), None)
    if turn is None:
        return None
    if topic.tool_family == "search":
        turn = next(family_search.searched(subject, "search", turn.subject), None)
        if turn is None:
            return None
    name = subject.voice.name(turn.subject)
    question = topic.tool_twin.format(name=name, path=turn.subject)
    return replace(turn, template=f"twin/{topic.id}", question=question)
