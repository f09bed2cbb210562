"""What is said in the cases: the same conversations for weights that were built to answer them and for played bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic_ai import ModelSettings
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from tests.backends.conformance import speaking

from punie import tools
from punie.config import TOOL_NAMES

Call = tuple[str, Mapping[str, object]]


@dataclass(frozen=True)
class Says:
    """One reply as it is meant to arrive."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    cut: bool = False
    """Whether max_tokens ended it."""
    stopped: bool = False
    """Whether a stop sequence ended it."""
    cached: int = 0


@dataclass(frozen=True)
class Scene:
    """A question, and the replies that a played service gives to it and to what follows."""

    messages: tuple[ModelMessage, ...]
    says: tuple[Says, ...]
    tools: tuple[ToolDefinition, ...] = ()

    @property
    def parameters(self) -> ModelRequestParameters:
        return ModelRequestParameters(function_tools=list(self.tools), allow_text_output=True)

    def answered(self, response: ModelResponse, results: Sequence[str]) -> "Scene":
        """The conversation after the reply, with a result for each of its calls."""
        parts = [
            ToolReturnPart(call.tool_name, result, call.tool_call_id)
            for call, result in zip(response.tool_calls, results, strict=True)
        ]
        return replace(self, messages=(*self.messages, response, ModelRequest(parts=parts)))


def _tool(name: str, argument: str, description: str) -> ToolDefinition:
    schema = {
        "type": "object",
        "properties": {argument: {"type": "string"}},
        "required": [argument],
        "additionalProperties": False,
    }
    return ToolDefinition(name=name, description=description, parameters_json_schema=schema)


FIND = _tool("find_symbol", "name", "Find where a name is defined.")
SEARCH = _tool("search", "pattern", "Search the text of files.")
FIND_FLASK: Call = ("find_symbol", {"name": "Flask"})
SEARCH_BLUEPRINT: Call = ("search", {"pattern": "Blueprint"})
SAID = {name: "".join(chain) for name, chain in speaking.CHAINS.items()}


def _user(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def _babble(*says: Says) -> Scene:
    """What the built weights answer with a text that does not end; a service plays what is given."""
    return Scene((ModelRequest(parts=[SystemPromptPart("Talk."), UserPromptPart("Go on.")]),), says)


PLAIN = Scene((_user("Say something."),), (Says(SAID["plain"]), Says(SAID["plain"], cached=8)))
ONE_CALL = Scene((_user("Where is Flask?"),), (Says(calls=(FIND_FLASK,)),), (FIND,))
TWO_CALLS = Scene(
    (_user("Where is Flask, and who says Blueprint?"),),
    (Says(calls=(FIND_FLASK, SEARCH_BLUEPRINT)), Says(SAID["answer"])),
    (FIND, SEARCH),
)
REPEATED = _babble(Says(" one two three four five six"))
STOPPED = _babble(Says(" one two three four five six", cut=True), Says(" one", stopped=True))
CUT = _babble(Says(" one two three", cut=True))
SEEDED = _babble(Says(" one two three"), Says(" one two three"), Says(" four five six"))
ENDLESS = _babble(Says(" one two three four"))
EMBEDDED = Scene(
    (_user("Find all classes that inherit from Protocol"),),
    (),
    tuple(tool.tool_def for tool in tools.toolset(TOOL_NAMES).tools.values()),
)
FIND_PROTOCOLS: Call = ("find_subclasses", {"name": "Protocol"})
TOO_LONG = Scene((_user("a long story " * 2000),), ())

GREEDY = ModelSettings(temperature=0.0, max_tokens=24)


def at(temperature: float, *, seed: int, max_tokens: int = 24) -> ModelSettings:
    """Settings for text that depends on chance."""
    return ModelSettings(temperature=temperature, seed=seed, max_tokens=max_tokens)
