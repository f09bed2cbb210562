"""The model and the libraries it needs, loaded beside the prompt while the user types."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from punie.ui._progress import OnProgress, progress_text
from punie.ui._setup import Setup, load_model, open_workspace

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from punie.tools import Workspace

TRIED_S = 1.0


@dataclass(frozen=True)
class Loaded:
    """What a turn runs with."""

    model: "Model"
    workspace: "Workspace"


async def try_out(model: "Model") -> None:
    """Wait a moment for the weights of a local model: what is missing, damaged or too large shows at once, and raises.

    A load that takes longer goes on.
    """
    weights = getattr(model, "loaded", None)
    if weights is not None:
        with suppress(TimeoutError):
            await asyncio.wait_for(weights(), TRIED_S)


class Loading:
    """One load in a thread of its own; leaving the program does not wait for it. `load` makes the model."""

    def __init__(
        self,
        setup: Setup,
        *,
        on_status: Callable[[str], None],
        load: "Callable[[Setup, OnProgress], Model]" = load_model,
    ) -> None:
        self.setup = setup
        self._make = load
        self.status = "Loading"
        self._on_status = on_status
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Loaded] = self._loop.create_future()
        threading.Thread(target=self._run, name="punie-load", daemon=True).start()

    @property
    def loaded(self) -> Loaded | None:
        """What was loaded, if that has succeeded."""
        if not self._future.done() or self._future.cancelled() or self._future.exception() is not None:
            return None
        return self._future.result()

    @property
    def failed(self) -> bool:
        """Whether the load has ended without success."""
        return self._future.done() and self.loaded is None

    async def wait(self) -> Loaded:
        """Wait for the end of the load; raises what went wrong. Giving up the wait does not stop the load."""
        return await asyncio.shield(self._future)

    def _run(self) -> None:
        try:
            loaded = self._load()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the task that waits
            self._settle(error)
        else:
            self._settle(loaded)

    def _load(self) -> Loaded:
        model = self._make(self.setup, self._on_progress)
        from punie.agent import loop  # noqa: F401 - imported here, while the user types, instead of at the first turn

        workspace = open_workspace(self.setup)
        workspace.warm()
        return Loaded(model, workspace)

    def _settle(self, outcome: Loaded | BaseException) -> None:
        def settle() -> None:
            if self._future.cancelled():
                return
            if isinstance(outcome, Loaded):
                self._future.set_result(outcome)
            else:
                self._future.set_exception(outcome)
                self._future.exception()  # It counts as seen: nobody may ever ask for this load.

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)

    def _on_progress(self, stage: str, done: int, total: int) -> None:
        """Weights are fetched on a thread of the model, also after the model object is there."""
        self.status = progress_text(stage, done, total)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_status, self.status)
