"""Services that break off at every byte, refuse or overload: no partial call, bounded tries, and a history that works.

    python -m tests.faults.streams [EVERY]

plays a streamed answer with words, thinking and two calls to each backend, cut after each EVERYth byte, in every way a
connection can end; then asks the next question in the same stored session and checks what is sent as the services do.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
from pydantic_ai.models import override_allow_model_requests
from tests.backends.services import Asked, Play, Replay, chat, claude, said, text, tool_use

from punie.agent import SessionStore, TurnEnded, create_agent, run_turn
from punie.agent.approval import Decision, Request, once
from punie.backends import claude as claude_backend
from punie.backends import openai as openai_backend
from punie.backends._http import Client, Patience
from punie.config import AgentConfig, Limits
from punie.tools import Workspace

FIRST = {"path": "note.txt", "content": "caf\u00e9 }]"}
SECOND = {"path": "more.txt", "content": "{]"}
THOUGHT = {"type": "thinking", "thinking": "Two files, then.", "signature": "c2lnbmVk"}
ENDS = ("chunked", "length", "close")
STATUSES = (429, 500, 502, 503, 504, 529)
KINDS = ("claude", "openai")
_TRIES = 5
"""Requests for one answer, at most."""


def calling(kind: str) -> Play:
    """An answer with two calls."""
    if kind == "claude":
        second = {**tool_use("write_file", **SECOND), "id": "toolu_2"}
        return claude(THOUGHT, text("Writing."), tool_use("write_file", **FIRST), second, stop="tool_use")
    return chat("Writing.", ("write_file", FIRST), ("write_file", SECOND))


def done(kind: str) -> Play:
    """An answer in words."""
    return claude(text("Done.")) if kind == "claude" else chat("Done.")


class Broken(Replay):
    """A transport that fails before the answer begins for the first requests."""

    def __init__(self, *plays: Play, drops: int = 0) -> None:
        super().__init__(*plays)
        self.drops, self.tried = drops, 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.tried += 1
        if self.tried <= self.drops:
            raise httpx2.ReadError("dropped")
        return await super().handle_async_request(request)


class Bench:
    """Turns of one backend in a stored session; every call is allowed, and noted."""

    def __init__(self, kind: str, base: Path) -> None:
        self.kind, self.root, self.calls = kind, base / "work", list[Request]()
        self.root.mkdir()
        self.store = SessionStore(base / "state")
        self.config = AgentConfig(tools=("write_file",), limits=Limits(max_turns=4))

    async def turn(self, transport: Broken, session_id: str = "") -> tuple[TurnEnded, str]:
        """One turn of a new session, or of one that is opened again; its end, and the session's id."""
        session = self.store.resume(self.root, session_id) if session_id else self.store.create(self.root)
        http = Client(local=True, key_name="KEY", patience=Patience(wait_s=0), transport=transport)
        if self.kind == "claude":
            model = claude_backend.build("", self.config, env={"ANTHROPIC_API_KEY": "k"}, http=http)
        else:
            model = openai_backend.build("some-model@http://127.0.0.1:9/v1", self.config, env={}, http=http)
        agent = create_agent(self.config, model=model, approve=self._approve)
        stream = run_turn(
            agent, "Go.", workspace=Workspace(self.root), config=self.config, history=session.messages, session=session
        )
        events = [event async for event in stream]
        session.close()
        end = events[-1]
        assert isinstance(end, TurnEnded)
        return end, session.id

    async def _approve(self, request: Request) -> Decision:
        self.calls.append(request)
        return once

    def written(self) -> list[str]:
        """What the tools made, which is taken away."""
        names = sorted(path.name for path in self.root.iterdir())
        shutil.rmtree(self.root)
        self.root.mkdir()
        self.calls.clear()
        return names

    async def goes_on(self, session_id: str) -> list[str]:
        """What is wrong with the next question of a session."""
        transport = Broken(done(self.kind))
        end, _ = await self.turn(transport, session_id)
        found = [] if end.answer == "Done." else [f"the next question fails: {end.error}"]
        return [*found, *(fault for asked in transport.service.asked for fault in refused(asked, self.kind))]


def refused(asked: Asked, kind: str) -> Iterator[str]:
    """Why a service would refuse these messages; nothing if it would take them."""
    messages = asked.json["messages"]
    yield from _refused_by_anthropic(messages) if kind == "claude" else _refused_by_openai(messages)


