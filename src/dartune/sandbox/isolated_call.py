"""Calls a function on untrusted code, each call in a separate process with limits on time, memory and system calls.

A server process imports the function once and forks for every call, so a call does not repeat the imports. The fork
may compute and read files only (`seccomp.py`). Its output is discarded. A result is accepted only together with a
random secret that is sent when the function returns: a program that exits early, or that writes to the result pipe
itself, has returned nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from dartune.sandbox.seccomp import interpreter_guard, kernel_guard, memory_guard
from dartune.sandbox.workers import Workers

CPU_S = 5
"""CPU time limit of a call in seconds."""
WALL_S = 15.0
"""Wall-clock limit of a call in seconds. It ends calls that sleep or wait, which use no CPU time."""
MEMORY_BYTES = 2**30
"""Address space of a call."""
MOST_WORKERS = 8
SPARE_S = 30.0
"""Seconds beyond `WALL_S` after which the server itself counts as stuck and is killed."""
CACHE_ENTRIES = 100_000
"""Cached results. A full cache is emptied."""
_OPEN_FILES = 64
_RESULT_BYTES = 4096
"""Bytes that are read of a report. A longer one is cut, which makes its JSON invalid: the call returned nothing."""
_REPORT_FD = 3
"""File descriptor of the result pipe in the fork: the first one behind stdin, stdout and stderr."""
_PAUSES_S = (0.001, 0.02)
"""First and longest pause between two polls of a call's process."""


@dataclass(frozen=True, slots=True)
class NoResult:
    """The result of a call that did not return.

    `by_machine` is True if the cause lies outside the program, such as a failed fork, an out-of-memory kill or a server
    that died. Otherwise the program exited, crashed or exceeded a limit.
    """

    by_machine: bool


