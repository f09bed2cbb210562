"""Slash commands about skills: which there are, and to have the model follow one."""

import os
import re
from typing import TYPE_CHECKING

from punie.config import own_skill_places, project_skill_places
from punie.errors import UsageError
from punie.ui._clean import one_line

if TYPE_CHECKING:
    from punie.agent.skills import Skills
    from punie.ui._setup import Setup
    from punie.ui.terminal import Chat

_NAME = re.compile(r"[a-z0-9-]{1,64}")


def folders(setup: "Setup") -> list[str]:
    """The names of the folders that hold a skill, sorted, of a project only if it is trusted. Nothing is opened."""
    places = own_skill_places(user=setup.user_dir, home=setup.home)
    places += project_skill_places(setup.root.resolve(), setup.project) if setup.project else []
    found: set[str] = set()
    for place in places:
        try:
            names = os.listdir(place)  # noqa: PTH208 - names are all that is wanted
        except OSError:
            continue
        found |= {name for name in names if _NAME.fullmatch(name) and (place / name / "SKILL.md").is_file()}
    return sorted(found)


async def _skills(chat: "Chat") -> "Skills | None":
    """The skills for the model that runs; None where there is none. UsageError where it is too small for them."""
    from punie.agent.offered import is_large
    from punie.ui._setup import skills_of

    loaded = await chat.loaded()
    if loaded is None:
        return None
    if not is_large(chat.setup.config, loaded.model):
        raise UsageError("This model is too small for skills.", "/model names a larger one.")
    return skills_of(chat.setup, loaded.model)


async def list_skills(chat: "Chat", rest: str) -> None:
    """Every skill with where it lies, whether the model is told of it, and what all of them cost."""
    del rest
    skills = await _skills(chat)
    if skills is None:
        return
    for skill in skills.found.values():
        told = "" if skill in skills.told else "  (the model is not told of it)"
        chat.say([f"/skill {skill.name}  {skill.shown}{told}"])
        chat.say([f"    {one_line(skill.description, width=200)}"], style="dim")
    if skills.told:
        chat.say([f"about {skills.tokens:,} tokens in every request (skills_tokens sets how many they may take)"])
    if not skills.found:
        chat.say(["There are no skills. docs/skills.md says where they are looked for."], style="dim")
    chat.say(skills.warnings, style="yellow")


async def use_skill(chat: "Chat", rest: str) -> None:
    """Send the instructions of a skill with what is asked for. UsageError if there is no such skill."""
    if not rest:
        raise UsageError("Which skill?", "/skills lists them.")
    skills = await _skills(chat)
    if skills is not None:
        await chat.ask_model(prompt_of(skills, rest))


def prompt_of(skills: "Skills", rest: str) -> str:
    """The prompt that `/skill NAME REQUEST` stands for. UsageError if there is no such skill."""
    from pydantic_ai import ModelRetry

    name, _, request = rest.partition(" ")
    try:
        return skills.prompt(name, request.strip())
    except ModelRetry as error:
        raise UsageError(error.message, "/skills lists them.") from None
