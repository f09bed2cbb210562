"""The agent: a PydanticAI agent with Punie's tools, guards and events around it."""

from punie.agent.approval import Approver, Decision, Request, refuse
from punie.agent.events import Event, TurnEnded
from punie.agent.factory import create_agent
from punie.agent.loop import run_turn
from punie.agent.permissions import Permissions
from punie.agent.session import Session, SessionStore
from punie.agent.undo import Undone

__all__ = [
    "Approver",
    "Decision",
    "Event",
    "Permissions",
    "Request",
    "Session",
    "SessionStore",
    "TurnEnded",
    "Undone",
    "create_agent",
    "refuse",
    "run_turn",
]
