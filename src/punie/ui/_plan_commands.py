"""Slash commands about longer work: to carry out a plan, and to see the steps."""

from typing import TYPE_CHECKING, cast

from punie.errors import UsageError
from punie.ui._clean import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from punie.config import PermissionMode
    from punie.ui.terminal import Chat

AGREED = "I agree to the plan. Carry it out."
_MODES = ("default", "acceptEdits", "auto")


async def go(chat: "Chat", rest: str) -> None:
    """Leave plan mode and have the model begin. UsageError where there is no plan, or it is no mode to work in."""
    chat.set_mode(mode_to_go(chat.setup.mode, chat.history, rest))
    chat.say([f"Permission mode: {chat.setup.mode}"], style="dim")
    await chat.ask_model(AGREED)


def mode_to_go(mode: "PermissionMode", history: "Sequence[object]", rest: str) -> "PermissionMode":
    """The mode that a plan is carried out in. UsageError where there is no plan, or it is no mode to work in."""
    if mode != "plan":
        raise UsageError(f"There is no plan to agree to: the mode is {mode}.", "/mode plan begins to plan.")
    if not history:
        raise UsageError("There is no plan yet.", "Say what is to be done.")
    wanted = {name.lower(): name for name in _MODES}.get(rest.lower() or "default")
    if wanted is None:
        raise UsageError(f"A plan cannot be carried out in mode '{one_line(rest, width=40)}'.", f"/go {_MODES[1]}")
    return cast("PermissionMode", wanted)


async def show_todos(chat: "Chat", rest: str) -> None:
    """The list of steps as the model wrote it last."""
    from punie.agent.todos import todos_in

    del rest
    chat.say(todos_in(chat.history).splitlines() or ["The model keeps no list of steps in this conversation."])
