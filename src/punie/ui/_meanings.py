"""What each setting means, as it stands below its field in the source, and the values it takes where they are few."""

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from punie.config import Settings, value_of


def meaning(key: str) -> str:
    """The text for a dotted key. Raises KeyError where there is none."""
    owner, name = owner_of(key)
    classes = [cls for cls in owner.__mro__ if name in inspect.get_annotations(cls)]
    text = re.sub(r"\bNone\b", "unset", " ".join(_texts(classes[0])[name].split()))
    return re.sub(r"(?:^|(?<=\. ))[a-z]", lambda first: first[0].upper(), text)


def choices(key: str) -> tuple[str, ...]:
    """The values that a setting takes, where they are counted."""
    owner, name = owner_of(key)
    return tuple(_literals(owner.model_fields[name].annotation))


def owner_of(key: str) -> tuple[type[BaseModel], str]:
    """The model that a setting is a field of, and the field's name."""
    head, _, name = key.rpartition(".")
    return (type(value_of(Settings(), head)), name) if head else (Settings, key)  # type: ignore[return-value]


@cache
def _texts(cls: type) -> Mapping[str, str]:
    """Field -> the text that stands below it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    statements = body.body if isinstance(body, ast.ClassDef) else []
    return {
        field.target.id: text.value.value
        for field, text in pairwise(statements)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    if get_origin(annotation) in {Union, types.UnionType}:
        return [word for part in get_args(annotation) for word in _literals(part)]
    return []
