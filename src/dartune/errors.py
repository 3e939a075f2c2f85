"""Exception types and their exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

SHOWN_PROBLEMS, KEPT_PROBLEMS = 20, 1000
"""Problems that a message lists, and problems that are kept in memory; the others are only counted."""
DISK = {
    errno.ENOSPC: "the disk is full ({}); free space and repeat the command: it continues",
    errno.EDQUOT: "the disk is full ({}); free space and repeat the command: it continues",
    errno.EFBIG: "a file is too large for the disk or `ulimit -f` ({}); raise it and repeat the command: it continues",
    errno.EROFS: "the disk is read-only ({}); mount it writable, or choose another --output",
    errno.EIO: "the disk reports an I/O error ({}); copy the run folder to another disk and repeat the command "
    "there: it continues",
}
"""errno of a disk error -> message, with the original error filled in."""
OUT_OF_MEMORY = ("OutOfMemoryError", "not enough memory", "can't allocate memory", "CUDA out of memory")
"""Texts by which a `RuntimeError` of torch is recognised as an out-of-memory error."""


class DartuneError(Exception):
    """Base class of all expected errors. The command line shows their message without a traceback."""

    exit_code = 1


class InputError(DartuneError, ValueError):
    """The user's input (recipe, flag, data, model folder) cannot be used.

    Collect all problems before raising: `InputError("my.jsonl is unusable", ["row 3: ...", "row 9: ..."])`.

    Args:
        message: what is wrong, where, and what to do.
        problems: one line per problem. `.problems` holds all of them, `str()` shows the first 20.
        count: number of problems, if `problems` holds only the first ones.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Iterable[str] = (), count: int | None = None) -> None:
        self.message = message
        self.problems = tuple(problems)
        self.count = len(self.problems) if count is None else count
        # Pickling restores an exception from the arguments of its base class; errors are pickled between processes.
        super().__init__(message, self.problems, self.count)

    @property
    def lines(self) -> list[str]:
        """The message and its indented problems, to be used as problems of an error that collects several errors."""
        return [self.message, *(f"  {problem}" for problem in self.problems)]

    def __str__(self) -> str:
        lines = [self.message, *map(_bullet, self.problems[:SHOWN_PROBLEMS])]
        hidden = self.count - SHOWN_PROBLEMS
        if hidden > 0:
            lines.append(f"  ... and {hidden} more")
        return "\n".join(lines)


def _bullet(problem: str) -> str:
    """Format a problem as a list item; its own indentation becomes that of the bullet."""
    text = problem.lstrip(" ")
    return f"  {' ' * (len(problem) - len(text))}- {text}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its noun, optionally followed by a verb: `1 row has`, `2 rows have`."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


class Problems:
    """Collects problems of rows in bounded memory: the first `KEPT_PROBLEMS` are kept, the others are counted."""

    def __init__(self) -> None:
        self.first: list[str] = []
        self.count = 0

    def add(self, problem: str) -> None:
        self.count += 1
        if self.count <= KEPT_PROBLEMS:
            self.first.append(problem)

    @property
    def lines(self) -> list[str]:
        """The `problems` of an `InputError`: one line per kept problem, and the number of the others."""
        more = self.count - len(self.first)
        return [*self.first, *([counted(more, "more problem")] if more else [])]


class MachineError(DartuneError, RuntimeError):
    """The input is valid, but this machine cannot continue: disk full, out of memory, folder locked by a process."""

    exit_code = 3


def machine_error(error: BaseException) -> MachineError | None:
    """Translate a disk or out-of-memory error into a `MachineError`; return None for any other error.

    Libraries wrap both in their own exception types, so type names and texts are compared as well.
    """
    if isinstance(error, MachineError):
        return error
    text = f"{type(error).__name__}: {error}"
    for code, message in DISK.items():
        if getattr(error, "errno", None) == code or os.strerror(code) in text:
            return MachineError(message.format(error))
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(name in text for name in OUT_OF_MEMORY)
    ):
        return MachineError(
            f"out of memory ({str(error).partition(chr(10))[0] or type(error).__name__}); lower "
            "execution.microbatch_tokens, set execution.gradient_checkpointing: true or lora_rank: 16, then repeat the "
            "command: it continues"
        )
    return None
