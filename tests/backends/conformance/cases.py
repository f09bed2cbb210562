"""The contract as data: which backends there are, what each must do, and what one of them cannot have, and why."""

from collections.abc import Mapping
from types import MappingProxyType

CASES: Mapping[str, str] = MappingProxyType(
    {
        "plain": "a plain answer",
        "streaming": "an answer in several pieces that join to the whole",
        "one-call": "one tool call",
        "two-calls": "two tool calls in one reply",
        "results": "going on with the results of calls",
        "stop": "`stop_sequences` cut the text",
        "max-tokens": "`max_tokens`, and the finish reason `length`",
        "temperature": "temperature 0 repeats itself",
        "seed": "the same seed, the same text",
        "usage": "tokens of prompt and answer",
        "cached": "tokens that were in a cache",
        "cancel": "cancelling ends the work within a second",
        "count": "counting tokens before the request",
        "context": "the context window is known",
        "too-long": "a prompt that is too long: `ContextTooLong`",
        "failure": "a request that fails: `ModelError`",
        "unreachable": "nothing listens: `NetworkRefused`",
        "wrong-key": "a wrong key: `ModelError` that names the variable",
        "embedded": "the embedded model with its adapter calls the right tool",
    }
)
"""Each is one test function, `test_<name>`."""

BACKENDS: Mapping[str, str] = MappingProxyType(
    {
        "llamacpp": "llama.cpp in process",
        "mlx": "MLX in process",
        "llamacpp-server": "`openai:` to llama.cpp's server",
        "mlx-server": "`openai:` to `mlx_lm.server`",
        "openai": "`openai:` to the OpenAI service, played",
        "ollama": "`openai:` to Ollama, played",
        "lm-studio": "`openai:` to LM Studio, played",
        "vllm": "`openai:` to vLLM, played",
        "claude": "`claude:` to Anthropic's service, played",
    }
)

_NO_SERVER = "Nothing is reached over a network, so nobody asks for a key and nothing can be out of reach."
_NO_COUNT = "The chat format has no question for the number of tokens."
_NO_MODEL = "What is played has no weights."
_NO_CACHE = "Its chat completions do not tell how much of a prompt was in the cache."
_OWN_SAMPLING = "The default model samples in its own way: it takes no temperature, and the service has no seed."
_NO_KEY = "It asks for no key."

LACKS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        **{(name, case): _NO_SERVER for name in ("llamacpp", "mlx") for case in ("unreachable", "wrong-key")},
        **{(name, "count"): _NO_COUNT for name in BACKENDS if name not in {"llamacpp", "mlx", "claude"}},
        **{(name, "embedded"): _NO_MODEL for name in ("openai", "ollama", "lm-studio", "vllm", "claude")},
        **{(name, "cached"): _NO_CACHE for name in ("ollama", "lm-studio")},
        **{(name, "wrong-key"): _NO_KEY for name in ("mlx-server", "ollama", "lm-studio")},
        ("mlx-server", "context"): "The server does not tell how much context its model has.",
        ("mlx-server", "too-long"): "The server takes prompts of any length.",
        **{("claude", case): _OWN_SAMPLING for case in ("temperature", "seed")},
    }
)
"""(backend, case) -> why that cell is empty."""


def having(case: str) -> list[str]:
    """The backends that must pass a case."""
    return [name for name in BACKENDS if (name, case) not in LACKS]
