"""Whether answers are right, whatever they are: nothing that is checked can stall or change this process.

Numbers, words and labels are compared here. Mathematical notation goes to math-verify, which has no safe time limit, in
processes that can be killed and, where the kernel helps, do nothing but compute; programs and reasoning-gym's answers,
which run what a stranger wrote, go to the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from dartune.errors import MachineError
from dartune.redaction import NAMES
from dartune.rewards.guard import kernel_guard
from dartune.rewards.sandbox import Ended, Sandbox
from dartune.rewards.tasks import MATH, Task
from dartune.rewards.verify import unwrapped
from dartune.rewards.workers import Workers

NOT_STARTED = "the answer checker's process did not start: run `python -c 'import math_verify'` to see why"
CACHE_ENTRIES = 100_000
MEMORY_BYTES = 4 * 2**30
"""Address space of one worker: a hostile power such as 9^9^9 runs into this wall, not into the machine's."""
FEWEST_FAILURES, MOST_FAILED = 20, 0.5
"""So many failures, and more than this share of the answers that were asked about, stop the run."""

Pair = tuple[str, str]


class AnswerChecker:
    """Decides whether answers are right.

    Args:
        workers: processes for mathematical notation, started when the first such pair comes.
        timeout_s: seconds after which a comparison's process is killed and the pair is an error.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0) -> None:
        self.timeout_s = timeout_s
        # What a stranger's answer is parsed by needs no passwords.
        settings = {name: value for name, value in os.environ.items() if not NAMES.search(name)}
        self._maths = Workers(max(1, workers), "dartune.rewards.checker:serve", NOT_STARTED, settings)
        self._asked_about = self._failed = 0
        self._sandboxes: dict[str, Sandbox] = {}
        self._cache: dict[tuple[str, Pair], bool | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, pairs: Sequence[Pair], task: Task = MATH) -> list[bool | None]:
        """Whether each (predicted, gold) pair is the same answer to a family; None is an error or time-out, never a no.

        Raises:
            MachineError: the checking process cannot be started at all, or fails on most of what it is asked.
        """
        verdicts = {pair: task.same(*pair) for pair in dict.fromkeys(map(tuple, pairs))}
        open_pairs = [pair for pair, verdict in verdicts.items() if verdict is None and task.worth_asking(*pair)]
        todo = [pair for pair in open_pairs if (task.name, pair) not in self._cache]
        if todo:
            if len(self._cache) + len(todo) > CACHE_ENTRIES:
                self._cache.clear()
                todo = open_pairs
            answers = self._asked(todo, task)
            self._cache.update(((task.name, pair), answer) for pair, answer in zip(todo, answers, strict=True))
        verdicts.update((pair, self._cache[task.name, pair]) for pair in open_pairs)
        return [verdicts[tuple(pair)] for pair in pairs]

    def _asked(self, pairs: Sequence[Pair], task: Task) -> list[bool | None]:
        if task.sandboxed is None:
            answers = self._maths.ask([(*pair, self.timeout_s) for pair in pairs], self.timeout_s)
            self._count(pairs, [answer is None for answer in answers])
            return [answer if isinstance(answer, bool) else None for answer in answers]
        if task.sandboxed not in self._sandboxes:
            self._sandboxes[task.sandboxed] = Sandbox(task.sandboxed)
        ended = self._sandboxes[task.sandboxed].call(pairs)
        failed = [isinstance(one, Ended) and one.by_machine for one in ended]
        self._count(pairs, failed)
        return [None if lost else one is True for one, lost in zip(ended, failed, strict=True)]

    def _count(self, pairs: Sequence[Pair], failed: Sequence[bool]) -> None:
        """Note how many checks failed; where nearly all do, rewards mean nothing."""
        self._asked_about += len(pairs)
        self._failed += sum(failed)
        if self._failed >= FEWEST_FAILURES and self._failed > MOST_FAILED * self._asked_about:
            example = next(pair for pair, lost in zip(reversed(pairs), reversed(failed), strict=True) if lost)
            raise MachineError(
                f"the answer checker failed on {self._failed} of {self._asked_about} answers (time-outs or crashes), "
                f"such as {example[0][:80]!r} for {example[1][:80]!r}: is this machine overloaded? The same command "
                "continues"
            )

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle workers for mathematics."""
        return self._maths.pids

    def close(self) -> None:
        """End all processes; the checker may be used again and then starts new ones."""
        self._maths.close()
        for sandbox in self._sandboxes.values():
            sandbox.close()
        self._sandboxes.clear()


# ---------------------------------------------------------------- the process that reads mathematics


def serve() -> None:
    """The worker process: answers one JSON line with another until its input ends."""
    import logging
    import signal

    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not reach the replies
    logging.disable()
    import math_verify  # noqa: F401 - imported before "ready", so that its time is not the first answer's

    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    kernel_guard(dies_with_parent=False)
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        predicted, gold, timeout_s = json.loads(line)
        if hasattr(signal, "setitimer"):  # ends this process even where its parent is gone
            signal.setitimer(signal.ITIMER_REAL, timeout_s + 1.0)
        print(json.dumps(_same_maths(predicted, gold)), file=replies, flush=True)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0.0)


def _same_maths(predicted: str, gold: str) -> bool | str:
    from math_verify import parse, verify

    try:
        # Without a box, LaTeX is read as whatever plain number stands in it: 2^{10} as 2.
        left, right = (parse(f"\\boxed{{{unwrapped(answer)}}}", parsing_timeout=None) for answer in (predicted, gold))
        if not right:
            return "unreadable"
        return bool(left) and verify(right, left, timeout_seconds=None, raise_on_error=True)
    except Exception:
        return "unreadable"
