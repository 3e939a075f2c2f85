"""One base for everything dartune raises on purpose; the class decides the exit code of the command line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

SHOWN_PROBLEMS, KEPT_PROBLEMS = 20, 1000
DISK = {
    errno.ENOSPC: "the disk is full ({}); free space and repeat the command: it continues",
    errno.EDQUOT: "the disk is full ({}); free space and repeat the command: it continues",
    errno.EFBIG: "a file is too large for the disk or `ulimit -f` ({}); raise it and repeat the command: it continues",
    errno.EROFS: "the disk is read-only ({}); mount it to be written, or choose another --output",
    errno.EIO: "the disk fails ({}); copy the run folder to another one and repeat the command there: it continues",
}
"""What trouble with a disk is called here."""
OUT_OF_MEMORY = ("OutOfMemoryError", "not enough memory", "can't allocate memory", "CUDA out of memory")


class DartuneError(Exception):
    """Base of all expected errors: shown as a message, without a traceback."""

    exit_code = 1


class InputError(DartuneError, ValueError):
    """Something in the user's input (recipe, flag, data, model folder) must change.

    Collect every problem before raising: `InputError("my.jsonl is unusable", ["row 3: ...", "row 9: ..."])`.

    Args:
        message: what is wrong, where, and what to do.
        problems: one line per problem; all are kept in `.problems`, `str()` shows the first 20.
        count: how many there are, where `problems` are only the first of them.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Iterable[str] = (), count: int | None = None) -> None:
        self.message = message
        self.problems = tuple(problems)
        self.count = len(self.problems) if count is None else count
        # All arguments go to the base class so that the error survives pickling between processes.
        super().__init__(message, self.problems, self.count)

    @property
    def lines(self) -> list[str]:
        """The message and below it, indented, its problems: as problems of an error that collects several."""
        return [self.message, *(f"  {problem}" for problem in self.problems)]

    def __str__(self) -> str:
        lines = [self.message, *map(_item, self.problems[:SHOWN_PROBLEMS])]
        hidden = self.count - SHOWN_PROBLEMS
        if hidden > 0:
            lines.append(f"  ... and {hidden} more")
        return "\n".join(lines)


def _item(problem: str) -> str:
    text = problem.lstrip(" ")
    return f"  {' ' * (len(problem) - len(text))}- {text}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count and its noun, with more words if need be: `1 row has`, `2 rows have`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


class Problems:
    """Problems of rows, however many: the first `KEPT_PROBLEMS` are kept, the others counted."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= KEPT_PROBLEMS:
            self.first.append(problem)

    @property
    def lines(self) -> list[str]:
        """For an `InputError`: one per problem, and how many more there are."""
        more = self.count - len(self.first)
        return [*self.first, *([counted(more, "more problem")] if more else [])]


class MachineError(DartuneError, RuntimeError):
    """The input is fine but this machine cannot go on: disk full, out of memory, folder held by a process."""

    exit_code = 3


def machine_error(error: BaseException) -> MachineError | None:
    """What trouble with the disk, or used-up memory, is called here; None where `error` is neither.

    Libraries wrap both in errors of their own, so type names and texts are looked at too.
    """
    if isinstance(error, MachineError):
        return error
    text = f"{type(error).__name__}: {error}"
    for code, said in DISK.items():
        if getattr(error, "errno", None) == code or os.strerror(code) in text:
            return MachineError(said.format(error))
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(name in text for name in OUT_OF_MEMORY)
    ):
        return MachineError(
            f"out of memory ({str(error).partition(chr(10))[0] or type(error).__name__}); lower "
            "execution.microbatch_tokens, set execution.gradient_checkpointing: true or adapter: lora, then repeat the "
            "command: it continues"
        )
    return None
