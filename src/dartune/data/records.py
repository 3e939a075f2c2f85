"""The `Demonstration` record: one row of the input data set after reading and checking."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question with a worked solution.

    Args:
        id: unique within a data set. Read from the data, or a hash of the row's text.
        question: the user's text, exactly as in the data.
        solution: the demonstrated response, exactly as in the data.
        answer: the final answer as text, if the data has an answer column. None: the answer is read from the solution.
        task: the task family of the answer, a key of `answers.task_families.TASKS`.
        meta: further values of the row that later stages need, such as the `system` message.
        place: file, line and id of the row, for messages. Empty for generated rows. Ignored in comparisons, so that
            the same row read from two files is equal.
    """

    id: str
    question: str
    solution: str
    answer: str | None = None
    task: str = "math"
    meta: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
