"""Processes that answer questions and can be killed: nothing they are asked can stall whoever asks."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dartune.errors import MachineError

STARTUP_S = 120.0


def command(serve: str) -> str:
    """The program of a worker that runs `module:function`."""
    module, _, function = serve.partition(":")
    return f"from {module} import {function}; {function}()"


class Worker:
    """One process that answers a line of JSON with another; it is killed when it takes too long.

    Args:
        serve: `module:function`, run there; it prints "ready" and then a line for each line it reads.
        trouble: what to say where it does not start.
        settings: environment variables it gets on top of its Python path; None: this process's own too.
        folder: where it runs.

    Raises:
        MachineError: it does not start.
    """

    def __init__(
        self, serve: str, trouble: str, settings: Mapping[str, str] | None = None, folder: str | None = None
    ) -> None:
        self.expired = False
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-c", command(serve)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**(os.environ if settings is None else settings), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            text=True,
            start_new_session=True,
        )
        if self._reply(STARTUP_S) != "ready":
            self.close()
            raise MachineError(trouble)

    def ask(self, question: Any, timeout_s: float) -> Any:
        """Its answer; None where the process died or had to be killed."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except OSError:
            return None
        return self._reply(timeout_s)

    def _reply(self, timeout_s: float) -> Any:
        # The timer's kill ends the blocking read: this needs no select, so it is the same on every system.
        timer = threading.Timer(timeout_s, self._expire)
        timer.start()
        try:
            return json.loads(self.process.stdout.readline() or "null")
        except ValueError:
            return None
        finally:
            timer.cancel()
            timer.join()

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        """End the process and those it started; until it is waited for, its number is nobody else's."""
        if self.process.poll() is not None:
            return
        if hasattr(os, "killpg"):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    @property
    def alive(self) -> bool:
        return not self.expired and self.process.poll() is None

    def close(self) -> None:
        self._kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


class Workers:
    """Some workers of one kind, each started when it is first needed."""

    def __init__(
        self,
        n: int,
        serve: str,
        trouble: str,
        settings: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self._start = (serve, trouble, settings, folder)
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(n):
            self._idle.put(None)
        self._n = n

    def ask(self, questions: Sequence[Any], timeout_s: float) -> list[Any]:
        """An answer for each, in order; None where a process took longer than `timeout_s`, or died twice.

        Raises:
            MachineError: no process can be started at all.
        """
        with ThreadPoolExecutor(self._n) as pool:
            return list(pool.map(lambda question: self._ask(question, timeout_s), questions))

    def _ask(self, question: Any, timeout_s: float) -> Any:
        worker = self._idle.get()
        try:
            for _ in range(2):  # a process that dies of something else than this question's time gets a second try
                if worker is None or not worker.alive:
                    worker = self._replaced(worker)
                answer = worker.ask(question, timeout_s)
                if answer is not None or worker.expired:
                    return answer
                worker = self._replaced(worker)
            return None
        except MachineError:
            worker = None
            raise
        finally:
            self._idle.put(worker)

    def _replaced(self, worker: Worker | None) -> Worker:
        if worker is not None:
            worker.close()
        return Worker(*self._start)

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle workers."""
        return [worker.process.pid for worker in list(self._idle.queue) if worker is not None]

    def close(self) -> None:
        """End all processes; asked again, new ones start."""
        for worker in [self._idle.get() for _ in range(self._n)]:
            if worker is not None:
                worker.close()
            self._idle.put(None)
