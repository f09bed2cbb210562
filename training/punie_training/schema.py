"""Whether the arguments of a call fit the JSON Schema of its tool: the part of JSON Schema that tools use."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_OTHER_NAMES = {"dict": "object", "str": "string", "int": "integer", "float": "number", "bool": "boolean"}
"""Public sets write Python's names of types now and then."""


def names(parameters: Schema) -> tuple[str, ...]:
    """The names of the parameters, in order."""
    properties = parameters.get("properties")
    return tuple(map(str, properties)) if isinstance(properties, Mapping) else ()


def faults(arguments: Mapping[str, object], parameters: Schema) -> Iterator[str]:
    """Describe what does not fit. Keywords other than properties, required, type, enum and anyOf are not looked at."""
    properties = parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = parameters.get("required")
    for name in map(str, required) if isinstance(required, list) else ():
        if name not in arguments:
            yield f"`{name}` is missing"
    for name, value in arguments.items():
        if name in properties:
            if not fits(value, properties[name]):
                yield f"`{name}` is not {_wanted(properties[name])}"
        elif properties or parameters.get("additionalProperties") is False:
            yield f"there is no `{name}`"


def fits(value: object, schema: object) -> bool:
    """Whether a value is of the type, and one of the values, that a schema asks for."""
    if not isinstance(schema, Mapping):
        return True
    choices = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(choices, list):
        return any(fits(value, choice) for choice in choices)
    enum = schema.get("enum")
    if isinstance(enum, list) and enum and value not in enum:
        return False
    return any(_is_a(value, kind) for kind in _kinds(schema))


def _kinds(schema: Schema) -> tuple[str, ...]:
    kind = schema.get("type", "any")
    kinds = kind if isinstance(kind, list) else [kind]
    return tuple(_OTHER_NAMES.get(str(k), str(k)) for k in kinds)


def _is_a(value: object, kind: str) -> bool:
    if kind not in _KINDS:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _wanted(schema: Schema) -> str:
    enum = schema.get("enum")
    if isinstance(enum, list) and enum:
        return f"one of {', '.join(map(str, enum))}"
    choices = schema.get("anyOf") or schema.get("oneOf") or [schema]
    return " or ".join(kind for choice in choices for kind in _kinds(choice))
