"""How many processor cores this process may use."""

import os
import sys
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def physical_cores(*, cpus: Path = _CPUS, cgroup: Path = _CGROUP) -> int:
    """Physical cores left to this process by its affinity and its container's quota; at least one."""
    if sys.platform != "linux":
        return max(1, (os.cpu_count() or 2) // 2)
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpus, cpu) for cpu in allowed}
    return max(1, min(len(cores), int(_quota(cgroup) or len(cores))))


def spins(cores: int, *, load: float | None = None) -> int:
    """How long a thread of llama.cpp should spin while it waits for the others, in turns of libgomp's loop.

    By default it spins for milliseconds, a thousand times a token: on two cores with other work that is a hundred
    times slower than going to sleep. Where nobody else wants the cores, a short spin is 20 % faster than none.
    """
    busy = os.getloadavg()[0] if load is None else load
    return 20_000 if busy < cores else 0


def _siblings(cpus: Path, cpu: int) -> str:
    """The hardware threads that share a core with this one, as the kernel lists them."""
    try:
        return (cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text("ascii").strip()
    except OSError:
        return str(cpu)


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that a container may use; None without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text("ascii").split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text("ascii")
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text("ascii")
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):
        return None
