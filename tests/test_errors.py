import inspect
import re

import pytest

from punie import errors
from punie.errors import PunieError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, PunieError)]


def test_every_class_stands_in_the_drawn_tree_with_its_exit_code():
    drawn = dict(re.findall(r"(\w+)\s+(\d+)(?:\s|$)", errors.__doc__ or ""))
    assert {cls.__name__: str(cls.exit_code) for cls in CLASSES} == drawn


@pytest.mark.parametrize(
    ("cause", "step", "text"),
    [
        ("It broke.", "", "It broke."),
        ("It broke.", "Mend it.", "It broke.\nMend it."),
        ("a\nb\nc\nd", "Mend it.", "a\nb\nMend it."),
        ("a\n\nb\nc\nd", "", "a\nb\nc"),
        ("a", "1\n2\n3", "a\n1\n2"),
    ],
)
def test_text_is_cause_then_next_step_in_three_lines_at_most(cause: str, step: str, text: str):
    assert str(PunieError(cause, step)) == text
