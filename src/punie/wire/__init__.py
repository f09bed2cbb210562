"""Messages to model text and back: the one renderer and parser that serving, training and evaluation share.

A conversation is rendered by the model's own Jinja chat template, with every message content replaced by a
marker first, so that `<|im_end|>` inside a file or an answer can never become a control token. The training
rendering cut at an assistant turn equals the serving prompt token for token.

Small models copy long lists badly, so an answer may say `[[result]]` where it means "the lines of the last tool
result"; `Expander` puts the exact lines there. The same models see a shortened view of long tool results
(`View`), while the user and the expansion get the whole of it.
"""

from punie.wire._expand import NOTHING_LOOKED_UP, RESULT, CallFilter, Expander, expand, result_lines
from punie.wire._messages import (
    CALL_CLOSE,
    CALL_OPEN,
    Call,
    Dialect,
    Message,
    Reply,
    Role,
    call,
    conversation,
    declarations,
)
from punie.wire._names import known_name
from punie.wire._parse import parse, without_control_tokens
from punie.wire._render import END_OF_TURN, WHOLE, Example, View, Wire, compile_template
from punie.wire._thinking import Thoughts, without_thinking
from punie.wire._tolerant import Read, loads_lenient, read_object
from punie.wire._written import Parameters

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "END_OF_TURN",
    "NOTHING_LOOKED_UP",
    "RESULT",
    "WHOLE",
    "Call",
    "CallFilter",
    "Dialect",
    "Example",
    "Expander",
    "Message",
    "Parameters",
    "Read",
    "Reply",
    "Role",
    "Thoughts",
    "View",
    "Wire",
    "call",
    "compile_template",
    "conversation",
    "declarations",
    "expand",
    "known_name",
    "loads_lenient",
    "parse",
    "read_object",
    "result_lines",
    "without_control_tokens",
    "without_thinking",
]
