"""A filter of system calls for commands, as the BPF program the kernel takes. Linux on x86_64 and aarch64.

It denies sockets (or, with the network allowed, all but those of the internet), other processes' memory, mounts and
namespaces, kernel keys and modules, and typing into a terminal. Numbers: the kernel's system call tables; layout:
`struct seccomp_data` and `struct sock_filter` of its headers.
"""

import errno
import struct
from collections.abc import Sequence

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

MACHINES = frozenset(_ARCHITECTURES)
"""Machines, as `os.uname` names them, that a program can be made for."""

# Name, number on x86_64, number on aarch64. Numbers from 424 on are the same everywhere.
_DENIED = """
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272, pidfd_getfd 438 438
process_madvise 440 440, add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280
perf_event_open 298 241, userfaultfd 323 282, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51
setns 308 268, unshare 272 97, open_by_handle_at 304 265, kexec_load 246 104, kexec_file_load 320 294
init_module 175 105, finit_module 313 273, delete_module 176 106, swapon 167 224, swapoff 168 225, reboot 169 142
syslog 103 116, acct 163 89, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171, clock_adjtime 305 266
quotactl 179 60, quotactl_fd 443 443, vhangup 153 58, open_tree 428 428, move_mount 429 429, fsopen 430 430
fsconfig 431 431, fsmount 432 432, fspick 433 433, mount_setattr 442 442, open_tree_attr 467 467
"""
_X86_ONLY = (172, 173)  # iopl, ioperm
# As if the kernel were older: programs then take another way. The flags of clone3 lie where no filter can look.
_MISSING = "io_uring_setup 425 425, io_uring_enter 426 426, io_uring_register 427 427, clone3 435 435"
_ATTRIBUTES = """
setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, setxattrat 463 463
removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, removexattrat 466 466
"""
_CLONE, _SOCKET, _IOCTL = (56, 220), (41, 198), (16, 29)

_NAMESPACES = 0x7E020000
_INTERNET = (2, 10, 16)  # AF_INET, AF_INET6, and AF_NETLINK for the list of interfaces
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4

_Instruction = tuple[int, int, int, int]


def program(machine: str, *, network: bool, attributes: bool = True) -> bytes:
    """The filter for a machine that `os.uname` names so.

    `attributes` leaves extended attributes of files alone. Raises KeyError for a machine that is not in MACHINES.
    """
    column = list(_ARCHITECTURES).index(machine)
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), _return(_KILL)]
    code.append((_LOAD, 0, 0, _NUMBER))
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), _return(_ERROR | errno.EPERM)]
    answers = {_DENIED: errno.EPERM, _MISSING: errno.ENOSYS} | ({} if attributes else {_ATTRIBUTES: errno.EOPNOTSUPP})
    for table, answer in answers.items():
        for number in _numbers(table, column):
            code += _when(number, [_return(_ERROR | answer)])
    for number in _X86_ONLY if machine == "x86_64" else ():
        code += _when(number, [_return(_ERROR | errno.EPERM)])
    code += _when(_CLONE[column], [_argument(0), (_ANY_BIT, 0, 1, _NAMESPACES), _return(_ERROR | errno.EPERM)])
    code += _when(_SOCKET[column], _unless(0, _INTERNET) if network else [_return(_ERROR | errno.EPERM)])
    code += _when(_IOCTL[column], _if_any(1, _TERMINAL_INPUT))
    code.append(_return(_ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _numbers(table: str, column: int) -> list[int]:
    entries = (entry.split() for entry in table.strip().replace("\n", ",").split(","))
    return [int(numbers[column]) for _, *numbers in entries]


def _when(number: int, block: Sequence[_Instruction]) -> list[_Instruction]:
    """The block for one system call; a block that does not return allows the call."""
    ended = [*block] if len(block) == 1 else [*block, _return(_ALLOW)]
    return [(_EQUAL, 0, len(ended), number), *ended]


def _unless(position: int, values: Sequence[int]) -> list[_Instruction]:
    """Deny when the argument is none of the values."""
    jumps = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [_argument(position), *jumps, _return(_ERROR | errno.EPERM)]


def _if_any(position: int, values: Sequence[int]) -> list[_Instruction]:
    """Deny when the argument is one of the values."""
    jumps = [(_EQUAL, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [_argument(position), *jumps, _return(_ALLOW), _return(_ERROR | errno.EPERM)]


def _argument(position: int) -> _Instruction:
    """Load the lower half of an argument; all that is looked at is 32 bits wide."""
    return (_LOAD, 0, 0, 16 + 8 * position)


def _return(value: int) -> _Instruction:
    return (_RETURN, 0, 0, value)
