"""Two forms of the reward's gain, to see what its cap is worth."""

from __future__ import annotations

from dartune.rewards.alignment import Reference


def uncapped(passed: bool, score: float, reference: Reference) -> float:
    """The gain over the source, however large."""
    return max(0.0, score - reference.source_alignment) if passed else 0.0


def half_capped(passed: bool, score: float, reference: Reference) -> float:
    """The gain over the source up to half of the cap."""
    won = uncapped(passed, score, reference)
    return won if reference.cap is None else min(won, reference.cap / 2)
