from importlib.resources import files

import pytest
from pydantic_ai.models.function import AgentInfo
from tests.agent.conftest import Project
from tests.stubs import scripted

from punie.agent import create_agent
from punie.agent.factory import LARGE_MAX_TOKENS, model_settings
from punie.config import MORE_TOOLS, TOOL_NAMES, AgentConfig
from punie.errors import ConfigError, LoopDetected
from punie.tools import Workspace

DECLARED = """\
read_file(path: string, start?: integer, end?: integer)
list_files(glob?: string)
search(pattern: string, glob?: string)
find_symbol(name: string)
find_subclasses(name: string)
find_references(name: string)
edit_file(path: string, old: string, new: string)
write_file(path: string, content: string)
run_command(command: string, timeout?: number)
write_todos(todos: array)
"""


def kind(schema: dict) -> str:
    return next(option["type"] for option in schema.get("anyOf", [schema]) if option["type"] != "null")


def declaration(name: str, schema: dict) -> str:
    needed = schema.get("required", [])
    arguments = (f"{key}{'' if key in needed else '?'}: {kind(value)}" for key, value in schema["properties"].items())
    return f"{name}({', '.join(arguments)})"


async def told(project: Project, config: AgentConfig, *, compact: bool = False) -> AgentInfo:
    """What the model is told in its first request."""
    seen: list[AgentInfo] = []
    model = scripted("Hello.", seen=seen)
    vars(model)["compact"] = compact
    await create_agent(config, model=model).run("hi", deps=Workspace(project.root), event_stream_handler=_drain)
    return seen[0]


async def _drain(_ctx: object, events) -> None:
    async for _ in events:
        pass


async def test_the_model_sees_these_tools(project: Project):
    info = await told(project, AgentConfig())
    lines = [declaration(tool.name, tool.parameters_json_schema) for tool in info.function_tools]
    assert "\n".join(lines) + "\n" == DECLARED


async def test_the_embedded_model_sees_those_it_was_trained_on(project: Project):
    info = await told(project, AgentConfig(), compact=True)
    lines = [declaration(tool.name, tool.parameters_json_schema) for tool in info.function_tools]
    assert [*lines, "write_todos(todos: array)"] == DECLARED.splitlines()


async def test_only_the_configured_tools_are_offered_in_their_order(project: Project):
    info = await told(project, AgentConfig(tools=("search", "read_file")))
    assert [tool.name for tool in info.function_tools] == ["search", "read_file"]


def test_every_default_tool_exists():
    create_agent(AgentConfig(tools=TOOL_NAMES), model=scripted())


def test_unknown_tool_is_a_configuration_error_that_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        create_agent(AgentConfig(tools=("read_file", "grep")), model=scripted())
    assert str(caught.value) == f"Unknown tool: grep.\nKnown tools: {', '.join((*TOOL_NAMES, *MORE_TOOLS))}."


async def test_built_in_instructions(project: Project):
    info = await told(project, AgentConfig())
    assert info.instructions == files("punie").joinpath("prompts/system.md").read_text().strip()
    assert info.instructions
    assert info.instructions.startswith("You are Punie, a coding agent that works in one project directory")
    assert len(info.instructions.split()) < 300


async def test_configured_instructions_take_their_place(project: Project):
    assert (await told(project, AgentConfig(instructions="Speak Dutch."))).instructions == "Speak Dutch."


async def test_a_compact_model_is_told_only_what_the_user_configured(project: Project):
    assert (await told(project, AgentConfig(), compact=True)).instructions is None
    assert (await told(project, AgentConfig(instructions="x"), compact=True)).instructions == "x"


async def test_settings_travel_under_the_keys_of_pydantic_ai(project: Project):
    config = AgentConfig(stop_sequences=("<|im_end|>",), temperature=0.5, max_tokens=64, seed=7)
    info = await told(project, config)
    assert info.model_settings == {
        "stop_sequences": ["<|im_end|>"],
        "temperature": 0.5,
        "max_tokens": 64,
        "seed": 7,
    }


def test_a_large_model_gets_more_room_unless_it_was_configured():
    large, small = scripted(), scripted()
    vars(small)["compact"] = True
    assert model_settings(AgentConfig(), large).get("max_tokens") == LARGE_MAX_TOKENS
    assert model_settings(AgentConfig(), small).get("max_tokens") == 512
    assert model_settings(AgentConfig(max_tokens=512), large).get("max_tokens") == 512


async def test_the_guards_hold_without_the_loop_too(project: Project):
    calls = [("list_files", {})] * 20
    agent = create_agent(AgentConfig(), model=scripted(*calls))
    with pytest.raises(LoopDetected):
        await agent.run("hi", deps=Workspace(project.root), event_stream_handler=_drain)


async def test_runs_of_one_agent_do_not_share_their_counts(project: Project):
    agent = create_agent(AgentConfig(), model=scripted(*[*[("list_files", {})] * 4, "Done."] * 2))
    for _ in range(2):
        result = await agent.run("hi", deps=Workspace(project.root), event_stream_handler=_drain)
        assert result.output == "Done."
