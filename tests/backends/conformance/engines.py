"""Engines and servers that run: the built weights in all of them."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic_ai import ModelSettings
from pydantic_ai.models import Model
from tests.backends import servers
from tests.backends.conformance import scenes, speaking
from tests.backends.conformance.scenes import Scene
from tests.backends.conformance.talk import Talk, ask

from punie.backends import openai
from punie.backends._http import Client, Patience
from punie.backends._local import LocalModel
from punie.config import AgentConfig

HURRIED = Patience(wait_s=0.001, retries=1)


async def _answers(talk: Talk) -> None:
    """An engine that takes one question after the other has ended the last one when it answers the next."""
    assert (await ask(talk, scenes.PLAIN)).text == scenes.SAID["plain"]


def _with_stop(talk: Talk) -> Talk:
    return replace(talk, stopped=lambda: _answers(talk), idle=True)


@dataclass(frozen=True)
class InProcess:
    """An engine in this process."""

    model: LocalModel
    spare: Callable[[], LocalModel]
    """Another one, of weights that are not there."""
    trained: Callable[[Path], LocalModel]
    """The embedded model with its adapter, out of a cache."""
    key_name = ""
    window = speaking.WINDOW
    parallel = ModelSettings()

    @asynccontextmanager
    async def open(self, scene: Scene) -> AsyncIterator[Talk]:
        del scene
        yield Talk(self.model)

    @asynccontextmanager
    async def endless(self) -> AsyncIterator[Talk]:
        yield _with_stop(Talk(self.model))

    @asynccontextmanager
    async def too_long(self) -> AsyncIterator[Talk]:
        yield Talk(self.model)

    @asynccontextmanager
    async def failing(self) -> AsyncIterator[Talk]:
        model = self.spare()
        yield Talk(model)
        model.close()

    @asynccontextmanager
    async def embedded(self, cache: Path) -> AsyncIterator[Talk]:
        model = self.trained(cache)
        yield Talk(model)
        model.close()


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    url: str
    """Ends in /v1."""
    name: str
    trained: Callable[[Path], AbstractContextManager[servers.Served]]
    """A server on the embedded model with its adapter."""
    key: str = ""
    window: int | None = None
    breaking: ModelSettings = field(default_factory=ModelSettings)
    """Settings that the server refuses."""
    parallel: ModelSettings = field(default_factory=ModelSettings)
    key_name = openai.KEY

    def _model(self, *, url: str = "", key: str = "") -> Model:
        env = {openai.KEY: key or self.key}
        http = Client(local=True, key_name=openai.KEY, patience=HURRIED)
        return openai.build(f"{self.name}@{url or self.url}", AgentConfig(), env=env, http=http)

    @asynccontextmanager
    async def open(self, scene: Scene) -> AsyncIterator[Talk]:
        del scene
        yield Talk(self._model())

    @asynccontextmanager
    async def endless(self) -> AsyncIterator[Talk]:
        yield _with_stop(Talk(self._model()))

    @asynccontextmanager
    async def too_long(self) -> AsyncIterator[Talk]:
        yield Talk(self._model())

    @asynccontextmanager
    async def failing(self) -> AsyncIterator[Talk]:
        yield Talk(self._model(), breaking=self.breaking)

    @asynccontextmanager
    async def unreachable(self) -> AsyncIterator[Talk]:
        yield Talk(self._model(url=f"http://127.0.0.1:{servers.free_port()}/v1"))

    @asynccontextmanager
    async def wrong_key(self) -> AsyncIterator[Talk]:
        yield Talk(self._model(key="sk-wrong"))

    @asynccontextmanager
    async def embedded(self, cache: Path) -> AsyncIterator[Talk]:
        with self.trained(cache) as running:
            yield Talk(replace(self, url=running.base_url)._model())
