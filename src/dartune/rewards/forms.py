"""What a rewrite is worth, given its alignment and whether it passed: the default, and forms known to be gamed."""

from __future__ import annotations

import math
from typing import Protocol

from dartune.rewards.alignment import Reference

FAILURE = -4.0


class Form(Protocol):
    """A form of one's own: named in the config by its dotted path, `module:function`."""

    def __call__(self, passed: bool, score: float, reference: Reference) -> float:
        """The reward of one rewrite before penalties."""


SMALLEST_GAIN = 1e-4
"""Differences below this are rounding: a verbatim copy, scored in another batch than its source, gains nothing."""


def gain(score: float, reference: Reference) -> float:
    """`clip(A(y) - A(s), 0, cap)`; differences that are rounding are 0."""
    won = score - reference.source_alignment
    if won < SMALLEST_GAIN:
        return 0.0
    return won if reference.cap is None else min(won, reference.cap)


def gain_over_fallback(passed: bool, score: float, reference: Reference) -> float:
    """The default. A failed rewrite is worth what the data set gets instead, the original: nothing gained."""
    return gain(score, reference) if passed else 0.0


def correct_bonus(passed: bool, score: float, reference: Reference) -> float:
    """A constant for passing and a bounded bonus for alignment. The constant pays for any text that passes."""
    return 1.0 + math.exp(min(0.0, score)) if passed else 0.0


def fixed_failure(passed: bool, score: float, reference: Reference) -> float:
    """Alignment, but a fixed price for failing: collapses into whatever passes most safely."""
    return score if passed else FAILURE


def passes(passed: bool, score: float, reference: Reference) -> float:
    """1 for passing the gates, whatever the alignment: a control."""
    return float(passed)


FORMS: dict[str, Form] = {form.__name__: form for form in (gain_over_fallback, correct_bonus, fixed_failure, passes)}
