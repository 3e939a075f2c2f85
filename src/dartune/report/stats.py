"""Intervals for accuracies and for paired differences: questions are the unit, seeds are averaged.

Every estimate here is a weighted mean of the means of *strata*. A stratum is a list with one value per
question: that question's outcome, or difference in outcome, averaged over the seeds that asked it.
Why this way, and what the intervals leave out: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

Z95 = 1.959963984540054
RESAMPLES = 4000
BATCH_VALUES = 4_000_000  # values drawn at once: bounds memory on large suites, changes no result

Outcomes = Mapping[int, Mapping[str, float]]  # seed -> question id -> outcome in [0, 1]
Strata = list[tuple[float, list[float]]]  # (weight, one value per question); weights sum to 1


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95% interval, as a share (0.25 is 25 points)."""

    estimate: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` or `lower` when the interval excludes zero, `unclear` otherwise."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "unclear"


def strata_of(outcomes: Outcomes) -> Strata:
    """Strata of one suite: a single one when all seeds ask the same questions, else one per seed.

    A question asked under five seeds is not five independent questions: its outcomes rise and fall
    together, so they are averaged first and resampled as one.
    """
    seeds = sorted(outcomes)
    asked = [outcomes[seed].keys() for seed in seeds]
    if all(keys == asked[0] for keys in asked):
        return [(1.0, [_mean([outcomes[seed][key] for seed in seeds]) for key in sorted(asked[0])])]
    return [(1 / len(seeds), [outcomes[seed][key] for key in sorted(outcomes[seed])]) for seed in seeds]


def pool(suites: Sequence[Strata]) -> Strata:
    """Strata of a group of suites; every suite weighs the same, whatever its size."""
    return [(weight / len(suites), values) for strata in suites for weight, values in strata]


def subtract(ours: Outcomes, theirs: Outcomes) -> dict[int, dict[str, float]]:
    """Outcome differences, question by question; both arms must have answered the same questions."""
    return {
        seed: {key: outcome - theirs[seed][key] for key, outcome in answers.items()} for seed, answers in ours.items()
    }


def estimate(strata: Strata) -> float:
    return sum(weight * _mean(values) for weight, values in strata)


def accuracy_interval(strata: Strata) -> Interval:
    """Interval of an accuracy, with positive width at 0% and at 100%.

    Wilson's score interval per stratum, n = distinct questions; several strata are combined by MOVER
    (Zou and Donner 2008, eq. 2): the distances from estimate to limit add in quadrature.
    """
    below = above = 0.0
    for weight, values in strata:
        share = _mean(values)
        low, high = _wilson(share, len(values))
        below += (weight * (share - low)) ** 2
        above += (weight * (high - share)) ** 2
    centre = estimate(strata)
    return Interval(centre, max(0.0, centre - sqrt(below)), min(1.0, centre + sqrt(above)))


def difference_interval(strata: Strata, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean paired difference; questions are resampled within strata.

    Each stratum gets two imaginary questions first, one won by either arm, as in the adjusted interval for
    matched pairs of Bonett and Price (2012): a plain bootstrap of few questions is too narrow, and has no
    width at all when the arms agree on every question. They pull the mean towards zero, in every stratum alike,
    so that with many strata the interval would miss the truth; it is therefore moved back onto the plain mean.

    Args:
        strata: differences in [-1, 1].
        seed: of the resampling; the same strata and seed give the same interval.
    """
    import numpy as np
    from scipy.stats import bootstrap

    weights = [weight for weight, _ in strata]
    samples = [np.array([*values, 1.0, -1.0]) for _, values in strata]

    def mean_of_means(*resampled: np.ndarray, axis: int) -> np.ndarray:
        return sum(weight * drawn.mean(axis=axis) for weight, drawn in zip(weights, resampled, strict=True))

    low, high = bootstrap(
        samples,
        mean_of_means,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // max(len(sample) for sample in samples)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    centre = estimate(strata)
    pulled = centre - estimate(list(zip(weights, samples, strict=True)))
    return Interval(centre, max(-1.0, min(float(low) + pulled, centre)), min(1.0, max(float(high) + pulled, centre)))


def _wilson(share: float, n: int) -> tuple[float, float]:
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    # At 0% and 100% the limit equals the share, up to rounding.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
