import pytest

from punie.backends._repetition import Repetition


def notices(text: str, *, step: int = 5) -> bool:
    repetition = Repetition()
    return any(repetition.feed(text[i : i + step]) for i in range(0, len(text), step))


@pytest.mark.parametrize(
    "text",
    [
        "Fine so far.\n" + "There are no results for it.\n" * 5,
        "- a.py\n" * 5,
        "It is the only one that is used. " * 6,
        "la France, " * 30,
        "one line of the circle\nand another of them\n" * 5,
        "x = 0; " * 60,
    ],
)
@pytest.mark.parametrize("step", [1, 5, 64])
def test_text_that_goes_round_in_circles(text, step):
    assert notices(text, step=step)


@pytest.mark.parametrize(
    "text",
    [
        "-" * 80 + "\n",
        "    }\n" * 6,
        "\n" * 50 + " " * 300,
        "".join(f"packages/core/src/very/long/path/of/module.py:{n} class Name{n}(Base)\n" for n in range(1, 60)),
        "| 0 | 0 | 0 | 0 |\n" * 3,
        "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
        "def a():\n    return None\n\n\ndef b():\n    return None\n\n\ndef c():\n    return None\n\n\n",
        "No. No. No.",
    ],
)
def test_text_that_only_looks_alike(text):
    assert not notices(text)
