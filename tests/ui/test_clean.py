"""Untrusted text made safe to show: on a real screen, however it is cut into pieces."""

import json
import unicodedata
from io import StringIO
from typing import cast

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie.controls import marked, plain
from punie.ui._clean import Cleaner, clean, hidden_characters, one_line, visible

HOSTILE = {
    "colour": "a\x1b[31mred\x1b[0mb",
    "title": "a\x1b]0;pwned\x07b",
    "clipboard": "a\x1b]52;c;cm0gLXJmIC8=\x1b\\b",
    "clipboard, eight bit": "a\x9d52;c;cm0gLXJmIC8=\x9cb",
    "hyperlink": "a\x1b]8;;http://evil.example\x1b\\b",
    "device control": "a\x1bPq#0;2;0;0;0\x1b\\b",
    "application command": "a\x1b_pwned\x1b\\b",
    "privacy message": "a\x1b^pwned\x1b\\b",
    "start of string": "a\x1bXpwned\x1b\\b",
    "string in a string": "a\x1b]0;pwned\x1b[2J\x1b\\b",
    "eight bit": "a\x9b2Jb",
    "reset": "a\x1bcb",
    "charset": "a\x1b(0b",
    "backspaces": "rm -rf /\b\b\b\b\b\b\b\bls",
    "carriage return": "evil\rgood",
    "bell": "a\x07b",
    "bidi": "a\u202eb\u2066c",
    "zero width": "a\u200bb\ufeffc\u2060d",
    "tags": "a\U000e0041b",
    "selectors": "a\ufe01\ufe02\U000e0101b",
    "private use": "a\ue0b0\U000f0001b",
    "line separators": "a\u2028b\u2029c\u0085d",
    "half a character": "a\ud800b",
}
ORDINARY = "def f(x: int) -> str:\n\treturn 'naïve 日本語 👩‍💻 ❤️ 1️⃣ 葛\U000e0100 — …'\n"
_FORGED = ["pwned", "evil.example", "cm0g", "[31m", "2J", "q#0"]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_that_moves_the_cursor_survives(text: str) -> None:
    for made in (clean(text), plain(text)):
        assert all(char in "\n\t" or char.isprintable() for char in made)
        assert not any(forged in made for forged in _FORGED)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_sequence_cut_in_two_is_still_a_sequence(text: str) -> None:
    for cut in range(len(text)):
        cleaner = Cleaner()
        assert cleaner.feed(text[:cut]) + cleaner.feed(text[cut:]) == clean(text)


def test_plain_text_stays_as_it_is() -> None:
    assert clean(ORDINARY) == plain(ORDINARY) == ORDINARY


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10%\r20%\r30%\n", "10%\n20%\n30%\n"),
        ("one\r\ntwo\r\r\nthree", "one\ntwo\nthree"),
        ("\rfirst", "first"),
        ("|\b/\b-", "|\n/\n-"),
        ("N\bNA\bAM\bME\bE _\bu", "NAME _u"),
        ("50\b\b100", "50\n100"),
        ("x\b", "x"),
        ("a\b\n", "a\n"),
    ],
)
def test_what_was_overwritten_stands_on_a_line_of_its_own(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_a_model_is_told_of_invisible_characters() -> None:
    assert plain("a\u202eb\u200b\U000e0041\ue000\x1b[31mc") == "a<U+202E>b<U+200B><U+E0041><U+E000>c"


def test_text_after_a_sequence_that_never_ends_is_not_swallowed() -> None:
    assert clean("\x1b]0;title without an end\nthe answer") == "\nthe answer"
    assert clean("\x1b]" + "x" * 10_000 + "the answer").endswith("the answer")


_PIECES = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [*HOSTILE.values(), ORDINARY, "\x1b", "\x1b[", "\x1b]", "\x9d", "\r", "\n", "\b", "\x1b\\", "8;;u"]
    ),
    st.text(alphabet=[*map(chr, range(0xA0)), *"[]()?;P^_X\\mHJK0129"], max_size=12),
)


@given(st.lists(_PIECES, max_size=8))
def test_no_control_byte_reaches_the_screen_whatever_comes_in_what_pieces(pieces: list[str]) -> None:
    for spell in (False, True):
        cleaner = Cleaner(spell=spell)
        shown = "".join(map(cleaner.feed, pieces))
        assert shown == Cleaner(spell=spell).feed("".join(pieces))
        assert not any(unicodedata.category(char) in {"Cc", "Cs", "Co"} and char not in "\n\t" for char in shown)


_HARMLESS = {"draw", "linefeed", "carriage_return", "tab"}


@given(st.lists(_PIECES, max_size=8))
def test_nothing_is_moved_erased_titled_or_linked_on_a_screen(pieces: list[str]) -> None:
    done = StringIO()
    screen = pyte.DebugScreen(to=done, only=sorted(pyte.Stream.events - _HARMLESS))
    stream = pyte.Stream(cast("pyte.Screen", screen))
    stream.feed("\x1b[2J\x1b]0;title\x07")
    assert [json.loads(line)[0] for line in done.getvalue().splitlines()] == [
        "erase_in_display", "set_icon_name", "set_title"
    ]  # fmt: skip
    done.truncate(0)
    done.seek(0)
    cleaner = Cleaner()
    for piece in pieces:
        stream.feed(cleaner.feed(piece))
    assert done.getvalue() == ""


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_visible_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert hidden_characters(text) > 0
    assert hidden_characters(shown) == hidden_characters(text)
    assert visible(shown) == shown
    assert len(shown) >= len(text)


def test_visible_spells_the_code_point() -> None:
    assert visible("a\x1b[0m\u202e\U000e0041\ud800\x7f\u00a0") == "a␛[0m<U+202E><U+E0041><U+D800>␡<U+00A0>"
    assert visible("echo 'ü ❤️'\n\tls") == "echo 'ü ❤️'\n\tls"


def test_a_marked_line_is_one_line() -> None:
    assert marked("a\nb\rc\u2028\td") == "a\\nb␍c<U+2028>\td"


def test_one_line_takes_the_first_line_with_text() -> None:
    assert one_line("\n\n  5 classes\x1b[1m inherit\nmore", width=80) == "5 classes inherit"
    assert one_line("abcdef", width=4) == "abc…"
    assert one_line("", width=4) == ""
