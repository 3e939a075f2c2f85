"""Running what strangers wrote: each call of a function in a process of its own, with limits, and then gone.

A server process imports the function once; every call is a fork of it, which may compute and read files and nothing
else (`guard.py`), for so much time and memory. What it prints is thrown away. Its result counts only with a secret that
the function's return alone sends, so a program that ends its process early has returned nothing.
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

from dartune.rewards.guard import interpreter_guard, kernel_guard, memory_guard
from dartune.rewards.workers import Workers

CPU_S = 5
WALL_S = 15.0
"""A call that sleeps or waits ends here; one that computes has ended by its CPU time."""
MEMORY_BYTES = 2**30
MOST_WORKERS = 8
SPARE_S = 30.0
"""How long beyond a call's own time the server may take before it counts as stuck."""
CACHE_ENTRIES = 100_000
_OPEN_FILES = 64
_RESULT_BYTES = 4096
_REPORT = 3
_PAUSES_S = (0.001, 0.02)
"""First and longest pause between two looks at a call's process."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that returned nothing: the program ended or outlived its process, or, `by_machine`, nobody knows why."""

    by_machine: bool


class Sandbox:
    """Calls one function, each time in a process of its own; nothing it runs can stall it or change this process.

    Args:
        function: `module:function`, of arguments and result that JSON can say; a `prepare` in its module is called
            with the same arguments first, in the server, for what is slow and trusted.
        workers: servers, and so calls at once; None: one per core, 8 at most.
    """

    def __init__(self, function: str, workers: int | None = None) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._folder = tempfile.TemporaryDirectory(prefix="dartune-", ignore_cleanup_errors=True)
        settings = {
            "HOME": self._folder.name,
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "LC_ALL": "C.UTF-8",
            "DARTUNE_SANDBOXED": function,
        }
        trouble = f"the sandbox's process for {function} did not start: run `python -c 'import dartune'` to see why"
        self._workers = Workers(
            workers or min(MOST_WORKERS, cores), "dartune.rewards.sandbox:serve", trouble, settings, self._folder.name
        )
        self._cache: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """The function's result for each list of arguments, or `Ended`; equal calls run once.

        Raises:
            MachineError: the server cannot be started at all.
        """
        names = [json.dumps(arguments) for arguments in calls]
        todo = {name: arguments for name, arguments in zip(names, calls, strict=True) if name not in self._cache}
        if len(self._cache) + len(todo) > CACHE_ENTRIES:
            self._cache.clear()
            todo = dict(zip(names, calls, strict=True))
        if todo:
            questions = [["call", *arguments] for arguments in todo.values()]
            answers = self._workers.ask(questions, WALL_S + SPARE_S)
            self._cache.update(zip(todo, map(_result, answers), strict=True))
        return [self._cache[name] for name in names]

    def held_by_kernel(self) -> bool:
        """Whether the kernel holds what runs here to its limits; otherwise only the interpreter does."""
        return self._workers.ask([["guard"]], WALL_S + SPARE_S) == [["returned", True]]

    def close(self) -> None:
        """End all processes and remove their folder."""
        self._workers.close()
        self._folder.cleanup()


def _result(answer: Any) -> Any:
    if answer is None:
        return Ended(by_machine=True)
    how, *value = answer
    return value[0] if how == "returned" else Ended(by_machine=how == "machine")


# ---------------------------------------------------------------- the server process


def serve() -> None:
    """Answer each line of JSON, a list of arguments, by a fork that calls the function, until the input ends."""
    module_name, _, attribute = os.environ.pop("DARTUNE_SANDBOXED").partition(":")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not reach the replies
    module = importlib.import_module(module_name)
    prepare = getattr(module, "prepare", lambda *_: None)
    gc.freeze()  # what is shared with the forks stays shared
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "guard":
            answer = _forked(kernel_guard, [])
        else:
            prepare(*arguments)
            answer = _forked(getattr(module, attribute), arguments)
        print(json.dumps(answer), file=replies, flush=True)


def _forked(function: Callable[..., Any], arguments: Sequence[Any]) -> list[Any]:
    """`["returned", result]`, `["program"]` or `["machine"]`: who ended the call without one."""
    secret = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reading), os.close(writing)
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
    """The forked process: never returns."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.dup2(report, _REPORT)
        os.closerange(_REPORT + 1, 4096)
        sys.stdin = open(0)  # noqa: SIM115 - what the server has read ahead is not for the program
        os.environ.clear()
        random.seed(0)
        _limit()
        os.write(_REPORT, b"begun\n")
        if function is kernel_guard:
            result = kernel_guard()
        else:
            if not kernel_guard():
                interpreter_guard()
            memory_guard()
            result = function(*arguments)
        os.write(_REPORT, secret + json.dumps(result).encode())
        os._exit(0)
    finally:
        os._exit(1)


def _limit() -> None:
    import resource

    wanted = {
        resource.RLIMIT_CPU: (CPU_S, CPU_S + 1),  # the first is a signal that a program may ignore
        resource.RLIMIT_AS: (MEMORY_BYTES, MEMORY_BYTES),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (_OPEN_FILES, _OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for name, limits in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # some systems know fewer limits
            resource.setrlimit(name, limits)


def _waited(child: int) -> bool:
    """Wait for the process, for `WALL_S` at most; whether it was the machine that ended it.

    So it is where it was killed from outside, such as for want of memory, or spent its time waiting for a core.
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
    by_someone = os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9 and not killed and spent < CPU_S
    return starved or by_someone


def _waiting_s(pid: int) -> float:
    """How long a process has been ready to run without a core to run on; 0 where the system does not say."""
    try:
        with open(f"/proc/{pid}/schedstat") as stream:
            return int(stream.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _reported(pipe: int, secret: bytes) -> list[Any] | None:
    """The result that a process sent with its secret; None where there is none.

    A process that never began is no fault of the program's.
    """
    try:
        said = os.read(pipe, _RESULT_BYTES)
    except BlockingIOError:
        said = b""
    if not said:
        return ["machine"]
    begun, _, rest = said.partition(b"\n")
    if begun != b"begun" or not rest.startswith(secret):
        return None
    try:
        return ["returned", json.loads(rest.removeprefix(secret))]
    except ValueError:
        return None
