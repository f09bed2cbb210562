"""What the model is told before the conversation starts."""

from importlib.resources import files

from punie.config import AgentConfig


def instructions_for(config: AgentConfig, *, compact: bool, written: str = "", skills: str = "") -> str | None:
    """The configured instructions, else the built-in ones; behind them what is `written` for agents, and the `skills`.

    A compact model was trained on its chat template's own system text: it gets nothing but what the user configured,
    and that text again where something else has to follow it.
    """
    own = config.instructions
    if own is None and compact:
        own = prompt("compact") if written else ""
    elif own is None:
        own = prompt("system")
    return "\n\n".join(filter(None, [own, written, skills])) or (None if config.instructions is None else "")


def prompt(name: str) -> str:
    """The text of `src/punie/prompts/NAME.md`."""
    return files("punie").joinpath("prompts", f"{name}.md").read_text("utf-8").strip()
