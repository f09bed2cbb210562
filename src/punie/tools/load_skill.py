"""The instructions of a skill, or another file of it."""

from pydantic_ai import RunContext

from punie.tools._workspace import Workspace


def load_skill(ctx: RunContext[Workspace], name: str, file: str = "SKILL.md") -> str:
    """Load the instructions of a skill before its task.

    Args:
        name: Name of the skill.
        file: Another file of the skill, by its path in the skill.
    """
    return ctx.deps.skill(name, file)
