import pytest

from punie.ui._clean import Cleaner, clean, hidden_characters, one_line, visible

HOSTILE = {
    "colour": "a\x1b[31mred\x1b[0mb",
    "title": "a\x1b]0;pwned\x07b",
    "clipboard": "a\x1b]52;c;cm0gLXJmIC8=\x1b\\b",
    "hyperlink": "a\x1b]8;;http://evil.example\x1b\\b",
    "device control": "a\x1bPq#0;2;0;0;0\x1b\\b",
    "eight bit": "a\x9b2Jb",
    "reset": "a\x1bcb",
    "charset": "a\x1b(0b",
    "backspaces": "rm -rf /\b\b\b\b\b\b\b\bls",
    "carriage return": "evil\rgood",
    "bell": "a\x07b",
    "bidi": "a\u202eb\u2066c",
    "tags": "a\U000e0041b",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nothing_that_moves_the_cursor_survives(text: str) -> None:
    cleaned = clean(text)
    assert all(char == "\n" or char == "\t" or char.isprintable() for char in cleaned)
    assert "pwned" not in cleaned
    assert "evil.example" not in cleaned
    assert "cm0g" not in cleaned


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_sequence_cut_in_two_is_still_a_sequence(text: str) -> None:
    for cut in range(len(text)):
        cleaner = Cleaner()
        assert cleaner.feed(text[:cut]) + cleaner.feed(text[cut:]) == clean(text)


def test_plain_text_stays_as_it_is() -> None:
    text = "def f(x: int) -> str:\n\treturn 'naïve 日本語 👩‍💻 — …'\n"
    assert clean(text) == text


def test_text_after_a_sequence_that_never_ends_is_not_swallowed() -> None:
    assert clean("\x1b]0;title without an end\nthe answer") == "\nthe answer"
    assert clean("\x1b]" + "x" * 10_000 + "the answer").endswith("the answer")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_visible_hides_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert hidden_characters(text) > 0
    assert hidden_characters(shown) == 0
    assert len(shown) > len(text)


def test_visible_spells_the_code_point() -> None:
    assert visible("a\x1b[0m\u202e\U000e0041\ud800") == "a\\x1b[0m\\u202e\\U000e0041\\ud800"
    assert visible("echo 'ü'\n\tls") == "echo 'ü'\n\tls"


def test_one_line_takes_the_first_line_with_text() -> None:
    assert one_line("\n\n  5 classes\x1b[1m inherit\nmore", width=80) == "5 classes inherit"
    assert one_line("abcdef", width=4) == "abc…"
    assert one_line("", width=4) == ""
