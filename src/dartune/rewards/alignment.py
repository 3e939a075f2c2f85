"""Alignment: how natural a solution is to the target, given the question alone.

Every score reads the target's view of the response tokens (with the end token, in the exact SFT template) and is
higher for what is more natural. The default is `content_logprob`: the mean log-probability of the tokens in statements
that say something new. Other scores are kept as baselines; docs/alignment-scores.md compares them on real models.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Protocol

import numpy as np

from dartune.models.engine import TokenStats
from dartune.rewards.items import ANSWER_LOGPROB

FEWEST_SAMPLES = 8
"""Fewer own samples than this show no style: a row with fewer is compared with those of all rows, and a data set with
fewer has no cap."""
FEWEST_ANSWERS = 20
"""Fewer answers than this give no percentile."""
LARGEST_RANK = 100
SMALLEST_SURPRISAL = 0.01
"""Nats a token; below, a text is taken to be certain."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a demonstration's rewrites are measured against.

    `length` is L(x) in tokens; `source_alignment` is A(s) in the score's unit (nats per token by default);
    `cap` the largest gain that is paid for (None: no cap); `expected_tokens` the length the length gate
    compares with: the longer of the source and the target's own median sample; `own` the mean log-probabilities
    (nats a token, ascending) of the target's own finished samples, of this row or, where it has none, of all rows.
    """

    length: int
    source_alignment: float
    cap: float | None
    expected_tokens: int
    own: Sequence[float] = ()

    @property
    def best_gain(self) -> float:
        """The most a rewrite can gain: the cap, or certainty of every token."""
        return max(0.0, -self.source_alignment if self.cap is None else self.cap)


class AlignmentScore(Protocol):
    """A score of one's own: named in the config by its dotted path, `module:function`.

    A function with an attribute `needs_distribution = True` gets entropies and ranks as well, for an extra forward.
    """

    def __call__(self, tokens: TokenStats, reference: Reference) -> float:
        """The score of one response; higher is more natural."""


def content_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Mean log-probability in nats of the tokens that count (`rewards/content.py`): the default.

    A mean, so leaving words out does not pay; over statements that are new, so padding and repetition do not. A text
    without reasoning, in which no token counts, is worth no more than the source.
    """
    if not tokens.logprobs:
        return 0.0
    if not tokens.content:
        return mean(tokens.logprobs)
    counted = [p for p, counts in zip(tokens.logprobs, tokens.content, strict=True) if counts]
    return mean(counted) if counted else min(mean(tokens.logprobs), reference.source_alignment)


def sum_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Summed log-probability over L(x), in nats per token: pays for leaving words out where a target is unsure of many
    words, as all real models are; right only where it is certain, as in the lab."""
    return sum(tokens.logprobs) / max(1, reference.length)


def mean_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Mean log-probability in nats: pays for long predictable text, kept to be compared with."""
    return mean(tokens.logprobs) if tokens.logprobs else 0.0


def capped_percentile(tokens: TokenStats, reference: Reference) -> float:
    """Share (0..0.5) of the target's own finished samples that are no likelier a token, up to their median.

    Flat below the least likely own sample and above the median one; 0 where there are none.
    """
    if not reference.own:
        return 0.0
    return min(0.5, bisect_right(reference.own, mean_logprob(tokens, reference)) / len(reference.own))


def centred(tokens: TokenStats, reference: Reference) -> float:
    """Mean over the tokens of log p + entropy, in nats, at most 0: as surprising as the target expects to be."""
    if not tokens.logprobs:
        return 0.0
    return min(0.0, mean(p + h for p, h in zip(tokens.logprobs, tokens.entropies, strict=True)))


def rank_surprisal(tokens: TokenStats, reference: Reference) -> float:
    """Minus the ratio of mean rank to mean surprisal (RSR, arXiv 2601.14249; ranks above 100 count as 100).

    Prefers text that is informative to the target and yet among its first choices: text that is merely certain
    scores low as well.
    """
    if not tokens.logprobs:
        return -float(LARGEST_RANK) / SMALLEST_SURPRISAL
    surprisal = max(SMALLEST_SURPRISAL, -mean(tokens.logprobs))
    return -mean(min(rank, LARGEST_RANK) for rank in tokens.ranks) / surprisal


def no_alignment(tokens: TokenStats, reference: Reference) -> float:
    """The same for every response: what the gates alone can do, as a control."""
    return 0.0


centred.needs_distribution = True
rank_surprisal.needs_distribution = True
SCORES: dict[str, AlignmentScore] = {
    score.__name__: score
    for score in (content_logprob, sum_logprob, mean_logprob, capped_percentile, centred, rank_surprisal, no_alignment)
}


def typical_alignment(own: Sequence[float], minimum: int = FEWEST_SAMPLES) -> float | None:
    """Median alignment of a data set's finished own samples; None where there are fewer than `minimum`."""
    return float(np.median(np.asarray(own))) if len(own) >= minimum else None


def style_means(own: Sequence[float], pooled: Sequence[float]) -> Sequence[float]:
    """The mean log-probabilities that a row is compared with: of its own finished samples, or of all rows'."""
    return own if len(own) >= FEWEST_SAMPLES else pooled


def gain_cap(source: float, own: Sequence[float], typical: float | None) -> float | None:
    """The most that is paid in a row: median alignment of the target's own finished samples minus A(s).

    A row without finished samples takes the data set's `typical` one; where there is none, there is no cap.
    """
    best = median(own) if own else typical
    return None if best is None else max(0.0, best - source)


def answer_threshold(own: Sequence[float], sources: Sequence[float]) -> float:
    """The least log-probability (nats) of an answer after its reasoning.

    ln 0.5, or the 1st percentile of the target's own verified samples where that is laxer. A weak target has few of
    them, and is not sure of the answer after an expert's reasoning either: then the 5th percentile of the
    demonstrations that calculate.
    """
    if len(own) >= FEWEST_ANSWERS:
        return lower_threshold(own, 1.0, ANSWER_LOGPROB)
    return lower_threshold(sources, 5.0, ANSWER_LOGPROB)


def lower_threshold(values: Sequence[float], percentile: float, default: float) -> float:
    """`percentile` of `values`, but never stricter than `default`; `default` where there are few values."""
    if len(values) < FEWEST_ANSWERS:
        return default
    return min(default, float(np.percentile(np.asarray(values), percentile)))
