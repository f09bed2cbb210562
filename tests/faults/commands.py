"""Commands that will not end: fork bombs, deaf ones, daemons, and those that hold the pipes; nothing of them is left.

    python -m tests.faults.commands [NAME...]

runs each through `punie -p`, and looks at the machine before and after.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic_ai.messages import ToolReturnPart
from tests.backends.tiny import wait_until
from tests.faults.ground import LEAK, Ground
from tests.stubs import scripted

TIMEOUT_S = 3
DAEMON = """
import os, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
os.chdir("/")
os.closerange(0, 9)
time.sleep(1000)
"""
COMMANDS: Mapping[str, tuple[str, str | tuple[str, ...]]] = {
    "fork bomb": ("bomb() { bomb | bomb & }; bomb; sleep 1000", ("stopped at ", "timed out")),
    "slow fork bomb": ("while true; do sleep 1000 & done", ("stopped at ", "timed out")),
    "python fork bomb": ("exec python3 -c 'import os\nwhile True: os.fork()'", ("stopped at ", "timed out")),
    "deaf": ("trap '' TERM INT HUP; while true; do sleep 1; done", "timed out"),
    "deaf python": (
        "exec python3 -c 'import signal, time\nfor n in set(signal.valid_signals()) - {9, 19}:\n signal.signal(n, 1)\n"
        "time.sleep(1000)'",
        "timed out",
    ),
    "stopped": ("kill -STOP $$", "timed out"),
    "holds the pipes": ("(sleep 1000 &) ; echo over", "exit 0"),
    "holds the pipes deaf": ("(trap '' TERM HUP; setsid sleep 1000 &) ; echo over", "exit 0"),
    "daemon": ("(setsid nohup env -i sleep 1000 > /dev/null 2>&1 < /dev/null &) ; sleep 0.2; echo over", "exit 0"),
    "daemon forked twice": (f"python3 -c '{DAEMON}'; sleep 0.3; echo over", "exit 0"),
    "shell killed": ("setsid sleep 1000 & kill -9 $$", "exit 137"),
    "everything killed": (f"{LEAK}; setsid sleep 1000 & kill -9 -1", "exit "),
}


def groups() -> set[str]:
    """Control groups of punie."""
    return {str(path) for path in Path("/sys/fs/cgroup").rglob("punie-*-*")}


def ran(ground: Ground, command: str, header: str | tuple[str, ...]) -> tuple[list[str], float]:
    """What is wrong after a command, and how long its punie took."""
    before = groups()
    started = time.monotonic()
    running = ground.start("-p", "run it", "--yolo", model=scripted(("run_command", {"command": command}), "Well."))
    code = running.end(120)
    took = time.monotonic() - started
    parts = [part for message in ground.conversation() for part in message.parts]
    told = next(part.model_response_str() for part in parts if isinstance(part, ToolReturnPart))
    found = [] if code == 0 else [f"exit code {code}: {running.err.read_text()}"]
    found += [] if told.startswith(header) else [f"told {told[:80]!r}"]
    found += [f"control group {group}" for group in groups() - before if f"-{running.pid}-" in group]
    found += [] if wait_until(lambda: not ground.left(), seconds=2) else ["left running"]
    return [*found, *ground.faults()], took


def main(names: list[str]) -> dict[str, object]:
    """Run the commands, one after the other."""
    faults: list[str] = []
    seconds: dict[str, float] = {}
    with Ground() as ground:
        ground.more["PUNIE_LIMITS__COMMAND_TIMEOUT_S"] = str(TIMEOUT_S)
        for name in names or COMMANDS:
            found, took = ran(ground, *COMMANDS[name])
            seconds[name] = round(took, 2)
            faults += [f"{name}: {each}" for each in found]
            alive = os.fork()
            if alive == 0:
                os._exit(0)
            os.waitpid(alive, 0)
    return {"seconds": seconds, "faults": faults}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:]), indent=1) + "\n")
