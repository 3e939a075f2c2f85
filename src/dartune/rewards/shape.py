"""Reward forms: the reward as a function of alignment and of passing the gates.

`gain_over_fallback` is the default. The other forms are baselines that are known to be gamed.
"""

from __future__ import annotations

import math
from typing import Protocol

from dartune.rewards.alignment import Reference

# The reward of a failed rewrite under `fixed_failure`, in the score's unit.
FAILURE = -4.0


class Form(Protocol):
    """Interface of a form. A user-defined form is named in the config by its dotted path, `module:function`."""

    def __call__(self, passed: bool, score: float, reference: Reference) -> float:
        """Return the reward of one rewrite before penalties.

        Args:
            passed: whether all gates that count were passed.
            score: A(y), the rewrite's alignment.
            reference: the values of the demonstration, among them A(s) and the cap.
        """
        ...


# Smaller differences are rounding errors of different batches. A verbatim copy of the source must gain nothing.
SMALLEST_GAIN = 1e-4


def gain(score: float, reference: Reference) -> float:
    """Return `clip(A(y) - A(s), 0, cap)`; differences within rounding are 0."""
    difference = score - reference.source_alignment
    if difference < SMALLEST_GAIN:
        return 0.0
    return difference if reference.cap is None else min(difference, reference.cap)


def gain_over_fallback(passed: bool, score: float, reference: Reference) -> float:
    """Return the gain if the rewrite passed, otherwise 0. This is the default.

    A failed rewrite is replaced by the original in the data set, which gains nothing, so failing has no price of its
    own.
    """
    return gain(score, reference) if passed else 0.0


def correct_bonus(passed: bool, score: float, reference: Reference) -> float:
    """Return a constant plus a bounded bonus for alignment if the rewrite passed, otherwise 0.

    Known weakness: the constant rewards any text that passes.
    """
    return 1.0 + math.exp(min(0.0, score)) if passed else 0.0


def fixed_failure(passed: bool, score: float, reference: Reference) -> float:
    """Return the alignment if the rewrite passed, otherwise `FAILURE`.

    Known weakness: the policy collapses into the style that passes the gates most safely.
    """
    return score if passed else FAILURE


def passes(passed: bool, score: float, reference: Reference) -> float:
    """Return 1 if the rewrite passed, otherwise 0. This is the control without alignment."""
    return float(passed)


FORMS: dict[str, Form] = {form.__name__: form for form in (gain_over_fallback, correct_bonus, fixed_failure, passes)}
