"""PydanticAI's errors in Punie's own words: what happened, what to do next, and the exit code."""

from pydantic_ai import exceptions
from pydantic_ai.exceptions import AgentRunError, ModelAPIError, ModelHTTPError, UnexpectedModelBehavior

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

_OVERFLOWS = (
    "exceed_context_size",  # llama.cpp's error type
    "exceeds the available context size",  # llama.cpp
    "exceeds the context window",
    "maximum context length",  # vLLM, OpenAI
    "maximum model length",  # vLLM
    "context length of only",  # LM Studio
    "greater than the context length",  # LM Studio
    "context_length_exceeded",
    "exceeds the context length",  # Ollama, when it may not cut the prompt
    "prompt is too long",  # Anthropic
)
"""How servers say that a prompt is too long, where the status and the code do not."""


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
    """The Punie error that says the same; one that a backend raised and an SDK wrapped comes back as it was."""
    if (own := _raised_below(error)) is not None:
        return own
    if isinstance(error, ModelAPIError):
        return _of_service(error)
    match error:
        case exceptions.UsageLimitExceeded():
            return LimitReached(f"A limit was reached: {_first_line(error)}", "Raise it under [limits].")
        case exceptions.OutputTokenLimitExceeded():
            return LimitReached("The reply did not fit into max_tokens.", "Raise max_tokens, or ask for less at once.")
        case UnexpectedModelBehavior():
            return ModelError(_misbehaviour(error), "Ask again in other words, or use another model.")
        case _:
            return ModelError(f"The model failed: {_first_line(error)}", "Try again; `punie doctor` checks the server.")


def _raised_below(error: BaseException) -> PunieError | None:
    found: BaseException | None = error
    while found is not None and not isinstance(found, PunieError):
        found = found.__cause__
    return found


def _of_service(error: ModelAPIError) -> PunieError:
    said = _said(error)
    if isinstance(error, exceptions.ModelContextWindowExceededError) or _is_overflow(error):
        return ContextTooLong(f"The conversation is too long: {said}", "Start a new one.")
    match error:
        case exceptions.ModelAuthenticationError():
            return ModelError(f"The server refused the key: {said}", "Set a valid key in the environment.")
        case exceptions.ModelNotFoundError():
            return ModelError(f"The server does not know the model: {said}", _names_of(error))
        case exceptions.ModelQuotaExceededError():
            return ModelError(f"The account's quota is used up: {said}", "Add credit, or use --model local.")
        case exceptions.ModelRateLimitError():
            return ModelError(f"The server's rate limit was reached: {said}", _later(error))
        case exceptions.ModelUnavailableError():
            return ModelError(f"The server is overloaded: {said}", _later(error))
        case exceptions.ModelConnectionError() | exceptions.ModelRequestTimeout():
            return NetworkRefused(f"No answer from the server: {said}", "Check its address and the network.")
        case _:
            return ModelError(f"The model failed: {said}", "Try again; `punie doctor` checks the server.")


def _is_overflow(error: ModelAPIError) -> bool:
    """Whether a server says, in its own words, that the prompt does not fit into its context."""
    status = error.status_code if isinstance(error, ModelHTTPError) else 400
    text = f"{error.body or ''} {error.message}".lower()
    return status in {400, 413, 422, 500} and any(words in text for words in _OVERFLOWS)


def _names_of(error: ModelAPIError) -> str:
    suggested = error.suggested_model_id if isinstance(error, ModelHTTPError) else None
    return f"Did you mean {suggested}?" if suggested else "Check the name and the address after --model."


def _later(error: ModelAPIError) -> str:
    if error.retry_after and error.retry_after >= 1:
        return f"It asks to wait {error.retry_after:.0f} s. Ask again then: what was done so far is kept."
    return "Wait a little and ask again: what was done so far is kept."


def _misbehaviour(error: UnexpectedModelBehavior) -> str:
    cause = _first_line(error.__cause__) if error.__cause__ else _first_line(error)
    if "exceeded max retries" in error.message:
        name = error.message.split("'")[1] if "'" in error.message else "a tool"
        return f"The model called {name} wrongly time after time, last: {cause}"
    if "maximum output retries" in error.message:
        return f"The model gave no usable answer, last: {cause}"
    return f"The model's reply could not be used: {_first_line(error)}"


def _said(error: ModelAPIError) -> str:
    """The server's own message, without the rest of the body."""
    message = _message_in(error.body) or ("" if isinstance(error, ModelHTTPError) else _first_line(error))
    if not isinstance(error, ModelHTTPError):
        return message
    return f"{error.model_name}, status {error.status_code}" + (f": {message}" if message else "")


def _message_in(body: object) -> str:
    """What a person can read of an error body: a message in JSON, short plain text, never a page of HTML."""
    while isinstance(body, dict):
        body = next((body[key] for key in ("error", "message", "detail") if body.get(key)), "")
    text = " ".join(body.split()) if isinstance(body, str) else ""
    return "a web page instead of JSON" if text.startswith("<") else text[:300]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
