"""One base for everything dartune raises on purpose; the class decides the exit code of the command line."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN_PROBLEMS = 20


class DartuneError(Exception):
    """Base of all expected errors: shown as a message, without a traceback."""

    exit_code = 1


class InputError(DartuneError, ValueError):
    """Something in the user's input (recipe, flag, data, model folder) must change.

    Collect every problem before raising: `InputError("my.jsonl cannot be used", ["row 3: ...", "row 9: ..."])`.

    Args:
        message: what is wrong, where, and what to do.
        problems: one line per problem; all are kept in `.problems`, `str()` shows the first 20.
    """

    exit_code = 2

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        self.message = message
        self.problems = tuple(problems)
        # Both arguments go to the base class so that the error survives pickling between processes.
        super().__init__(message, self.problems)

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {problem}" for problem in self.problems[:SHOWN_PROBLEMS])]
        hidden = len(self.problems) - SHOWN_PROBLEMS
        if hidden > 0:
            lines.append(f"  ... and {hidden} more")
        return "\n".join(lines)


class MachineError(DartuneError, RuntimeError):
    """The input is fine but this machine cannot carry on: disk full, memory, folder in use by another process."""

    exit_code = 3
