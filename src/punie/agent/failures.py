"""PydanticAI's errors in Punie's own words: what happened, what to do next, and the exit code."""

from pydantic_ai import exceptions
from pydantic_ai.exceptions import AgentRunError, ModelHTTPError, UnexpectedModelBehavior

from punie.agent.events import StopReason
from punie.errors import (
    ContextTooLong,
    Interrupted,
    LimitReached,
    LoopDetected,
    ModelError,
    NetworkRefused,
    PermissionNeeded,
    PunieError,
    RepeatedText,
)


def stop_reason(error: PunieError) -> StopReason:
    """How a turn that ended with this error is reported."""
    match error:
        case LoopDetected() | RepeatedText():
            return "loop"
        case LimitReached():
            return "limit"
        case PermissionNeeded():
            return "denied"
        case Interrupted():
            return "interrupted"
        case _:
            return "error"


def translated(error: AgentRunError) -> PunieError:
    """The Punie error that says the same."""
    match error:
        case exceptions.UsageLimitExceeded():
            return LimitReached(f"A limit was reached: {_first_line(error)}", "Raise it under [limits].")
        case exceptions.OutputTokenLimitExceeded():
            return LimitReached("The reply did not fit into max_tokens.", "Raise max_tokens, or ask for less at once.")
        case exceptions.ModelAuthenticationError():
            return ModelError(f"The server refused the key: {_said(error)}", "Set a valid key in the environment.")
        case exceptions.ModelNotFoundError():
            return ModelError(f"The server does not know the model: {_said(error)}", "Check the name after --model.")
        case exceptions.ModelContextWindowExceededError():
            return ContextTooLong(f"The conversation is too long: {_said(error)}", "Start a new one.")
        case exceptions.ModelRateLimitError() | exceptions.ModelQuotaExceededError():
            return ModelError(f"The server's rate limit was reached: {_said(error)}", "Wait a little and ask again.")
        case exceptions.ModelConnectionError() | exceptions.ModelRequestTimeout():
            return NetworkRefused(f"No answer from the server: {_said(error)}", "Check its address and the network.")
        case UnexpectedModelBehavior():
            return ModelError(_misbehaviour(error), "Ask again in other words, or use another model.")
        case _:
            return ModelError(f"The model failed: {_said(error)}", "Try again; `punie doctor` checks the server.")


def _misbehaviour(error: UnexpectedModelBehavior) -> str:
    cause = _first_line(error.__cause__) if error.__cause__ else _first_line(error)
    if "exceeded max retries" in error.message:
        name = error.message.split("'")[1] if "'" in error.message else "a tool"
        return f"The model called {name} wrongly time after time, last: {cause}"
    if "maximum output retries" in error.message:
        return f"The model gave no usable answer, last: {cause}"
    return f"The model's reply could not be used: {_first_line(error)}"


def _said(error: AgentRunError) -> str:
    if isinstance(error, ModelHTTPError):
        return f"{error.model_name}, status {error.status_code}: {_first_line(error)}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
