"""What the user of an editor can choose in a session: the permission mode and the model."""

from typing import TYPE_CHECKING

from acp.schema import (
    ConfigOptionUpdate,
    SessionConfigOptionBoolean,
    SessionConfigOptionSelect,
    SessionConfigSelectOption,
    SessionMode,
    SessionModeState,
)

from punie.errors import UsageError
from punie.ui._clean import clean, one_line
from punie.ui._setup import Setup

if TYPE_CHECKING:
    from punie.ui._acp_session import Conversation

_MODES = {
    "default": ("Ask", "Asks before edits and commands"),
    "acceptEdits": ("Accept edits", "Edits files of the project unasked, asks before commands"),
    "auto": ("Auto", "Edits unasked, and runs commands unasked in the sandbox"),
    "dontAsk": ("Don't ask", "Asks nothing: what no rule allows is refused"),
    "plan": ("Plan", "Reads and plans; edits and commands are refused"),
    "bypassPermissions": ("Bypass permissions", "Runs everything unasked"),
}


def modes_of(conversation: "Conversation") -> SessionModeState:
    """The permission modes, in the form of the first versions of the protocol."""
    modes = [SessionMode(id=mode, name=_MODES[mode][0], description=_MODES[mode][1]) for mode in conversation.modes()]
    return SessionModeState(current_mode_id=conversation.setup.mode, available_modes=modes)


def options_of(conversation: "Conversation") -> list[SessionConfigOptionSelect | SessionConfigOptionBoolean]:
    """The permission mode and the model, in the form of the later versions."""
    modes = [
        SessionConfigSelectOption(value=mode, name=_MODES[mode][0], description=_MODES[mode][1])
        for mode in conversation.modes()
    ]
    models = [
        SessionConfigSelectOption(value=value, name=clean(name))
        for value, name in models_of(conversation.setup).items()
    ]
    setup = conversation.setup
    return [
        SessionConfigOptionSelect(
            id="mode", name="Permissions", category="mode", type="select", current_value=setup.mode, options=modes
        ),
        SessionConfigOptionSelect(
            id="model", name="Model", category="model", type="select", current_value=setup.config.model, options=models
        ),
    ]


def models_of(setup: Setup) -> dict[str, str]:
    """The models that can be chosen, by their specs: the present one, the user's aliases, and what is ready to run."""
    from punie.backends.catalogue import EMBEDDED, known
    from punie.ui.models import state

    settings = setup.settings
    named = {name: model for name, model in known(settings.models).items() if name != EMBEDDED}
    ready = {f"local:{name}": each.title for name, each in named.items() if state(each, settings) == "ready"}
    aliases = {spec: f"{alias} ({spec})" for alias, spec in settings.aliases.items()}
    return {setup.config.model: setup.config.model, "local": "local (embedded)", **aliases, **ready}


def offered_model(setup: Setup, value: str) -> str:
    """A model that can be chosen, as it is. UsageError for another one."""
    if value not in models_of(setup):
        raise UsageError(f"{one_line(value, width=60)} is not among the models.", "/model takes any other one.")
    return value


def config_update(conversation: "Conversation") -> ConfigOptionUpdate:
    """What is chosen now."""
    return ConfigOptionUpdate(session_update="config_option_update", config_options=options_of(conversation))
