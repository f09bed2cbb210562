import json
import threading

import pytest
from tests.backends.test_mlx import PROMPT, an_opening, greedy, model_directory, open_engine, pieces, text

from punie.backends import _mlx_generate, _mlx_model
from punie.backends._engine import CallGrammar
from punie.backends._mlx import mx
from punie.backends._mlx_cache import PromptCache
from punie.backends._mlx_draft import DraftModel
from punie.backends._mlx_generate import Steps, sampler
from punie.backends._speculation import InTurn, Pace, Repeats
from punie.errors import ConfigError
from punie.local_models import EngineOptions

REPEATED = (*range(60, 80), *range(40, 50), *range(60, 80), 7, *range(40, 50), *range(60, 66))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=range(3))
def some_directory(request, tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("tiny"), seed=request.param)


# --- guesses -------------------------------------------------------------------------------------------------------


def repeats(*tokens: int) -> Repeats:
    found = Repeats()
    found.begin(tokens)
    return found


def test_what_came_before_is_guessed_again():
    assert list(repeats(1, 2, 3, 4, 5, 6, 1, 2, 3).guess(2)) == [4, 5]
    assert list(repeats(1, 2, 3, 9, 1, 2, 3, 4, 1, 2, 3).guess(1)) == [4], "the latest place counts"
    assert list(repeats(8, 1, 2, 3, 4, 9, 1, 2, 3, 5, 8, 1, 2, 3).guess(1)) == [4], "and the longest run first"
    assert list(repeats(1, 2, 3, 1, 2, 3).guess(9)) == [1, 2, 3]
    assert not repeats(1, 2, 3, 4, 5, 6).guess(4)
    assert not repeats(1, 2).guess(4)
    assert not repeats().guess(4)


def test_guesses_follow_what_is_said():
    found = repeats(1, 2, 3, 4)
    assert not found.guess(3)
    for token in (9, 1, 2, 3):
        found.add(token)
    assert list(found.guess(3)) == [4, 9, 1]
    found.begin((5, 6))
    assert not found.guess(3)


def test_the_first_drafter_with_an_idea_is_taken():
    both = InTurn((Repeats(), Repeats()))
    both.begin((1, 2, 3, 4, 1, 2))
    assert not both.guess(2)
    both.add(3)
    assert list(both.guess(2)) == [4, 1]


