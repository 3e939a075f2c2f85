"""Pools of worker processes that exchange JSON lines with this process and are killed on a timeout.

The timeout is enforced by killing the process, so a request that hangs in native code cannot stall the caller.
"""

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
"""Seconds within which a worker must report that it is ready, including its imports."""


def command(entry_point: str) -> str:
    """Return the Python program (the argument of `python -c`) of a worker that runs `module:function`."""
    module, _, function = entry_point.partition(":")
    return f"from {module} import {function}; {function}()"


class Worker:
    """One process that answers each JSON line with a JSON line and is killed when it exceeds its timeout.

    Args:
        entry_point: `module:function` to run in the process. It prints "ready" and then one line per input line.
        start_error: error message for a process that does not start.
        environment: environment variables of the process besides its Python path. None: those of this process.
        folder: working directory of the process.

    Raises:
        MachineError: the process does not start.
    """

    def __init__(
        self,
        entry_point: str,
        start_error: str,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self.expired = False
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            # -P, -s: neither the working directory nor the user's site-packages may shadow a module.
            [sys.executable, "-P", "-s", "-c", command(entry_point)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**(os.environ if environment is None else environment), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            cwd=folder,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.asking, self.answering = self.process.stdin, self.process.stdout
        if self._reply(STARTUP_S) != "ready":
            self.close()
            raise MachineError(start_error)

    def ask(self, question: Any, timeout_s: float) -> Any:
        """Return the answer of the process, or None if it died or was killed."""
        try:
            self.asking.write(json.dumps(question) + "\n")
            self.asking.flush()
        except OSError:
            return None
        return self._reply(timeout_s)

    def _reply(self, timeout_s: float) -> Any:
        # Killing the process ends the blocking read. Unlike select on pipes, this works on every operating system.
        timer = threading.Timer(timeout_s, self._expire)
        timer.start()
        try:
            return json.loads(self.answering.readline() or "null")
        except ValueError:
            return None
        finally:
            timer.cancel()
            timer.join()

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        """Kill the process and its children.

        The process id cannot have been reused, because the process has not been waited for yet.
        """
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
        for pipe in (self.asking, self.answering):
            with contextlib.suppress(OSError):
                pipe.close()


class Workers:
    """A pool of `n` workers of one kind. Each is started when it is first needed."""

    def __init__(
        self,
        n: int,
        entry_point: str,
        start_error: str,
        environment: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        self._start = (entry_point, start_error, environment, folder)
        self._idle: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(n):
            self._idle.put(None)
        self._n = n

    def ask(self, questions: Sequence[Any], timeout_s: float) -> list[Any]:
        """Return one answer per question, in order.

        An answer is None if the process exceeded `timeout_s` seconds or died twice.

        Raises:
            MachineError: no process can be started.
        """
        with ThreadPoolExecutor(self._n) as pool:
            return list(pool.map(lambda question: self._ask(question, timeout_s), questions))

    def _ask(self, question: Any, timeout_s: float) -> Any:
        worker = self._idle.get()
        try:
            for _ in range(2):  # a process that died for another reason than the timeout is replaced once
                if worker is None or not worker.alive:
                    worker = self._replaced(worker)
                answer = worker.ask(question, timeout_s)
                if answer is not None or worker.expired:
                    return answer
                worker = self._replaced(worker)
            return None
        except MachineError:
            worker = None  # its place in the queue stays, so that a later question tries to start it again
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
        """Kill all processes. A later `ask` starts new ones."""
        for worker in [self._idle.get() for _ in range(self._n)]:
            if worker is not None:
                worker.close()
            self._idle.put(None)
