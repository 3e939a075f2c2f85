"""Confidence intervals for accuracies and paired differences. The unit is the question; seeds are averaged.

Every estimate is a weighted mean of the means of *strata*. A stratum is a list with one value per question: the
question's outcome, or its difference in outcome between two arms, averaged over the seeds that asked it. The reasons
for this choice, and what the intervals do not cover, are in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

Z95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution
RESAMPLES = 4000
BATCH_VALUES = 4_000_000  # values resampled at once: bounds the memory on large suites, does not change the result

Outcomes = Mapping[int, Mapping[str, float]]  # seed -> question id -> outcome in [0, 1]
Strata = Sequence[tuple[float, Any]]  # (weight, one value per question); weights sum to 1


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95% interval, as a fraction (0.25 is 25 percentage points)."""

    estimate: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` or `lower` if the interval excludes zero, `unclear` otherwise."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "unclear"


def strata_of(outcomes: Outcomes) -> Strata:
    """Return the strata of a suite: a single one if all seeds ask the same questions, otherwise one per seed.

    A question that is asked under five seeds is not five independent questions. Its outcomes are correlated, so they
    are averaged first and resampled together.
    """
    seeds = sorted(outcomes)
    asked = [outcomes[seed].keys() for seed in seeds]
    if all(keys == asked[0] for keys in asked):
        return [(1.0, [_mean([outcomes[seed][key] for seed in seeds]) for key in sorted(asked[0])])]
    return [(1 / len(seeds), [outcomes[seed][key] for key in sorted(outcomes[seed])]) for seed in seeds]


def pool(suites: Sequence[Strata]) -> Strata:
    """Return the strata of a group of suites; every suite has the same weight, regardless of its size."""
    return [(weight / len(suites), values) for strata in suites for weight, values in strata]


def subtract(ours: Outcomes, theirs: Outcomes) -> dict[int, dict[str, float]]:
    """Return the differences ours - theirs per question; both arms must have answered the same questions."""
    return {
        seed: {key: outcome - theirs[seed][key] for key, outcome in answers.items()} for seed, answers in ours.items()
    }


def estimate(strata: Strata) -> float:
    """Weighted mean of the means of the strata."""
    return sum(weight * _mean(values) for weight, values in strata)


def accuracy_interval(strata: Strata) -> Interval:
    """Return the interval of an accuracy; its width is positive at 0% and at 100%, too.

    Wilson's score interval per stratum, where n is the number of distinct questions. Several strata are combined by
    MOVER (Zou and Donner 2008, eq. 2): the distances from the estimate to the limits add in quadrature.
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
    """Return the percentile bootstrap interval of a mean paired difference; questions are resampled within strata.

    Two pseudo-questions are added to each stratum, one won by each arm, as in the adjusted interval for matched pairs
    of Bonett and Price (2012). Without them the bootstrap interval is too narrow for few questions, and has zero width
    if the arms agree on every question. The pseudo-questions shrink the mean of every stratum towards zero. With many
    strata the interval becomes narrower than this bias, so it is shifted back to the unadjusted mean.

    Args:
        strata: differences in [-1, 1].
        resamples: number of bootstrap resamples.
        seed: seed of the resampling; the same strata and seed give the same interval.
    """
    import numpy as np
    from scipy.stats import bootstrap

    weights = [weight for weight, _ in strata]
    samples = [np.array([*values, 1.0, -1.0]) for _, values in strata]

    def mean_of_means(*resampled: np.ndarray, axis: int) -> Any:
        # Each array is (resamples, questions of the stratum); `axis` is that of the questions.
        return sum(weight * values.mean(axis=axis) for weight, values in zip(weights, resampled, strict=True))

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
    shift = centre - estimate(list(zip(weights, samples, strict=True)))
    return Interval(centre, max(-1.0, min(float(low) + shift, centre)), min(1.0, max(float(high) + shift, centre)))


def _wilson(share: float, n: int) -> tuple[float, float]:
    centre = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half_width = Z95 / (1 + Z95**2 / n) * sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    # At 0% and 100% one limit equals the share up to rounding; `min` and `max` make it exact.
    return min(share, max(0.0, centre - half_width)), max(share, min(1.0, centre + half_width))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