def test_the_pace_follows_success():
    pace = Pace()
    first = pace.count()
    pace.learn(guessed=first, right=first)
    assert pace.count() == 2 * first
    for _ in range(9):
        pace.learn(guessed=pace.count(), right=pace.count())
    longest = pace.count()
    pace.learn(guessed=longest, right=longest // 2)
    assert pace.count() == longest
    pace.learn(guessed=longest, right=1)
    assert pace.count() == longest // 2


def test_guesses_that_never_come_true_are_made_less_often():
    pace, made = Pace(), 0
    for _ in range(100):
        if count := pace.count():
            made += 1
            pace.learn(guessed=count, right=0)
    assert made < 15
    pace.learn(guessed=1, right=1)
    assert pace.count()


# --- the same text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, REPEATED, (5,) * 30])
def test_greedy_text_is_the_same(some_directory, prompt):
    plain, guessing = open_engine(some_directory), open_engine(some_directory)
    for extra in ((), (90, 91), (92, 93, 94)):
        wanted = pieces(plain, prompt=(*prompt, *extra), max_tokens=80)
        found = pieces(guessing, prompt=(*prompt, *extra), max_tokens=80, speculate=True)
        assert [(p.text, p.token_count, p.finish) for p in found] == [(p.text, p.token_count, p.finish) for p in wanted]


def test_the_cache_holds_what_was_said_and_nothing_else(some_directory):
    """The next prompt goes on from it, so a guess that was left in it would show."""
    said = greedy(some_directory, REPEATED, count=60)
    engine = open_engine(some_directory)
    for most in (1, 2, 7, 23, 60):
        pieces(engine, prompt=REPEATED, max_tokens=most, speculate=True)
        held = engine._cache.tokens
        assert held == (*REPEATED, *said[:most])[: len(held)]
        assert engine._cache.offset == len(held) >= len(REPEATED) + most - 1


def test_stop_strings_end_tokens_and_cancelling_within_a_guess(some_directory):
    free = text(pieces(open_engine(some_directory), prompt=REPEATED, max_tokens=80))
    engine = open_engine(some_directory)
    for at in range(5, 45, 4):
        stop = free[at : at + 2]
        found = pieces(engine, prompt=REPEATED, max_tokens=80, stop=(stop,), speculate=True)
        assert text(found) == free[: free.index(stop)]
        held = engine._cache.tokens
        assert engine._cache.offset == len(held)
    event, said, finish = threading.Event(), 0, None
    asked = {"max_tokens": 80, "temperature": 0, "seed": 0, "stop": (), "cancelled": event, "speculate": True}
    for piece in engine.generate(REPEATED, **asked):
        said, finish = said + piece.token_count, piece.finish
        if said == 30:
            event.set()
    assert (finish, said) == ("cancelled", 30)
    assert text(pieces(engine, prompt=REPEATED, max_tokens=80, speculate=True)) == free


def test_an_end_token_within_a_guess(some_directory):
    said = greedy(some_directory, REPEATED, count=40)
    end = said[30]
    engine = open_engine(some_directory, end=frozenset({end}))
    found = pieces(engine, prompt=REPEATED, max_tokens=40, speculate=True)
    assert (found[-1].finish, sum(p.token_count for p in found)) == ("stop", said.index(end) + 1)


class Oracle:
    """Knows what the model will say and gets every nth token wrong; counts how often it was asked."""

    def __init__(self, said, *, wrong_every: int = 0) -> None:
        self._said, self._wrong_every, self._at = said, wrong_every, 0

    def begin(self, tokens) -> None:
        self._at = 0

    def add(self, token: int) -> None:
        self._at += 1

    def guess(self, count: int) -> list[int]:
        found = list(self._said[self._at : self._at + count])
        wrong = [i for i in range(len(found)) if self._wrong_every and (self._at + i) % self._wrong_every == 0]
        return [(token + 1) % 200 if i in wrong else token for i, token in enumerate(found)]


def steps_of(directory, drafter, *, prompt=PROMPT, count=60) -> tuple[list[int], int]:
    """What was said, and how often the model was run for it."""
    model, runs = _mlx_model.load(directory), 0

    def read(tokens, cache):
        nonlocal runs
        runs += 1
        return model(tokens, cache=cache)

    cache = PromptCache(model)
    cache.reuse(prompt)
    drafter.begin(prompt)
    steps = Steps(read, cache, sample=sampler(0, 0), drafter=drafter)
    return list(steps.tokens(prompt, most=count, cancelled=threading.Event())), runs


@pytest.mark.parametrize("wrong_every", [0, 1, 2, 3, 7])
def test_right_guesses_save_steps_and_wrong_ones_change_nothing(directory, wrong_every):
    said = greedy(directory, PROMPT, count=60)
    found, runs = steps_of(directory, Oracle(said, wrong_every=wrong_every))
    assert found == said
    if wrong_every == 0:
        assert runs < 12
    if wrong_every == 7:
        assert runs < 45


def test_where_two_tokens_are_nearly_equal_a_step_of_one_token_decides(directory, monkeypatch):
    said = greedy(directory, PROMPT, count=30)
    monkeypatch.setattr(_mlx_generate, "_NEARLY_EQUAL", {mx.float32: 1e9})
    assert steps_of(directory, Oracle(said), count=30)[0] == said


def test_at_a_temperature_nothing_is_guessed(directory):
    engine = open_engine(directory)
    plain = text(pieces(engine, prompt=REPEATED, temperature=1.2, seed=3, max_tokens=40))
    assert text(pieces(engine, prompt=REPEATED, temperature=1.2, seed=3, max_tokens=40, speculate=True)) == plain


def test_calls_are_the_same(some_directory):
    """The grammar forces tokens, which are guessed as well."""
    engine = open_engine(some_directory)
    prompt, opening = an_opening(engine)
    schema = '{"properties": {"way": {"enum": ["there and back", "there"]}, "on": {"type": "boolean"}}}'
    grammar = CallGrammar((("walk", schema), ("wait", "{}")), opening=opening)
    texts = [text(pieces(engine, prompt=prompt, max_tokens=120, speculate=on, grammar=grammar)) for on in (False, True)]
    assert texts[0] == texts[1]
    assert '{"name": "wa' in texts[0]
    assert "</tool_call>" in texts[0]


# --- a draft model -------------------------------------------------------------------------------------------------


def test_a_draft_model_changes_nothing(directory, tmp_path):
    other = model_directory(tmp_path / "other", seed=5)
    wanted = text(pieces(open_engine(directory), max_tokens=60))
    for draft in (directory, other):
        engine = open_engine(directory, options=EngineOptions(draft=str(draft)))
        for _ in range(2):
            assert text(pieces(engine, max_tokens=60, speculate=True)) == wanted
    pieces(engine, prompt=REPEATED, speculate=True)
    assert text(pieces(engine, max_tokens=60, speculate=True)) == wanted


def test_a_draft_model_that_is_the_model_saves_steps(directory):
    said = greedy(directory, PROMPT, count=60)
    found, runs = steps_of(directory, DraftModel(directory))
    assert found == said
    assert runs < 15


def test_a_draft_model_with_another_vocabulary_is_refused(directory, tmp_path):
    other = model_directory(tmp_path / "other")
    described = json.loads((other / "tokenizer.json").read_text())
    described["model"]["vocab"]["another"] = described["model"]["vocab"].pop("~")
    (other / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="vocabulary"):
        open_engine(directory, options=EngineOptions(draft=str(other)))
