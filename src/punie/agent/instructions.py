"""What the model is told before the conversation starts."""

from importlib.resources import files

from punie.config import AgentConfig


def instructions_for(config: AgentConfig, *, compact: bool) -> str | None:
    """The configured instructions, else the built-in ones.

    A compact model was trained on its chat template's own system text: it gets nothing but what the user configured.
    """
    if config.instructions is not None:
        return config.instructions
    return None if compact else prompt("system")


def prompt(name: str) -> str:
    """The text of `src/punie/prompts/NAME.md`."""
    return files("punie").joinpath("prompts", f"{name}.md").read_text("utf-8").strip()
