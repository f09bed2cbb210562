"""Several processes that train one run together, each on its part of every update, over MLX's ring."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, Self, cast

from punie.backends._mlx import mx  # isort: skip
from mlx.nn.utils import average_gradients
from mlx.utils import tree_map

from punie.errors import ModelError, UsageError

_RANK, _HOSTS, _THREADS = "MLX_RANK", "MLX_HOSTFILE", "OPENBLAS_NUM_THREADS"
_GRACE_S = 5.0
"""How long the first process may take to say by itself why it ends, and all to end when asked."""
Indices = tuple[int, ...]


@dataclass(frozen=True)
class Processes:
    """This process among those of the run; alone if nothing started several."""

    rank: int
    size: int

    @classmethod
    def joined(cls) -> Self:
        """Join those that `start`, or `mlx.launch`, has started. Raises ModelError when they do not find each other."""
        try:
            group = mx.distributed.init(strict=_RANK in os.environ)
        except RuntimeError as error:
            raise ModelError(f"The processes of the run cannot reach each other: {error}.") from error
        return cls(group.rank(), group.size())

    @property
    def is_first(self) -> bool:
        """Whether this one saves, logs and shows."""
        return self.rank == 0

    def part(self, update: Sequence[Indices]) -> tuple[Indices, ...]:
        """What of an update is computed here: whole batches where they can be dealt out, else rows of each batch.

        The parts of all processes are the update. One may be empty.
        """
        if len(update) % self.size == 0:
            return tuple(update[self.rank :: self.size])
        return tuple(mine for batch in update if (mine := batch[self.rank :: self.size]))

    def summed(self, *values: float) -> tuple[float, ...]:
        """Each value summed over the processes, in float32; exactly as given if there is one process."""
        if self.size == 1:
            return values
        return tuple(cast("list[float]", mx.distributed.all_sum(mx.array(values, dtype=mx.float32)).tolist()))

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        return value if self.size == 1 else cast("float", mx.distributed.all_max(mx.array(value)).item())

    def summed_gradients(self, gradients: Any) -> Any:
        """The tree of arrays summed over the processes."""
        if self.size == 1:
            return gradients
        return tree_map(lambda mean: mean * self.size, average_gradients(gradients))


ALONE = Processes(rank=0, size=1)


# --- starting them ---------------------------------------------------------------------------------------------------


def start(command: Sequence[str], *, count: int) -> int:
    """Run `command` in so many processes on this machine; returns the exit code of the first one.

    The first one has the terminal; the others are heard only if they fail. When one fails all end.
    Raises ModelError that quotes the one that failed.
    """
    with ExitStack() as closing:
        hosts = closing.enter_context(tempfile.NamedTemporaryFile("w", suffix=".json"))
        json.dump([[f"127.0.0.1:{port}"] for port in _free_ports(count)], hosts)
        hosts.flush()
        said = [closing.enter_context(tempfile.TemporaryFile("w+")) for _ in range(1, count)]
        running: list[subprocess.Popen[bytes]] = []
        closing.callback(_end, running)
        for rank in range(count):
            output = said[rank - 1] if rank else None
            environment = _environment(rank, hosts.name, count)
            running.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
        return _watch(running, said)


def _environment(rank: int, hosts: str, count: int) -> dict[str, str]:
    """Each process gets its share of the cores."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {_THREADS: threads, **os.environ, _RANK: str(rank), _HOSTS: hosts}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as closing:
        sockets = [closing.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _watch(running: Sequence[subprocess.Popen[bytes]], said: Sequence[IO[str]]) -> int:
    """Wait for all, or for the first that fails."""
    while True:
        codes = [process.poll() for process in running]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is not None:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)
    code = codes[failed] or 0
    if code > 0:  # what one refuses all refuse, and the first one has told why
        first = _code_within(running[0], _GRACE_S)
        if first:
            return first
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    last = _last_line(said[failed - 1]) if failed else ""
    raise ModelError(
        f"Process {failed + 1} of {len(running)} of the run {how}{': ' if last else '.'}{last}",
        "All have ended. Go on from the last state with --resume.",
    )


def _code_within(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None


def _last_line(output: IO[str]) -> str:
    output.seek(0)
    return next((line.strip() for line in reversed(output.readlines()) if line.strip()), "")


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        if _code_within(process, _GRACE_S) is None:
            process.kill()
            process.wait()


def joined_or_started(argv: Sequence[str], *, count: int | None) -> Processes | int:
    """Join the processes there are; or, if `count` are wanted and this is the only one, start them and run the
    command `punie train run ARGV` in each: then it is an exit code that comes back. Raises UsageError.
    """
    if count is not None and count < 1:
        raise UsageError(f"--processes {count}: at least one process is needed.")
    processes = Processes.joined()
    if count in (None, processes.size):
        return processes
    if processes.size > 1:
        raise UsageError(f"{processes.size} processes were started, --processes says {count}.", "Leave it out.")
    return start([sys.executable, "-m", "punie", "train", "run", *argv], count=cast("int", count))
