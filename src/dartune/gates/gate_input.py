"""The inputs of a gate: one rewrite with its row, and the thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dartune.answers.task_families import TASKS, Task

ANSWER_LOGPROB = math.log(0.5)
"""Default threshold of the gate `follows`: given the reasoning, the target prefers the answer to all others together.
A lower value is used where the target's own verified samples do not reach it (`thresholds.answer_threshold`)."""


@dataclass(frozen=True, slots=True)
class GateInput:
    """One rewrite and the row it belongs to.

    Args:
        question: the row's question.
        solution: the source, which is the demonstration's own solution.
        rewrite: the text to check.
        answer: the gold answer; None if it has to be read from `solution`.
        finish: "stop", or "length" if sampling was cut at the token limit.
        token_ids: the sampled completion with its end token.
        expected_tokens: length in tokens that the rewrite's length is compared with; None disables the comparison.
        answer_logprob: the target's summed log-probability (nats) of the answer tokens, given the question and the
            rewrite's own reasoning but not the demonstration; None if it was not measured.
        family: name of the task family, a key of `TASKS`.
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
    """Thresholds of the gates that measure something.

    The defaults apply without a run's probe, for example in `dartune check-reward`. The probe takes several thresholds
    from percentiles of the data and of the target's own samples.

    Args:
        quantity_coverage: share of the source's quantities (0..1) that the rewrite must work out.
        entity_coverage: share of the required names (0..1) that the rewrite must use.
        answer_logprob: lowest log-probability (nats) of the answer after the reasoning; None disables `follows`.
        length_low: lower bound of the rewrite's tokens divided by `expected_tokens`.
        length_high: upper bound of the same ratio.
        max_repeats: repetitions of an n-gram allowed on top of the source's own.
        question_copied: share of the question (0..1) that may be repeated word for word.
        filler: share of the reasoning (0..1) that may say nothing about the row.
        leak_phrases: phrases to reject in addition to the built-in `leaks.LEAKS`.
        names: all names in the questions of the data set (`text.features.known_names`).
        instruction: the fixed words of the mapper's prompt, whose long spans must not be copied.
    """

    quantity_coverage: float = 0.95
    entity_coverage: float = 1.0
    answer_logprob: float | None = None
    # The default band is wide because honest styles differ in length.
    length_low: float = 0.25
    length_high: float = 4.0
    max_repeats: int = 5
    question_copied: float = 0.5
    filler: float = 0.3
    leak_phrases: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    instruction: str = ""
