"""A demonstration: one row of the fixed external data, after it was read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One question with a worked solution by someone else.

    Args:
        id: unique within a data set; from the data, or a hash of the row's text.
        question: the user's text, exactly as in the data.
        solution: the demonstrated response, exactly as in the data.
        answer: the final answer as text where the data states one; None: it must be read from the solution.
        task: the family its answer is of: `rewards.tasks.TASKS`.
        meta: whatever else must travel with the row, such as a `system` message.
        place: file and line that it was read from, and its id there; empty for rows that a program made.
    """

    id: str
    question: str
    solution: str
    answer: str | None = None
    task: str = "math"
    meta: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