class Sandbox:
    """Calls one function, each time in a separate process that can neither stall nor change this process.

    Args:
        function: `module:function`, with arguments and result that JSON can represent. If its module has a function
            `prepare`, the server calls it with the same arguments first. It is meant for slow imports of trusted code.
        workers: number of servers, which is the number of concurrent calls. None: one per core, at most 8.
    """

    def __init__(self, function: str, workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._folder = tempfile.TemporaryDirectory(prefix="dartune-", ignore_cleanup_errors=True)
        # The complete environment: no variable of this process, such as a token, reaches untrusted code.
        environment = {
            "HOME": self._folder.name,
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
            "DARTUNE_SANDBOXED": function,
        }
        start_error = f"the sandbox's process for {function} did not start: run `python -c 'import dartune'` to see why"
        self._workers = Workers(
            workers or min(MOST_WORKERS, cores),
            "dartune.sandbox.isolated_call:serve",
            start_error,
            environment,
            self._folder.name,
        )
        self._cache: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Return the function's result, or `NoResult`, for each list of arguments. Equal calls run once.

        Raises:
            MachineError: the server cannot be started.
        """
        keys = [json.dumps(arguments) for arguments in calls]
        pending = {key: arguments for key, arguments in zip(keys, calls, strict=True) if key not in self._cache}
        if len(self._cache) + len(pending) > CACHE_ENTRIES:
            self._cache.clear()
            pending = dict(zip(keys, calls, strict=True))
        if pending:
            questions = [["call", *arguments] for arguments in pending.values()]
            answers = self._workers.ask(questions, WALL_S + SPARE_S)
            self._cache.update(zip(pending, map(_result, answers), strict=True))
        return [self._cache[key] for key in keys]

    def held_by_kernel(self) -> bool:
        """Return whether the kernel filters system calls. Otherwise only an audit hook of the interpreter does."""
        return self._workers.ask([["guard"]], WALL_S + SPARE_S) == [["returned", True]]

    def close(self) -> None:
        """Kill all processes and remove their folder."""
        self._workers.close()
        self._folder.cleanup()


def _result(answer: Any) -> Any:
    """Return the result that a server's answer carries, or `NoResult`."""
    if answer is None:
        return NoResult(by_machine=True)
    outcome, *value = answer
    return value[0] if outcome == "returned" else NoResult(by_machine=outcome == "machine")


# ---------------------------------------------------------------- the server process


def serve() -> None:
    """Run a server: fork for each JSON line of arguments, call the function there and print its outcome as JSON."""
    module_name, _, attribute = os.environ.pop("DARTUNE_SANDBOXED").partition(":")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the replies
    module = importlib.import_module(module_name)
    prepare = getattr(module, "prepare", lambda *_: None)
    gc.freeze()  # a collection in a fork would copy the memory pages that it shares with the server
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        request, *arguments = json.loads(line)
        if request == "guard":
            answer = _forked(kernel_guard, [])
        else:
            prepare(*arguments)
            answer = _forked(getattr(module, attribute), arguments)
        print(json.dumps(answer), file=replies, flush=True)


def _forked(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """Call a function in a fork.

    Returns:
        `["returned", result]`; without a result `["program"]` or `["machine"]`, which names what ended the call.
    """
    secret = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return ["machine"]
    if child == 0:
        _call(function, arguments, writing, secret)
    os.close(writing)
    os.set_blocking(reading, False)
    try:
        by_machine = _waited(child)
        return _reported(reading, secret) or ["machine" if by_machine else "program"]
    finally:
        os.close(reading)


def _call(function: Callable[..., Any], arguments: Sequence[Any], report: int, secret: bytes) -> None:
    """Run the call in the forked process. It never returns."""
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.dup2(report, _REPORT_FD)
        os.closerange(_REPORT_FD + 1, 4096)
        sys.stdin = open(0)  # noqa: SIM115 - the old stream may hold requests that the server has read ahead
        os.environ.clear()
        random.seed(0)
        _limit()
        os.write(_REPORT_FD, b"begun\n")
        if function is kernel_guard:
            result = kernel_guard()
        else:
            if not kernel_guard():
                interpreter_guard()
            memory_guard()
            result = function(*arguments)
        # The secret is a local of this frame; `memory_guard` keeps the program from reading frames and memory.
        os.write(_REPORT_FD, secret + json.dumps(result).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _limit() -> None:
    import resource

    limits = {
        resource.RLIMIT_CPU: (CPU_S, CPU_S + 1),  # at the soft limit comes a signal that a program may ignore
        resource.RLIMIT_AS: (MEMORY_BYTES, MEMORY_BYTES),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (_OPEN_FILES, _OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for resource_id, soft_and_hard in limits.items():
        with contextlib.suppress(ValueError, OSError):  # some systems have fewer limits
            resource.setrlimit(resource_id, soft_and_hard)


def _waited(child: int) -> bool:
    """Wait for the process for at most `WALL_S` seconds, and return whether the machine ended it.

    The machine ended it if another process killed it, such as the kernel's out-of-memory killer, or if it spent more
    than half of its time waiting for a core.
    """
    deadline, pause = time.monotonic() + WALL_S, _PAUSES_S[0]
    starved = killed = False
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline and not killed:
            starved, killed = _waiting_s(child) > WALL_S / 2, True
            os.kill(child, 9)
        time.sleep(pause)
        pause = min(2 * pause, _PAUSES_S[1])
    spent = usage.ru_utime + usage.ru_stime
    # A SIGKILL after `CPU_S` seconds of computing comes from the CPU limit.
    killed_from_outside = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9 and not killed and spent < CPU_S
    return starved or killed_from_outside


def _waiting_s(pid: int) -> float:
    """Return the seconds that a process was runnable but not running; 0 where the system does not report it."""
    try:
        with open(f"/proc/{pid}/schedstat") as stream:
            return int(stream.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _reported(pipe: int, secret: bytes) -> list[Any] | None:
    """Read a process's outcome; None if it sent no result together with its secret.

    A process that sent nothing never reached the program, so the machine is at fault.
    """
    try:
        report = os.read(pipe, _RESULT_BYTES)
    except BlockingIOError:
        report = b""
    if not report:
        return ["machine"]
    begun, _, rest = report.partition(b"\n")
    if begun != b"begun" or not rest.startswith(secret):
        return None
    try:
        return ["returned", json.loads(rest.removeprefix(secret))]
    except ValueError:
        return None
