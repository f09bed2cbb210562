"""Replies as each service documents them: the same content, in the fields and pieces that this service sends."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.backends import services
from tests.backends.conformance.scenes import Call, Says
from tests.backends.services import Play

Json = Mapping[str, Any]
MODEL = "qwen2.5-coder:7b"
CONTEXT = 16_384


@dataclass(frozen=True)
class Dialect:
    """One service: how it streams, what it tells about itself, and how it refuses."""

    model: str
    chunk: Json
    """Fields of every chunk beside `choices`."""
    told: Mapping[str, Play] = field(default_factory=dict)
    """Answers by path to what it is asked about itself."""
    whole_calls: bool = False
    """Whether a call comes in one piece."""
    usage: Json = field(default_factory=dict)
    too_long: Play = field(default_factory=Play)
    failure: Play = field(default_factory=Play)
    wrong_key: Play = field(default_factory=Play)

    def play(self, says: Says) -> Play:
        """One reply, streamed."""
        deltas: list[Json] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": part} for part in _thirds(says.text) if part]
        for index, call in enumerate(says.calls):
            deltas += self._call(index, call)
        reason = "length" if says.cut else "tool_calls" if says.calls else "stop"
        chunks = [self._chunk({"index": 0, "delta": delta, "finish_reason": None}) for delta in deltas]
        chunks += [self._chunk({"index": 0, "delta": {}, "finish_reason": reason}), self._counts(says)]
        lines = (f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)
        return Play((*lines, b"data: [DONE]\n\n"))

    def _chunk(self, choice: Json) -> Json:
        return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, **self.chunk, "choices": [choice]}

    def _counts(self, says: Says) -> Json:
        counts: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18, **self.usage}
        if says.cached and "prompt_tokens_details" in counts:
            counts["prompt_tokens_details"] = {**counts["prompt_tokens_details"], "cached_tokens": says.cached}
        return {**self._chunk({}), "choices": [], "usage": counts}

    def _call(self, index: int, call: Call) -> Iterator[Json]:
        name, arguments = call
        written = json.dumps(arguments)
        head = {"index": index, "id": f"call_{index}", "type": "function"}
        if self.whole_calls:
            yield {"content": "", "tool_calls": [{**head, "function": {"name": name, "arguments": written}}]}
            return
        yield {"tool_calls": [{**head, "function": {"name": name, "arguments": ""}}]}
        for part in _thirds(written):
            yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}


def _thirds(text: str) -> Sequence[str]:
    a, b = len(text) // 3, 2 * len(text) // 3
    return text[:a], text[a:b], text[b:]


def _refused(status: int, message: str, **more: object) -> Play:
    return services.said({"error": {"message": message, "param": None, **more}}, status)


def _listed(owner: str, **more: object) -> Play:
    entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": owner, **more}
    return services.said({"object": "list", "data": [{**entry, "id": "another:1b"}, entry]})


OPENAI = Dialect(
    model="gpt-4.1",
    chunk={"model": "gpt-4.1-2025-04-14", "service_tier": "default", "system_fingerprint": "fp_1", "usage": None},
    usage={
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "accepted_prediction_tokens": 0},
    },
    too_long=_refused(
        400,
        "This model's maximum context length is 1047576 tokens. However, your messages resulted in 1100000 tokens.",
        type="invalid_request_error",
        code="context_length_exceeded",
    ),
    failure=_refused(500, "The server had an error while processing your request.", type="server_error", code=None),
    wrong_key=_refused(
        401, "Incorrect API key provided: sk-wr*ng.", type="invalid_request_error", code="invalid_api_key"
    ),
)
OLLAMA = Dialect(
    model=MODEL,
    chunk={"model": MODEL, "system_fingerprint": "fp_ollama"},
    whole_calls=True,
    told={
        "/v1/models": _listed("library"),
        "/api/show": services.said(
            {
                "parameters": f'num_ctx                        {CONTEXT}\nstop    "<|im_end|>"',
                "details": {"family": "qwen2", "parameter_size": "7.6B", "quantization_level": "Q4_K_M"},
                "model_info": {"general.architecture": "qwen2", "qwen2.context_length": 32768},
                "capabilities": ["completion", "tools"],
            }
        ),
        "/api/ps": services.said({"models": []}),
    },
    too_long=_refused(400, "the input length exceeds the context length", type="invalid_request_error", code=None),
    failure=_refused(500, "llama runner process has terminated", type="api_error", code=None),
)
LM_STUDIO = Dialect(
    model=MODEL,
    chunk={"model": MODEL, "system_fingerprint": MODEL},
    told={
        "/v1/models": services.said({"data": [{"id": MODEL, "object": "model", "owned_by": "organization_owner"}]}),
        "/api/v0/models": services.said(
            {
                "object": "list",
                "data": [
                    {
                        "id": MODEL,
                        "object": "model",
                        "type": "llm",
                        "publisher": "qwen",
                        "arch": "qwen2",
                        "compatibility_type": "gguf",
                        "quantization": "Q4_K_M",
                        "state": "loaded",
                        "max_context_length": 32768,
                        "loaded_context_length": CONTEXT,
                    }
                ],
            }
        ),
    },
    too_long=services.said(
        {
            "error": "Trying to keep the first 20000 tokens when context the overflows. However, the model is loaded "
            f"with context length of only {CONTEXT} tokens, which is not enough."
        },
        400,
    ),
    failure=services.said({"error": "The model has crashed without additional information. (Exit code: 6)"}, 400),
)
VLLM = Dialect(
    model=MODEL,
    chunk={"model": MODEL},
    told={"/v1/models": _listed("vllm", root=MODEL, parent=None, max_model_len=CONTEXT, permission=[])},
    usage={"prompt_tokens_details": {"cached_tokens": 0}},
    too_long=_refused(
        400,
        f"This model's maximum context length is {CONTEXT} tokens. However, you requested 20000 tokens in the "
        "messages, Please reduce the length of the messages.",
        type="BadRequestError",
        code=400,
    ),
    failure=_refused(500, "EngineCore encountered an issue.", type="InternalServerError", code=500),
    wrong_key=services.said({"error": "Unauthorized"}, 401),
)
