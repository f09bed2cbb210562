"""A command with a gigabyte of output: what it costs in memory, what the model is shown, and where the rest is.

python -m tests.faults.output [BYTES]
"""

import atexit
import json
import os
import re
import sys
from pathlib import Path

from pydantic_ai.messages import ToolReturnPart
from tests.faults.ground import Ground
from tests.stubs import scripted

LINE = "0123456789abcdef0123456789abcde"


def peak_kb(ground: Ground, command: str) -> tuple[int, str]:
    """The most memory that a punie took which ran a command, in kB, and what the model was told of it."""

    def hook(told: int) -> None:
        def tell() -> None:
            found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
            os.write(told, (found[1] if found else "").encode())

        atexit.register(tell)

    model = scripted(("run_command", {"command": command}), "Well.")
    running = ground.start("-p", "run it", "--yolo", model=model, hook=hook)
    assert running.end(600) == 0, running.err.read_text()
    parts = [part for message in ground.conversation() for part in message.parts]
    outputs = [part.model_response_str() for part in parts if isinstance(part, ToolReturnPart)]
    return int(running.rest), outputs[-1]


def main(size: int) -> dict[str, object]:
    """Run a command that says nothing and one that says so many bytes."""
    with Ground() as ground:
        small, _ = peak_kb(ground, "echo hi")
        large, told = peak_kb(ground, f"echo first; yes {LINE} | head -c {size}; echo; echo last")
        named = re.search(r"the first (\d+) bytes of it: (\S+)", told)
        file = Path(named[2]) if named else None
        kept = file.stat().st_size if file else 0
        begins = file.read_bytes()[:6] == b"first\n" if file else False
        return {
            "bytes of output": size,
            "peak of a small command in kB": small,
            "peak in kB": large,
            "more in kB": large - small,
            "bytes for the model": len(told),
            "head": told[:60],
            "tail": told[-60:],
            "head and tail": "\nfirst\n" in told and told.endswith("\nlast"),
            "file named": bool(named) and int(named[1]) == kept,
            "bytes in the file": kept,
            "file begins as the output": begins,
            "told": [line for line in told.splitlines() if "left out" in line],
            "faults": ground.faults(),
        }


if __name__ == "__main__":
    found = main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000_000)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
