"""Confidence intervals: coverage, positive width for few questions, pairing, and averaging over seeds."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.report import stats


def single_stratum(values):
    return [(1.0, list(values))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suites", "n", "wins", "losses"),
    [
        (1, 15, 0.3, 0.1),
        (1, 60, 0.3, 0.1),
        (1, 60, 0.8, 0.02),
        (1, 60, 0.05, 0.05),
        (1, 128, 0.4, 0.2),
        (12, 128, 0.89, 0.02),
        (24, 64, 0.6, 0.05),
    ],
)
def test_the_interval_has_nominal_coverage_of_a_known_difference(suites, n, wins, losses):
    rng = random.Random(n)
    covered, trials = 0, 300
    for _ in range(trials):
        samples = [rng.choices([1.0, -1.0, 0.0], [wins, losses, 1 - wins - losses], k=n) for _ in range(suites)]
        interval = stats.difference_interval(stats.pool([single_stratum(values) for values in samples]), resamples=300)
        covered += interval.low <= wins - losses <= interval.high
    # 0.95 of 300 has a standard error of 0.013; small samples may be conservative, never much too narrow.
    assert covered / trials > 0.91


def test_the_interval_is_about_as_wide_as_the_normal_one():
    rng = random.Random(0)
    differences = rng.choices([1.0, -1.0, 0.0], [0.3, 0.1, 0.6], k=400)
    interval = stats.difference_interval(single_stratum(differences))
    normal = 2 * stats.Z95 * (0.4 - 0.04) ** 0.5 / 400**0.5
    assert 0.85 * normal < interval.high - interval.low < 1.15 * normal


def test_questions_shared_by_seeds_count_once():
    """Outcomes that are the same under every seed must not narrow the interval."""
    rng = random.Random(1)
    covered, trials, n = 0, 200, 50
    for _ in range(trials):
        outcome = {str(q): rng.choices([1.0, -1.0, 0.0], [0.3, 0.1, 0.6])[0] for q in range(n)}
        strata = stats.strata_of(dict.fromkeys(range(5), outcome))
        interval = stats.difference_interval(strata, resamples=300)
        covered += interval.low <= 0.2 <= interval.high
    assert covered / trials > 0.9


def test_seeds_with_other_questions_are_strata_of_equal_weight():
    outcomes = {0: {"a": 1.0, "b": 1.0}, 1: {"c": 0.0, "d": 0.0, "e": 0.0, "f": 0.0}}
    strata = stats.strata_of(outcomes)
    assert strata == [(0.5, [1.0, 1.0]), (0.5, [0.0, 0.0, 0.0, 0.0])]
    assert stats.estimate(strata) == 0.5


def test_suites_of_a_group_have_equal_weight():
    pooled = stats.pool([single_stratum([1.0] * 10), single_stratum([0.0] * 1000)])
    assert stats.estimate(pooled) == 0.5
    assert sum(weight for weight, _ in pooled) == pytest.approx(1)


def test_pairing_narrows_the_interval():
    """For two arms that agree on nearly all questions, the difference is more precise than either accuracy."""
    ours = {0: {str(q): float(q % 2 == 0) for q in range(100)}}
    theirs = {0: ours[0] | {"0": 0.0, "2": 0.0, "4": 0.0}}
    paired = stats.difference_interval(stats.strata_of(stats.subtract(ours, theirs)))
    unpaired = stats.accuracy_interval(stats.strata_of(ours))
    assert paired.estimate == pytest.approx(0.03)
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("n", [1, 5, 20, 200])
def test_arms_that_agree_everywhere_have_an_interval_that_shrinks_with_n(n):
    interval = stats.difference_interval(single_stratum([0.0] * n))
    assert interval.estimate == 0
    assert interval.verdict == "unclear"
    assert 0.5 / (n + 2) < interval.high < 4 / (n + 2)


def test_one_question_is_unclear_and_many_are_clear():
    assert stats.difference_interval(single_stratum([1.0])).verdict == "unclear"
    assert stats.difference_interval(single_stratum([1.0] * 40)).verdict == "higher"
    assert stats.difference_interval(single_stratum([-1.0] * 40)).verdict == "lower"


def test_wilson_limits_as_published():
    """Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    some = stats.accuracy_interval(single_stratum([1.0] * 81 + [0.0] * 182))
    assert (some.low, some.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    none = stats.accuracy_interval(single_stratum([0.0] * 20))
    assert (none.low, none.high) == pytest.approx((0.0, 0.1611), abs=1e-4)


@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1 / 3, 1.0]), min_size=1, max_size=12),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_limits_enclose_the_estimate_and_mirror_when_the_arms_are_swapped(suites):
    strata = stats.pool([single_stratum(values) for values in suites])
    interval = stats.difference_interval(strata, resamples=200)
    assert -1 <= interval.low <= interval.estimate <= interval.high <= 1
    repeated = stats.difference_interval(strata, resamples=200)
    assert repeated == interval
    swapped = stats.difference_interval([(w, [-v for v in values]) for w, values in strata], resamples=2000)
    assert swapped.estimate == pytest.approx(-interval.estimate)
    assert swapped.verdict != interval.verdict or interval.verdict == "unclear"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_accuracy_limits_stay_within_zero_and_one(values):
    interval = stats.accuracy_interval(single_stratum(values))
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1
    assert interval.high - interval.low > 0.05
