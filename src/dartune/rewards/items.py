"""What a gate reads: one rewrite with its row, and where the lines are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dartune.rewards.tasks import TASKS, Task

ANSWER_LOGPROB = math.log(0.5)
"""The answer must be at least this likely after the reasoning, unless the target's own verified samples are laxer."""


@dataclass(frozen=True, slots=True)
class GateInput:
    """One rewrite with the row it belongs to.

    `token_ids` are the sampled response with its end token; `expected_tokens` is the length, in the
    same tokens, that the row's rewrites are compared with (None: not compared). `answer_logprob` is the
    target's summed log-probability in nats of the answer's tokens after the rewrite's own reasoning,
    without the demonstration in sight (None: not measured). `family` names the task family of its answer.
    """

    question: str
    solution: str
    rewrite: str
    answer: str | None = None
    finish: str = "stop"
    token_ids: Sequence[int] = ()
    expected_tokens: int | None = None
    answer_logprob: float | None = None
    family: str = "math"

    @property
    def task(self) -> Task:
        return TASKS[self.family]


@dataclass(frozen=True, slots=True)
class GateThresholds:
    """Where the graded gates draw their lines.

    Args:
        quantity_coverage: share of the source's quantities that the rewrite must state, in order (0..1).
        entity_coverage: share of the required names that the rewrite must use (0..1).
        answer_logprob: least log-probability of the answer after the reasoning, in nats (None: no line).
        length_low, length_high: band for the rewrite's tokens over `expected_tokens`.
        max_repeats: repetitions of an n-gram allowed on top of the source's own.
        question_copied: share of the question that may be repeated word for word (0..1).
        filler: share of the reasoning that may say nothing of the row (0..1).
        leak_phrases: added to the built-in `leaks.LEAKS`.
        names: everybody's names in the whole data set (`text.known_names`).
        instruction: the fixed words of the mapper's prompt, whose long spans must not be copied.
    """

    quantity_coverage: float = 0.95
    entity_coverage: float = 1.0
    answer_logprob: float | None = None
    length_low: float = 0.25
    length_high: float = 4.0
    max_repeats: int = 5
    question_copied: float = 0.5
    filler: float = 0.3
    leak_phrases: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    instruction: str = ""
