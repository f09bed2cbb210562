import re
from collections.abc import Mapping
from itertools import chain, combinations
from pathlib import Path

import pytest

from punie_training.sources.direct import SPLITS, InvalidTopics, Split, Topic, load, load_all, normalised, problems

FILLER_WORDS = """
    a an and are at be between can did difference do does explain find for from how i in is it list me mean my need of
    on out python should show tell that the there this to use used vs what whats when where which why with work you
"""
FILLER = frozenset(FILLER_WORDS.split())
GOOD = Topic(
    id="pipe",
    category="concept",
    questions=("What is a pipe?", "Explain pipes", "How do pipes work?"),
    answer="A pipe joins two commands.",
)
TWIN = {"twin": True, "tool_twin": "Where is {name} used?", "tool_family": "references"}


def every_split() -> Mapping[Split, tuple[Topic, ...]]:
    return {split: load(split) for split in SPLITS}


def changed(**fields: object) -> Topic:
    return Topic(**{**vars(GOOD), **fields})  # pyright: ignore[reportArgumentType] - some fields are wrong on purpose


def faults_of(*topics: Topic) -> list[str]:
    return list(problems({"train": topics}))


def subject(question: str) -> frozenset[str]:
    return frozenset(normalised(question).split()) - FILLER


def test_the_files_keep_their_rules() -> None:
    assert list(problems(every_split())) == []


@pytest.mark.parametrize(
    ("split", "topics", "twins", "lures"),
    [("train", 240, 60, 60), ("dev", 20, 5, 5), ("test", 60, 20, 15)],
)
def test_each_split_holds_enough(split: Split, topics: int, twins: int, lures: int) -> None:
    found = load(split)

    assert len(found) >= topics
    assert sum(topic.twin for topic in found) >= twins
    assert sum(len(topic.lures) for topic in found) >= lures


def test_training_covers_every_category_and_tool_family() -> None:
    train = load("train")
    elsewhere = load("dev") + load("test")

    assert {t.category for t in train} >= {t.category for t in elsewhere}
    assert {t.tool_family for t in train} >= {t.tool_family for t in elsewhere}
    assert len({t.category for t in train}) == 7
    assert len({t.tool_family for t in train if t.twin}) == 11


def test_no_subject_is_asked_about_in_two_splits() -> None:
    subjects = {split: {subject(q) for t in topics for q in t.questions} for split, topics in every_split().items()}

    for one, other in combinations(SPLITS, 2):
        assert (subjects[one] & subjects[other]) - {frozenset()} == set()


def test_the_standard_concept_question_is_taught_and_no_part_of_the_evaluation() -> None:
    assert "What is dependency injection?" in chain.from_iterable(t.questions for t in load("train"))
    for topic in load("test") + load("dev"):
        assert "dependency injection" not in " ".join((*topic.questions, topic.answer, topic.tool_twin)).lower()


def test_protocol_is_taught_with_its_twin() -> None:
    (protocol,) = (t for t in load("train") if "What is a Protocol?" in t.questions)

    assert protocol.tool_family == "subclasses"
    assert protocol.tool_twin.format(name="Protocol") == "Find all classes that inherit from Protocol"


def test_no_answer_looks_like_a_tool_call() -> None:
    call = re.compile(r"<tool|\[\[result|\b(read|list|find|edit|write|run)_[a-z]+\b")

    for topic in chain.from_iterable(every_split().values()):
        assert not call.search(topic.answer), topic.id


def test_no_direct_question_has_a_placeholder() -> None:
    for topic in chain.from_iterable(every_split().values()):
        assert not re.search(r"[{}]", " ".join(topic.questions)), topic.id


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"questions": ("What is a pipe?",)}, "1 questions"),
        ({"answer": "word " * 45 + "end."}, "46 words"),
        ({"answer": ""}, "0 words"),
        ({"answer": "No full stop"}, "end like a sentence"),
        ({"answer": "One `tick."}, "plain paragraph"),
        ({"answer": "Two\nlines."}, "plain paragraph"),
        ({"answer": "Na\u00efve."}, "ASCII"),
        ({"answer": " Space."}, "ASCII"),
        ({"twin": True}, "go together"),
        ({"tool_twin": "Where is {name} used?"}, "go together"),
        ({**TWIN, "tool_twin": "Where is {symbol} used?"}, "placeholders"),
        ({**TWIN, "tool_twin": "Where is it used?"}, "needs a name"),
        ({**TWIN, "tool_family": "read"}, "needs a path"),
        ({"questions": ("What is a pipe?", "what is a `pipe`", "Why pipes?")}, "asked twice: what is a pipe"),
    ],
)
def test_a_broken_topic_is_named(fields: dict[str, object], fault: str) -> None:
    assert faults_of(GOOD) == []
    assert any(fault in found for found in faults_of(changed(**fields)))


def test_a_question_in_two_splits_is_named() -> None:
    other = changed(id="tube", questions=("WHAT is a  pipe", "Explain tubes", "How do tubes work?"))

    assert list(problems({"train": (GOOD,), "test": (other,)})) == ["asked twice: what is a pipe"]


def test_an_id_in_two_splits_is_named() -> None:
    other = changed(questions=("What is a tube?", "Explain tubes", "How do tubes work?"))

    assert list(problems({"train": (GOOD,), "dev": (other,)})) == ["pipe: id used twice"]


def test_a_question_that_is_also_a_twin_is_named() -> None:
    twin = changed(id="tube", questions=("Why a tube?", "Explain tubes", "Where is {name} used?"), **TWIN)

    assert faults_of(twin) == ["asked twice: where is name used"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[topic]\n", "train.toml"),
        ('[[topic]]\nid = "a"\ncategory = "gossip"\nquestions = []\nanswer = "B."\n', "category"),
        ('[[topic]]\nid = "a"\ncategory = "concept"\nquestions = []\nanswer = "B."\nhint = 1\n', "hint"),
        ('[[topic]]\nid = "a"\ncategory = "concept"\nquestions = []\nanswer = "B."\n', "a: 0 questions"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "train.toml").write_text(text, encoding="utf-8")

    with pytest.raises(InvalidTopics) as caught:
        load_all(tmp_path)

    assert fault in caught.value.cause


def test_symbols_keep_questions_apart() -> None:
    assert normalised("What does `//` do in Python?") != normalised("What does := do in Python?")
    assert normalised("What is a  Protocol?") == normalised("what is a `protocol`")
