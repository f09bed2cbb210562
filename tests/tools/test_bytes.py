"""An edit changes the bytes of the text it names, whatever the encoding and the line ends, and no others."""

import codecs
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.tools.project import Project

from punie.tools import preview
from punie.tools._changes import Change, plan_edit

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def encoded(text: str, encoding: str) -> bytes:
    return ENCODINGS[encoding] + text.encode("utf-8" if encoding == "utf-8-sig" else encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("before", "old", "new", "after"),
    [
        ("a\nb\nc\n", "b", "B", "a\nB\nc\n"),
        ("a\r\nb\r\nc", "b\nc", "b\nx\nc", "a\r\nb\r\nx\r\nc"),
        ("a\rb\rc\r", "a\nb", "a\nx\nb", "a\rx\rb\rc\r"),
        ("a\rb\nc\r\nd", "b", "b\nx", "a\rb\nx\nc\r\nd"),
        ("a\rb\nc\r\nd", "c", "c\nx", "a\rb\nc\r\nx\r\nd"),
        ("a\rb", "b", "b\nc", "a\rb\rc"),
        ("a\r\nb", "b", "b\nc", "a\r\nb\r\nc"),
        ("a\r\nb\nc\rd", "a\nb\nc\nd", "a\nb\nc\nD", "a\r\nb\nc\rD"),
        ("a\x0cb\x0bc\u2028d\x85e\n", "\x0cb\x0bc", "\x0cB\x0bc", "a\x0cB\x0bc\u2028d\x85e\n"),
        ("no end", "end", "END", "no END"),
        ("x\N{GRINNING FACE}y\ufeffz\r\n", "y", "\N{PILE OF POO}", "x\N{GRINNING FACE}\N{PILE OF POO}\ufeffz\r\n"),
        ("a\r\n\r\nb", "a\n\nb", "a\nb", "a\r\nb"),
        ("10%\r20%\r\ndone\n", "20%", "30%", "10%\r30%\r\ndone\n"),
        ("a\r\rb", "a\n", "", "\rb"),
    ],
)
def test_the_other_bytes_stay(project: Project, encoding: str, before: str, old: str, new: str, after: str):
    project.write("a.txt", encoded(before, encoding))
    assert project.call("edit_file", "a.txt", old, new).startswith("edited a.txt: ")
    assert project.bytes_of("a.txt") == encoded(after, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_shown_can_be_copied_into_an_edit(project: Project, encoding: str):
    project.write("a.txt", encoded("one\r\ntwo\rthree\nfour", encoding))
    assert project.lines("read_file", "a.txt")[1:] == ["1\tone", "2\ttwo", "3\tthree", "4\tfour"]
    assert project.lines("search", "^th?[rw]")[1:] == ["a.txt:2 two", "a.txt:3 three"]
    shown = preview(project.workspace, "edit_file", {"path": "a.txt", "old": "two\nthree", "new": "two\n3"})
    assert shown == "--- a/a.txt\n+++ b/a.txt\n@@ -1,4 +1,4 @@\n one\n two\n-three\n+3\n four"
    assert project.lines("edit_file", "a.txt", "two\nthree", "two\n3") == [
        "edited a.txt: 1 line changed at line 3",
        "@@ -1,4 +1,4 @@",
        " one",
        " two",
        "-three",
        "+3",
        " four",
    ]
    assert project.bytes_of("a.txt") == encoded("one\r\ntwo\r3\nfour", encoding)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"caf\xe9 one\n", "UTF-8"),
        (b"one\xc3", "UTF-8"),
        (b"one\xed\xa0\x80", "UTF-8"),
        (b"\xc0\xafone", "UTF-8"),
        (b"\xef\xbb\xbfone\xff", "UTF-8"),
        (codecs.BOM_UTF16_LE + "one".encode("utf-16-le") + b"x", "valid UTF-16"),
        (codecs.BOM_UTF16_BE + "one".encode("utf-16-be") + b"\xd8\x00", "valid UTF-16"),
        (codecs.BOM_UTF32_LE + "one".encode("utf-32-le") + b"\xff\xff\xff\xff", "valid UTF-32"),
    ],
)
def test_what_cannot_be_read_back_is_shown_and_never_written(project: Project, data: bytes, name: str):
    project.write("a.txt", data)
    shown = project.call("read_file", "a.txt")
    assert "one" in shown
    assert "\N{REPLACEMENT CHARACTER}" in shown
    assert shown.endswith("unreadable bytes are shown as \N{REPLACEMENT CHARACTER})")
    refusal = f"a.txt is not {name} and cannot be edited without damage. Use run_command."
    assert project.refusal("edit_file", "a.txt", "one", "two") == refusal
    assert project.refusal("write_file", "a.txt", "two") == refusal
    assert project.bytes_of("a.txt") == data


