import pytest

from punie.agent.citations import Place, mark, mend_case, places, shown, unverified

SYMBOL = "1 definition of Flask\nsrc/flask/app.py:81-1536 class Flask(App)"
READ = "src/flask/views.py lines 10-20 of 300\n10\tdef a():\n11\t    pass"
SEARCH = "2 matches for x\nsrc/context_middleware.py:12 x = 1\ntests/test_x.py:3 x"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see src/a.py:12.", [("src/a.py", 12, 12)]),
        ("`a.py:12` and a.py:13-20, a.py:12", [("a.py", 12, 12), ("a.py", 13, 20)]),
        ("(a.py:3:7)", [("a.py", 3, 3)]),
        ("a.py#L3 and b.py#L3-L9", [("a.py", 3, 3), ("b.py", 3, 9)]),
        ("./a/b.py:1", [("a/b.py", 1, 1)]),
        ("Makefile:3, /abs/x.toml:4", [("Makefile", 3, 3), ("/abs/x.toml", 4, 4)]),
        (".github/workflows/ci.yml:5", [(".github/workflows/ci.yml", 5, 5)]),
        ("http://127.0.0.1:8080/a.py:3", []),
        ("localhost:8000, 127.0.0.1:80, example.com:443, 12:30, v1.2:3", []),
        ("{'a': 1} x[1:2] main:app Foo:12 a.py: 12", []),
        ("**src/a.py:12**", [("src/a.py", 12, 12)]),
    ],
)
def test_places(text: str, found: list[tuple[str, int, int]]):
    assert places(text) == tuple(Place(*place) for place in found)


@pytest.mark.parametrize(
    "answer",
    [
        "src/flask/app.py:81",
        "src/flask/app.py:90-100",
        "app.py:81",
        "flask/app.py:81",
        "/work/project/src/flask/app.py:81",
        "src/flask/views.py:15",
        "tests/test_x.py:3",
    ],
)
def test_what_a_tool_showed_is_verified(answer: str):
    assert unverified(answer, shown([SYMBOL, READ, SEARCH])) == ()


@pytest.mark.parametrize("answer", ["src/flask/app.py:80", "src/flask/views.py:15-21", "pp.py:81", "tests/test_y.py:3"])
def test_what_no_tool_showed_is_not(answer: str):
    known = shown([SYMBOL, READ, SEARCH])
    assert mark(f"It is `{answer}`, yes.", known) == f"It is `{answer}` (unverified), yes."


@pytest.mark.parametrize(
    ("output", "place"),
    [
        (
            "edited src/a.py: 1 line changed at line 12\n--- a/src/a.py\n+++ b/src/a.py\n@@ -10,5 +10,6 @@\n x",
            "src/a.py:15",
        ),
        ("wrote src/a.py (12 lines)", "src/a.py:12"),
        ('exit 1 in 0.1 s\n  File "/w/src/a.py", line 7, in f', "/w/src/a.py:7"),
        ("exit 1 in 0.1 s\ntests/a.py:33: AssertionError", "tests/a.py:33"),
        ("exit 0 in 0.1 s\na.py:4:    match", "a.py:4"),
    ],
)
def test_places_are_read_from_every_kind_of_output(output: str, place: str):
    assert unverified(place, shown([output])) == ()
    assert unverified(place.rpartition(":")[0] + ":99", shown([output]))


def test_marking_twice_marks_once():
    known = shown([])
    once = mark("a.py:1, `b.py:2`", known)
    assert once == "a.py:1 (unverified), `b.py:2` (unverified)"
    assert mark(once, known) == once


def test_case_slip_in_a_path_is_mended():
    known = shown([SEARCH])
    assert mend_case("In src/context_Middleware.py:12 and Context_middleware.py.", known) == (
        "In src/context_middleware.py:12 and context_middleware.py."
    )


def test_case_is_left_alone_when_two_shown_paths_fit():
    known = shown(["2 files\nA.py\na.py"])
    assert mend_case("A.py and a.py, not B.py", known) == "A.py and a.py, not B.py"


def test_prose_is_never_mended():
    known = shown(["1 file\nreadme.md\nflask.py"])
    assert mend_case("Flask has a README. Use flask.Flask, e.g. this.", known) == (
        "Flask has a README. Use flask.Flask, e.g. this."
    )


def test_long_text_is_checked_quickly():
    known = shown(["\n".join(f"src/pkg/mod{i}.py:{i} x = {i}" for i in range(2000))])
    assert unverified("a" * 100_000 + " src/pkg/mod7.py:7 " + "b.c:" * 20_000, known) == ()
