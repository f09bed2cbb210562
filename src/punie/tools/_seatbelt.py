"""The profile that confines a command on macOS, for `sandbox-exec`.

Paths never stand in the profile: they come as parameters, so that none of their characters can mean anything in it.
Its list of what every program needs follows the profiles of Chromium and of other agents.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "/usr/bin/sandbox-exec"

_BASE = """(version 1)
(deny default)
(allow process-exec)
(allow process-fork)
(allow signal (target same-sandbox))
(allow process-info* (target same-sandbox))
(allow sysctl-read)
(allow mach-lookup
  (global-name "com.apple.system.opendirectoryd.libinfo")
  (global-name "com.apple.system.opendirectoryd.membership")
  (global-name "com.apple.bsd.dirhelper")
  (global-name "com.apple.logd")
  (global-name "com.apple.system.notification_center"))
(allow ipc-posix-sem)
(allow ipc-posix-shm)
(allow pseudo-tty)
(allow file-ioctl (literal "/dev/ptmx") (regex #"^/dev/ttys[0-9]+$"))
(allow file-read*)
(allow file-write-data (literal "/dev/null") (literal "/dev/zero") (literal "/dev/tty") (literal "/dev/ptmx"))
(allow file-write* (regex #"^/dev/ttys[0-9]+$"))
"""
_NETWORK = """(allow network-outbound)
(allow network-inbound)
(allow network-bind)
(allow system-socket)
(allow mach-lookup
  (global-name "com.apple.dnssd.service")
  (global-name "com.apple.SystemConfiguration.configd")
  (global-name "com.apple.trustd.agent"))
(deny network* (remote unix-socket))
"""


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile and the parameters it names."""

    text: str
    parameters: tuple[tuple[str, str], ...]

    def arguments(self) -> list[str]:
        """The command line up to the command itself."""
        given = [part for name, value in self.parameters for part in ("-D", f"{name}={value}")]
        return [PROGRAM, "-p", self.text, *given, "--"]


def profile(*, writable: Sequence[Path], fixed: Sequence[Path], hidden: Sequence[Path], network: bool) -> Profile:
    """Writes go to the writable directories, save for what is fixed in them; what is hidden cannot be read.

    A later line beats an earlier one. To fix a path also means that no directory above it, up to the workspace, can
    be moved away or removed: it would take the path along.
    """
    parameters: list[tuple[str, str]] = []

    def named(path: Path) -> str:
        name = f"P{len(parameters)}"
        # The kernel compares real paths: /tmp is /private/tmp.
        parameters.append((name, os.path.realpath(path)))
        return f'(param "{name}")'

    roots = [Path(os.path.realpath(path)) for path in writable]
    lines = [f"(allow file-write* (subpath {named(path)}))" for path in writable]
    above: dict[Path, None] = {}
    for path in fixed:
        lines.append(f"(deny file-write* (subpath {named(path)}))")
        real = Path(os.path.realpath(path))
        above.update(dict.fromkeys(each for each in real.parents if any(each == r or r in each.parents for r in roots)))
    lines += [f"(deny file-write-unlink (literal {named(path)}))" for path in above]
    for path in hidden:
        name = named(path)
        lines.append(f"(deny file-read* (subpath {name}))")
        lines.append(f"(deny file-write* (subpath {name}))")
    text = _BASE + "\n".join(lines) + "\n" + (_NETWORK if network else "(deny network*)\n")
    return Profile(text, tuple(parameters))