def test_a_new_text_keeps_the_encoding_and_the_line_ends_of_the_file(project: Project):
    for encoding in ENCODINGS:
        project.write("a.txt", encoded("one\r\ntwo\r\n", encoding))
        project.call("read_file", "a.txt")
        assert project.call("write_file", "a.txt", "1\n2\n3\n") == "wrote a.txt (3 lines)"
        assert project.bytes_of("a.txt") == encoded("1\r\n2\r\n3\r\n", encoding)
    for before in ("one\r\ntwo\n", "one\n", "one", ""):
        project.write("b.txt", before)
        project.call("read_file", "b.txt")
        project.call("write_file", "b.txt", "1\n2")
        assert project.bytes_of("b.txt") == b"1\n2"


def test_a_file_cut_within_a_character_is_not_called_unreadable(project: Project):
    project.write("big.txt", "x" + "\u00e9" * 4_000_001)
    result = project.lines("read_file", "big.txt")
    assert len(result) == 3
    assert result[-1].startswith("(only the first 8 MB of 8 MB can be read")


def test_characters_an_encoding_cannot_write_are_refused(project: Project):
    project.write("a.txt", encoded("one", "utf-16-le"))
    assert "cannot write" in project.refusal("edit_file", "a.txt", "one", "\ud800")
    assert project.bytes_of("a.txt") == encoded("one", "utf-16-le")


# --- properties ---

_TEXT = st.text(st.sampled_from("ab\u00e9\N{GRINNING FACE}\ufeff\x0c\x0b\x85\u2028 \t\\"), max_size=6)
_MIXED = st.lists(st.tuples(_TEXT, st.sampled_from(["\n", "\r\n", "\r", ""])), max_size=8).map(
    lambda pieces: "".join(text + end for text, end in pieces)
)
_MARK = "<here>"


@pytest.fixture(scope="module")
def ground() -> Iterator[Project]:
    with tempfile.TemporaryDirectory() as directory:
        yield Project(Path(directory))


def edited(ground: Project, data: bytes, old: str, new: str) -> bytes:
    ground.workspace.seen.clear()
    (ground.root / "a.txt").write_bytes(data)
    change = plan_edit(ground.workspace, "a.txt", old=old, new=new)
    assert isinstance(change, Change)
    return change.after


@settings(max_examples=150, deadline=None)
@given(before=_MIXED, after=_MIXED, new=_TEXT, encoding=st.sampled_from(sorted(ENCODINGS)))
def test_bytes_outside_of_the_match_never_change_and_the_reverse_edit_brings_back_all(
    ground: Project, before: str, after: str, new: str, encoding: str
):
    new = f"[{new}]"
    data = encoded(f"{before}{_MARK}{after}", encoding)
    result = edited(ground, data, _MARK, new)
    assert result == encoded(f"{before}{new}{after}", encoding)
    assert edited(ground, result, new, _MARK) == data


@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(_TEXT, min_size=4, max_size=8),
    new=st.lists(_TEXT, min_size=1, max_size=3),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    last=st.booleans(),
)
def test_edits_over_several_lines_keep_the_kind_of_line_end(
    ground: Project, lines: list[str], new: list[str], end: str, encoding: str, last: bool
):
    numbered = [f"{number}:{line}" for number, line in enumerate(lines)]
    old, wanted = "\n".join(numbered[1:3]), "\n".join(["new:" + new[0], *new[1:]])
    tail = end if last else ""
    data = encoded(end.join(numbered) + tail, encoding)
    result = edited(ground, data, old, wanted)
    assert result == encoded(end.join([numbered[0], *wanted.split("\n"), *numbered[3:]]) + tail, encoding)
    assert edited(ground, result, wanted, old) == data


@settings(max_examples=150, deadline=None)
@given(text=_MIXED, cut=st.tuples(st.integers(0, 60), st.integers(1, 12)), new=_MIXED)
def test_any_piece_of_a_text_with_mixed_line_ends(ground: Project, text: str, cut: tuple[int, int], new: str):
    """Whatever is replaced, what stands before and after it in bytes is what stood there."""
    view = re.sub("\r\n|\r", "\n", text)
    old = view[cut[0] : sum(cut)]
    shown = re.sub("\r\n|\r", "\n", new)
    assume(old)
    assume(old != shown)
    assume(len(re.findall(f"(?={re.escape(old)})", view)) == 1)
    at = view.index(old)
    text, at = f".{text}", at + 1  # what looks like a mark at the start would be one
    result = edited(ground, text.encode(), old, shown).decode()
    head = _raw(text, at)
    tail = _raw(text, at + len(old))
    assert result.startswith(text[:head])
    assert result.endswith(text[tail:])
    inside = result[head : len(result) - len(text) + tail]
    assert re.sub("[\r\n]", "", inside) == shown.replace("\n", "")
    if not re.search("\r(?!\n)", text):  # one that gets a newline behind it becomes half of a pair
        assert inside.replace("\r\n", "\n") == shown


def _raw(text: str, at: int) -> int:
    """Where in a text its view with plain newlines has come to `at` characters."""
    place = 0
    for _ in range(at):
        place += 2 if text[place : place + 2] == "\r\n" else 1
    return place
