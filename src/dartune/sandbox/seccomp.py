"""Restricts a process that runs untrusted code to computing, reading files and writing to open descriptors.

On Linux a seccomp filter enforces this in the kernel. It needs no privileges and cannot be removed. System calls that
are not listed here are refused: no network, no new process, no signal to another process, no file opened for writing,
no file removed or renamed. Without seccomp, an audit hook refuses the same operations inside the interpreter. The hook
prevents accidents; a determined attacker can get around it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Sequence
from typing import Any

# Numbers of the allowed system calls, as inclusive ranges: read, write, close, stat, seek, poll, select, epoll, pipe,
# dup, fcntl, readlink, getdents, getcwd; mmap, munmap, mprotect, mremap, madvise, brk; signal handlers, timers, clocks,
# sleep; threads and futex; user and process ids, uname, sysinfo, getrusage, getrlimit, getrandom, exit.
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
# Audit architecture, allowed ranges, and the calls that are allowed with certain arguments only.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, {"ioctl": 16, "open": 2, "openat": 257, "clone": 56, "prlimit64": 302}),
    "aarch64": (0xC00000B7, _AARCH64, {"ioctl": 29, "openat": 56, "clone": 220, "prlimit64": 261}),
}
_CLONE3 = 435
_X32 = 0x40000000
"""From this number on, x86_64 has the x32 ABI: a second set of the same calls, which would bypass the list."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x00010000
"""CLONE_THREAD: clone may start a thread, but not a process."""
_HARMLESS_IOCTLS = (0x5401, 0x5450, 0x5451)
"""TCGETS (isatty), FIONCLEX and FIOCLEX."""
_EPERM, _ENOSYS = 1, 38
# Opcodes of classic BPF and return values of a seccomp filter.
_LOAD, _EQUAL, _ABOVE, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER_MODE = 1, 38, 22, 2

_Instruction = tuple[int, int, int, int]


def _argument(n: int) -> int:
    """Return the offset in `struct seccomp_data` of the lower half of argument `n`; the upper half is 4 bytes on."""
    return 16 + 8 * n


def _filter(arch: int, allowed: Sequence[tuple[int, int]], special: dict[str, int]) -> list[_Instruction]:
    """Return the filter as BPF instructions: (opcode, instructions to skip if true, if false, operand) each."""
    allow, refuse = (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE | _EPERM)
    program = [
        (_LOAD, 0, 0, 4),  # the architecture: call numbers mean something else on another one
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _REFUSE | _ENOSYS),  # the C library falls back to clone, whose flags the filter can read
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
        "prlimit64": [  # limits may be read, not set: the new limit must be a null pointer
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
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def kernel_guard(*, dies_with_parent: bool = True) -> bool:
    """Install the seccomp filter in this process, permanently. Return False where the kernel does not support it.

    Args:
        dies_with_parent: have the kernel kill this process when the thread that started it ends.
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
    """Refuse access to this process's memory and stack frames, which hold the secret of `isolated_call.py`.

    The error is a ValueError: libraries that ask for their caller's frame take it for an interpreter without frames and
    continue.
    """

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        reads_frame = event == "object.__getattr__" and arguments[1] in _FRAMES
        # `sys._getframemodulename` returns a name only, and enums and named tuples need it.
        if reads_frame or (event.startswith(_LOOKS_INSIDE) and event != "sys._getframemodulename"):
            raise ValueError(f"{event} is refused here")
        if event.startswith("ctypes."):
            # An ImportError: libraries that can do without ctypes expect one when they import it.
            raise ImportError(f"{event} is refused here")
        opens_path = event == "open" and isinstance(arguments[0], str | bytes)
        if opens_path and os.path.realpath(os.fsdecode(arguments[0])).startswith("/proc/"):
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
    """Refuse the operations that the seccomp filter refuses, by an audit hook, where the kernel has no filter."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writing or event.startswith(_REFUSED):
            raise PermissionError(f"{event} is refused here")

    sys.addaudithook(hook)