def _refused_by_openai(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                yield f"a result without its call: {message}"
            waiting.discard(message["tool_call_id"])
            continue
        if waiting:
            yield f"calls without a result: {waiting}"
        waiting = {call["id"] for call in message.get("tool_calls") or ()}
        for call in message.get("tool_calls") or ():
            if not isinstance(json.loads(call["function"]["arguments"]), dict):
                yield f"arguments that are no object: {call}"
        if message["role"] == "assistant" and not waiting and not message.get("content"):
            yield "an answer of nothing"
    if waiting:
        yield f"calls without a result at the end: {waiting}"


def _refused_by_anthropic(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    waiting: set[str] = set()
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else [{"type": "text", **message}]
        if not blocks:
            yield "a message of nothing"
        results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if results != waiting:
            yield f"calls {waiting}, results {results}"
        waiting = {block["id"] for block in blocks if block["type"] == "tool_use"}
        for block in blocks:
            if block["type"] == "text" and not str(block.get("text", "x")).strip():
                yield "a text of nothing"
            if block["type"] == "thinking" and not block.get("signature"):
                yield "thinking without a signature"
            if block["type"] == "tool_use" and not isinstance(block["input"], dict):
                yield f"arguments that are no object: {block}"
        if message["role"] == "assistant" and blocks[-1]["type"] == "thinking":
            yield "an answer that ends in thinking"
    if waiting:
        yield f"calls without a result at the end: {waiting}"


async def cuts(bench: Bench, every: int) -> dict[str, Any]:
    """Break the answer off after each byte."""
    whole, tried, ran, faults = calling(bench.kind), 0, 0, list[str]()
    for ends in ENDS:
        for cut in range(0, len(whole.body), every):
            play = replace(whole, ends=ends, cut=cut)
            end, id_ = await bench.turn(Broken(play, done(bench.kind)))
            calls, names = [call.arguments for call in bench.calls], bench.written()
            tried += 1
            ran += bool(calls)
            found = [] if calls in ([], [FIRST, SECOND]) else [f"partial calls: {calls}"]
            found += [] if names in ([], ["more.txt", "note.txt"]) else [f"partial files: {names}"]
            found += [] if end.exit_code == (0 if calls else 1) else [f"exit code {end.exit_code}"]
            found += [] if calls or len((end.error or "").splitlines()) in (1, 2, 3) else [f"error: {end.error}"]
            found += await bench.goes_on(id_)
            faults += [f"{bench.kind}, {ends}, cut at {cut}: {each}" for each in found]
    return {"cuts": tried, "whole calls": ran, "faults": faults}


async def refusals(bench: Bench) -> dict[str, Any]:
    """Refuse with each status, and drop the connection, for ever or for some time, before and after a tool has run."""
    faults: list[str] = []
    most = 0
    for status in STATUSES:
        body = {"error": {"type": "some_error", "message": "not now"}}
        no = said(body, status)
        for plays, asked, code in (
            ((no,), None, 1),
            ((no, no, done(bench.kind)), 3, 0),
            ((calling(bench.kind), no), None, 1),
            ((calling(bench.kind), no, no, done(bench.kind)), 4, 0),
        ):
            transport = Broken(*plays)
            end, id_ = await bench.turn(transport)
            names, number = bench.written(), len(transport.service.asked)
            most = max(most, number)
            called = plays[0].status == 200
            found = [] if asked in (None, number) else [f"asked {number} times"]
            found += [] if number <= _TRIES + called else [f"asked {number} times"]
            found += [] if end.exit_code == code else [f"exit code {end.exit_code}: {end.error}"]
            found += [] if names == (["more.txt", "note.txt"] if called else []) else [f"files: {names}"]
            found += [] if code == 0 or "not now" in (end.error or "") else [f"error: {end.error}"]
            found += await bench.goes_on(id_)
            faults += [f"{bench.kind}, {status}, asked {number} times: {each}" for each in found]
    for drops in (1, 100):
        transport = Broken(done(bench.kind), drops=drops)
        end, id_ = await bench.turn(transport)
        most = max(most, transport.tried)
        found = [] if (end.exit_code == 0) == (drops == 1) and transport.tried <= _TRIES else [f"{end.error}"]
        found += await bench.goes_on(id_)
        faults += [f"{bench.kind}, {drops} drops, tried {transport.tried} times: {each}" for each in found]
    return {"most requests": most, "faults": faults}


async def main(every: int) -> dict[str, Any]:
    """Everything, for both backends."""
    results: dict[str, Any] = {"faults": []}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as base, override_allow_model_requests(True):
            bench = Bench(kind, Path(base))
            for found in (await cuts(bench, every), await refusals(bench)):
                results["faults"] += found.pop("faults")
                results[kind] = {**results.get(kind, {}), **found}
            bench.store.close()
    return results


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)), indent=1) + "\n")
