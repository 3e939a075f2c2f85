"""Thresholds of the gates: those that the config sets, and those that are measured on data and target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dartune.config.schema import RewardConfig
from dartune.gates.gate_input import ANSWER_LOGPROB, GateThresholds

# A low percentile of fewer answers than this would be the value of a single outlier.
FEWEST_ANSWERS = 20


def gate_thresholds(
    config: RewardConfig,
    instruction: str,
    names: Iterable[str] = (),
    own_answers: Sequence[float] = (),
    source_answers: Sequence[float] = (),
) -> GateThresholds:
    """Return the thresholds of a config; those that need percentiles of a data set have their defaults.

    Args:
        instruction: the mapper's prompt. Its placeholders are removed, because only its fixed words must not be copied.
        names: all names of the data set (`text.features.known_names`).
        own_answers: arguments of `answer_threshold`, which applies unless the config sets `answer_logprob`.
        source_answers: see `own_answers`.
    """
    answer_logprob = config.answer_logprob
    return GateThresholds(
        quantity_coverage=config.quantity_coverage,
        answer_logprob=answer_threshold(own_answers, source_answers) if answer_logprob is None else answer_logprob,
        leak_phrases=config.leak_phrases,
        names=frozenset(names),
        instruction=instruction.replace("{question}", " ").replace("{solution}", " "),
    )


def answer_threshold(own: Sequence[float], sources: Sequence[float]) -> float:
    """Return the threshold of the gate `follows`: the lowest log-probability (nats) of an answer after its reasoning.

    It is ln 0.5, or the 1st percentile of the target's own verified samples if that is lower. A weak target has few of
    them, and is unsure of the answer even after an expert's reasoning. Then it is the 5th percentile of the
    demonstrations that calculate, if that is lower.

    Args:
        own: log-probabilities of the answers of the target's own verified samples.
        sources: the same for the demonstrations that calculate.
    """
    if len(own) >= FEWEST_ANSWERS:
        return lower_threshold(own, 1.0, ANSWER_LOGPROB)
    return lower_threshold(sources, 5.0, ANSWER_LOGPROB)


def lower_threshold(values: Sequence[float], percentile: float, default: float) -> float:
    """Return a percentile (0..100) of `values`, at most `default`; `default` if there are too few values."""
    if len(values) < FEWEST_ANSWERS:
        return default
    return min(default, float(np.percentile(np.asarray(values), percentile)))
