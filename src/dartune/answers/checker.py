"""Checks answers without letting an answer stall or change this process.

Numbers, words and labels are compared in this process. Mathematical notation goes to math-verify in worker processes,
because math-verify has no reliable time limit; the workers can be killed and, where seccomp is available, can only
compute. Programs and reasoning-gym answers execute untrusted code, so they go to the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from dartune.answers.equality import unwrapped
from dartune.answers.task_families import MATH, Task, same_answer
from dartune.errors import MachineError
from dartune.run.redaction import NAMES
from dartune.sandbox.isolated_call import NoResult, Sandbox
from dartune.sandbox.seccomp import kernel_guard
from dartune.sandbox.workers import Workers

NOT_STARTED = "the answer checker's process did not start: run `python -c 'import math_verify'` to see why"
CACHE_ENTRIES = 100_000
"""Cached verdicts. A full cache is emptied."""
MEMORY_BYTES = 4 * 2**30
"""Address space of one worker, so that a power such as 9^9^9 exhausts this limit instead of the machine's memory."""
MIN_FAILURES, MAX_FAILED_SHARE = 20, 0.5
"""The run stops after at least this many failed checks, if they exceed this share of all checks."""

Pair = tuple[str, str]


class AnswerChecker:
    """Decides whether predicted answers equal gold answers.

    Args:
        workers: number of processes for mathematical notation. They start with the first pair that needs one.
        timeout_s: seconds after which the process of a comparison is killed and the pair counts as failed.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        # The workers parse untrusted text, so they get no environment variables that hold credentials.
        environment = {name: value for name, value in os.environ.items() if not NAMES.search(name)}
        self._maths = Workers(max(1, workers), "dartune.answers.checker:serve", NOT_STARTED, environment)
        self._checked = self._failed = 0
        self._sandboxes: dict[str, Sandbox] = {}
        self._cache: dict[tuple[str, Pair], bool | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, pairs: Sequence[Pair], task: Task = MATH) -> list[bool | None]:
        """Return whether each (predicted, gold) pair is the same answer.

        Args:
            pairs: (predicted, gold) answers. Verdicts are cached, and equal pairs are checked once.
            task: the task family that defines equality.

        Returns:
            One verdict per pair. None is a failed check (timeout or crash), not a wrong answer.

        Raises:
            MachineError: the worker process cannot be started, or most checks fail.
            InputError: a user-defined task family raises an exception.
        """
        verdicts = {pair: same_answer(task, *pair) for pair in dict.fromkeys((one, other) for one, other in pairs)}
        open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None and task.worth_asking(*pair)]
        uncached = [pair for pair in open_pairs if (task.name, pair) not in self._cache]
        if uncached:
            if len(self._cache) + len(uncached) > CACHE_ENTRIES:
                self._cache.clear()
                uncached = open_pairs
            answers = self._ask(uncached, task)
            self._cache.update(((task.name, pair), answer) for pair, answer in zip(uncached, answers, strict=True))
        verdicts.update((pair, self._cache[task.name, pair]) for pair in open_pairs)
        return [verdicts[one, other] for one, other in pairs]

    def _ask(self, pairs: Sequence[Pair], task: Task) -> list[bool | None]:
        """Return the verdicts of the worker processes or of the family's sandbox."""
        if task.sandboxed is None:
            answers = self._maths.ask([(*pair, self.timeout_s) for pair in pairs], self.timeout_s)
            self._count(pairs, [answer is None for answer in answers])
            return [answer if isinstance(answer, bool) else None for answer in answers]
        if task.sandboxed not in self._sandboxes:
            self._sandboxes[task.sandboxed] = Sandbox(task.sandboxed)
        results = self._sandboxes[task.sandboxed].call(pairs)
        # A call that the program itself ended is a wrong answer; one that the machine ended is a failed check.
        failed = [isinstance(result, NoResult) and result.by_machine for result in results]
        self._count(pairs, failed)
        return [None if has_failed else result is True for result, has_failed in zip(results, failed, strict=True)]

    def _count(self, pairs: Sequence[Pair], failed: Sequence[bool]) -> None:
        """Count failed checks, and raise if most fail: rewards would then be noise."""
        self._checked += len(pairs)
        self._failed += sum(failed)
        if self._failed >= MIN_FAILURES and self._failed > MAX_FAILED_SHARE * self._checked:
            example = [pair for pair, has_failed in zip(pairs, failed, strict=True) if has_failed][-1]
            raise MachineError(
                f"the answer checker failed on {self._failed} of {self._checked} answers (time-outs or crashes), "
                f"such as {example[0][:80]!r} for {example[1][:80]!r}. If the machine is overloaded, run fewer "
                "jobs; the same command continues the run"
            )

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle workers for mathematics."""
        return self._maths.pids

    def close(self) -> None:
        """Kill all processes. A later `check` starts new ones."""
        self._maths.close()
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()


# ---------------------------------------------------------------- the worker process for mathematics


def serve() -> None:
    """Run a worker process: answer each JSON line (predicted, gold, timeout in seconds) until the input ends."""
    import logging
    import signal

    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with the replies
    logging.disable()
    import math_verify  # noqa: F401 - imported before "ready", so that the import does not count against a timeout

    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    kernel_guard(dies_with_parent=False)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        predicted, gold, timeout_s = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends this process even if its parent has died
            signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
        print(json.dumps(_same_maths(predicted, gold)), file=replies, flush=True)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def _same_maths(predicted: str, gold: str) -> bool | str:
    """Compare two answers by math-verify; "unreadable" if the gold answer cannot be parsed or the comparison fails."""
    from math_verify import parse, verify

    try:
        no_timeout: Any = None  # math_verify annotates int only
        # Without a box math-verify extracts any plain number: it reads 2^{10} as 2.
        left, right = (
            parse(f"\\boxed{{{unwrapped(answer)}}}", parsing_timeout=no_timeout) for answer in (predicted, gold)
        )
        if not right:
            return "unreadable"
        return bool(left) and verify(right, left, timeout_seconds=None, raise_on_error=True)
    except Exception:
        return "unreadable"
