"""Ollama's own chat format, put in place of its OpenAI one on the way out and back.

Its OpenAI endpoint cannot be told a context size: it takes the server's, mostly 4,096 tokens, and cuts longer prompts
without a word. `/api/chat` can (`num_ctx`), and says so when a prompt does not fit (`truncate`).
"""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

_OPENAI = "/v1/chat/completions"
_OPTIONS = {"max_tokens": "num_predict", "temperature": "temperature", "seed": "seed", "stop": "stop", "top_p": "top_p"}
"""Names of the OpenAI format -> those of Ollama's options."""


@dataclass(frozen=True)
class Ollama:
    """Rewrites streamed requests for an Ollama server, and their answers."""

    num_ctx: int

    def asked(self, request: httpx2.Request) -> httpx2.Request:
        """The request as `/api/chat` takes it; any other request as it is."""
        if not request.url.path.endswith(_OPENAI):
            return request
        body = json.loads(request.content)
        if not body.get("stream"):
            return request
        url = request.url.copy_with(path=request.url.path.removesuffix(_OPENAI) + "/api/chat")
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        headers["accept-encoding"] = "identity"
        content = json.dumps(self._native(body), ensure_ascii=False).encode()
        return httpx2.Request("POST", url, headers=headers, content=content, extensions=request.extensions)

    def answered(self, response: httpx2.Response) -> httpx2.Response:
        """An answer of `/api/chat` as server-sent events; any other answer as it is."""
        if not response.is_success or "ndjson" not in response.headers.get("content-type", ""):
            return response
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - an async client gives no other
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=_Events(response.stream), request=response.request)

    def _native(self, body: Mapping[str, Any]) -> dict[str, Any]:
        options = {ours: body[theirs] for theirs, ours in _OPTIONS.items() if body.get(theirs) is not None}
        native = {
            "model": body["model"],
            "messages": list(_messages(body["messages"])),
            "stream": True,
            "truncate": False,
            "shift": False,
            "options": {"num_ctx": self.num_ctx, **options},
        }
        return {**native, "tools": body["tools"]} if body.get("tools") else native


def _messages(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    names: dict[str, str] = {}
    for message in messages:
        native = {"role": message["role"], "content": _text(message.get("content"))}
        if thought := message.get("reasoning") or message.get("reasoning_content"):
            native["thinking"] = thought
        if calls := message.get("tool_calls"):
            names |= {call["id"]: call["function"]["name"] for call in calls}
            native["tool_calls"] = [_call(call) for call in calls]
        if made := message.get("tool_call_id"):
            native |= {"tool_call_id": made, "tool_name": names.get(made, "")}
        yield native


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    try:
        arguments = json.loads(call["function"]["arguments"])
    except ValueError:
        arguments = {}  # it was refused, and the reason is in the result
    return {"id": call["id"], "function": {"name": call["function"]["name"], "arguments": arguments}}


@dataclass
class _Events(httpx2.AsyncByteStream):
    """Lines of JSON as the chunks of a chat completion."""

    lines: httpx2.AsyncByteStream
    calls: int = field(default=0, init=False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for piece in self.lines:
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                for event in self._events(line):
                    yield b"data: " + event + b"\n\n"
        for event in self._events(rest):
            yield b"data: " + event + b"\n\n"

    async def aclose(self) -> None:
        """Close the connection."""
        await self.lines.aclose()

    def _events(self, line: bytes) -> Iterator[bytes]:
        if not line.strip():
            return
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("message", {}), dict):
            yield line  # whoever reads it says that it is not JSON
        elif "error" in value:
            yield json.dumps({"error": {"message": str(value["error"])}}).encode()
        else:
            yield from self._chunks(value)

    def _chunks(self, value: Mapping[str, Any]) -> Iterator[bytes]:
        base = {"id": "chat", "object": "chat.completion.chunk", "created": 0, "model": value.get("model", "")}
        delta, done = self._delta(value.get("message", {})), value.get("done") is True
        reason = value.get("done_reason") or "stop"
        finish = None if not done else "tool_calls" if self.calls and reason == "stop" else reason
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        yield json.dumps({**base, "choices": [choice]}).encode()
        if done:
            read, written = (value.get(key) or 0 for key in ("prompt_eval_count", "eval_count"))
            usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
            yield json.dumps({**base, "choices": [], "usage": usage}).encode()
            yield b"[DONE]"

    def _delta(self, message: Mapping[str, Any]) -> dict[str, Any]:
        delta = {"role": "assistant", "content": message.get("content") or ""}
        if thought := message.get("thinking"):
            delta["reasoning"] = thought
        if calls := message.get("tool_calls"):
            delta["tool_calls"] = [self._chunk_of(call) for call in calls]
        return delta

    def _chunk_of(self, call: Mapping[str, Any]) -> dict[str, Any]:
        index, self.calls = self.calls, self.calls + 1
        function = call.get("function") or {}
        arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        named = {"name": function.get("name"), "arguments": arguments}
        return {"index": index, "id": call.get("id") or f"call_{index}", "type": "function", "function": named}
