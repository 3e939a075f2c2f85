"""What a process that runs a stranger's program may still do: compute, read files, write to what it has open.

On Linux the kernel holds it to that, by a seccomp filter, which needs no rights and can never be taken off: system
calls that are not listed here are refused, so there is no network, no new process, no signal to another process, no
file opened for writing, nothing removed or renamed. Where there is no such filter, an audit hook refuses the same
inside the interpreter: that stops accidents, not somebody who sets out to get around it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any

# Numbers of the system calls that are allowed, as ranges. In words: read, write, close, stat, seek, poll, select,
# epoll, pipe, dup, fcntl, readlink, list a folder, where am I; mmap, munmap, mprotect, mremap, madvise, brk; signal
# handlers, timers, clocks, sleep; threads and futex; who am I, uname, sysinfo, rusage, getrlimit, random, exit.
_X86_64 = (
    (0, 1), (3, 15), (17, 25), (27, 28), (32, 33), (35, 39), (60, 60), (63, 63), (72, 72), (79, 79), (89, 89),
    (96, 100), (102, 102), (104, 104), (107, 108), (110, 110), (128, 128), (130, 131), (137, 138), (158, 158),
    (186, 186), (201, 202), (204, 204), (217, 219), (228, 233), (239, 239), (262, 262), (267, 267), (269, 271),
    (273, 274), (281, 281), (290, 293), (318, 318), (324, 324), (332, 332), (334, 334), (439, 439),
)  # fmt: skip
_AARCH64 = (
    (17, 17), (19, 25), (43, 44), (48, 48), (57, 57), (59, 59), (61, 68), (72, 73), (78, 80), (93, 94), (96, 96),
    (98, 103), (113, 115), (123, 124), (128, 128), (132, 135), (137, 137), (139, 139), (153, 153), (160, 160),
    (163, 163), (165, 165), (169, 169), (172, 179), (214, 216), (222, 222), (226, 226), (232, 233), (236, 236),
    (278, 278), (283, 283), (291, 291), (293, 293), (439, 439),
)  # fmt: skip
# Calls that are allowed with certain arguments only, by their numbers.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, {"ioctl": 16, "open": 2, "openat": 257, "clone": 56, "prlimit64": 302}),
    "aarch64": (0xC00000B7, _AARCH64, {"ioctl": 29, "openat": 56, "clone": 220, "prlimit64": 261}),
}
_CLONE3 = 435
_X32 = 0x40000000
"""Numbers from here on are a second set of calls on x86_64."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x00010000
_HARMLESS_IOCTLS = (0x5401, 0x5450, 0x5451)
"""Is it a terminal; keep or close on exec."""
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 1, 38, 22, 2

_Instruction = tuple[int, int, int, int]


def _argument(n: int) -> int:
    """Where the lower half of a call's n-th argument stands; the upper half is 4 bytes on."""
    return 16 + 8 * n


def _filter(arch: int, allowed: Sequence[tuple[int, int]], special: dict[str, int]) -> list[_Instruction]:
    """The filter's program: (operation, instructions to skip if so, and if not, operand) each."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | _EPERM)
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),  # so that the C library takes clone, whose flags can be read here
    ]
    checks = {
        "open": [(_LOAD, 0, 0, _argument(1)), (_ANY_BIT, 0, 1, _WRITING), refuse, allow],
        "openat": [(_LOAD, 0, 0, _argument(2)), (_ANY_BIT, 0, 1, _WRITING), refuse, allow],
        "clone": [(_LOAD, 0, 0, _argument(0)), (_ANY_BIT, 1, 0, _THREAD), refuse, allow],
        "ioctl": [
            (_LOAD, 0, 0, _argument(1)),
            *((_EQUAL, len(_HARMLESS_IOCTLS) - i, 0, number) for i, number in enumerate(_HARMLESS_IOCTLS)),
            refuse,
            allow,
        ],
        "prlimit64": [  # limits may be read, not set: the new ones must be a null pointer
            (_LOAD, 0, 0, _argument(2)),
            (_EQUAL, 0, 2, 0),
            (_LOAD, 0, 0, _argument(2) + 4),
            (_EQUAL, 1, 0, 0),
            refuse,
            allow,
        ],
    }
    for name, number in special.items():
        program += [(_EQUAL, 0, len(checks[name]), number), *checks[name]]
    for low, high in allowed:
        program += [(_AT_LEAST, 0, 2, low), (_ABOVE, 1, 0, high), allow]
    return [*program, refuse]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def kernel_guard(*, dies_with_parent: bool = True) -> bool:
    """Ask the kernel to hold this process, for good, to what the module says; False where it does not.

    Args:
        dies_with_parent: also when the thread that started it ends.
    """
    machine = _MACHINES.get(platform.machine())
    if not sys.platform.startswith("linux") or machine is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    code = [struct.pack("HBBI", *instruction) for instruction in _filter(*machine)]
    program = _Program(len(code), b"".join(code))
    if dies_with_parent:
        libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0) == 0


_LOOKS_INSIDE = ("sys._getframe", "sys._current_", "sys.settrace", "sys.setprofile", "gc.get_")
_FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame")


def memory_guard() -> None:
    """Keep what runs from here on from looking at its own process's memory and calls, where the verdict is made.

    Libraries that ask for their caller's frame take the error for an interpreter without frames, and go on.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        inside = event == "object.__getattr__" and arguments[1] in _FRAMES
        # `sys._getframemodulename` tells no more than a name, and enums and named tuples want it.
        if inside or (event.startswith(_LOOKS_INSIDE) and event != "sys._getframemodulename"):
            raise ValueError(f"{event} is refused here")
        if event.startswith("ctypes."):
            # An ImportError, for libraries that can do without ctypes ask for it when they are imported.
            raise ImportError(f"{event} is refused here")
        named = event == "open" and isinstance(arguments[0], str | bytes)
        if named and os.path.realpath(os.fsdecode(arguments[0])).startswith("/proc/"):
            raise PermissionError("/proc is refused here")

    sys.addaudithook(hook)


_REFUSED = (
    "socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.chflags", "os.utime", "os.setxattr", "os.removexattr", "os.putenv", "shutil.", "tempfile.",
    "pty.", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "sqlite3.connect",
    "resource.setrlimit", "resource.prlimit", "signal.pthread_kill", "syslog.",
)  # fmt: skip


def interpreter_guard() -> None:
    """Refuse the same inside the interpreter, where the kernel does not."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writing or event.startswith(_REFUSED):
            raise PermissionError(f"{event} is refused here")

    sys.addaudithook(hook)
