"""Alignment scores: how natural a solution is to the target, given the question alone.

A score reads the target's statistics of the completion tokens (with the end token, in the chat template used for SFT)
and is higher for more natural text. The default is `content_logprob`, the mean log-probability of the tokens in
statements that say something new. The other scores are baselines; `docs/alignment-scores.md` compares them on real
models.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

import numpy as np

from dartune.engines.base import TokenStats

# Fewer own samples than this do not show a style. A row with fewer is compared with the samples of all rows, and a data
# set with fewer has no cap.
FEWEST_SAMPLES = 8
# Ranks above this count as this rank; otherwise a few rare tokens would dominate the mean rank.
LARGEST_RANK = 100
# Lower bound of the mean surprisal (nats per token) in a denominator, for text that is certain.
SMALLEST_SURPRISAL = 0.01


@dataclass(frozen=True, slots=True)
class Reference:
    """The values that the rewrites of one demonstration are compared with.

    Args:
        length: L(x), the source's length in tokens.
        source_alignment: A(s), the source's alignment in the score's unit (nats per token by default).
        cap: the largest gain that is rewarded; None if there is no cap.
        expected_tokens: the length that the gate `length` compares with: the source's, or the median of the target's
            own samples if that is longer.
        own: mean log-probabilities (nats per token, ascending) of the target's own finished samples: of this row, or
            of all rows if this row has too few (`style_means`).
    """

    length: int
    source_alignment: float
    cap: float | None
    expected_tokens: int
    own: Sequence[float] = ()

    @property
    def best_gain(self) -> float:
        """The largest possible gain: the cap, or without a cap the gain at certainty of every token."""
        return max(0.0, -self.source_alignment if self.cap is None else self.cap)


class AlignmentScore(Protocol):
    """Interface of a score. A user-defined score is named in the config by its dotted path, `module:function`.

    A function with the attribute `needs_distribution = True` also gets entropies and ranks, which `Engine.token_stats`
    computes from the whole distribution.
    """

    def __call__(self, tokens: TokenStats, reference: Reference) -> float:
        """Return the score of one completion; higher is more natural."""
        ...


def content_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Return the mean log-probability (nats) of the tokens that count (`rewards/content_tokens.py`).

    This is the default score. It is a mean, so omitting words does not raise it. It covers only new statements, so
    padding and repetition do not raise it either. A text without reasoning, in which no token counts, scores at most
    as high as the source.
    """
    if not tokens.logprobs:
        return 0.0
    # A task family without a mask: all tokens count.
    if not tokens.content:
        return mean(tokens.logprobs)
    # Without the minimum, a bare answer that the target finds likely could score higher than any reasoning.
    counted = [p for p, counts in zip(tokens.logprobs, tokens.content, strict=True) if counts]
    return mean(counted) if counted else min(mean(tokens.logprobs), reference.source_alignment)


def sum_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Return the summed log-probability divided by L(x), in nats per source token.

    It rewards omitting words if the target is unsure of many words, as real models are. It is suitable only where the
    target is nearly certain, as in the lab.
    """
    return sum(tokens.logprobs) / max(1, reference.length)


def mean_logprob(tokens: TokenStats, reference: Reference) -> float:
    """Return the mean log-probability (nats) of all tokens. It rewards long predictable text and is a baseline."""
    return mean(tokens.logprobs) if tokens.logprobs else 0.0


def capped_percentile(tokens: TokenStats, reference: Reference) -> float:
    """Return the share (0..0.5) of the target's own finished samples that are at most as likely per token.

    The share is capped at the samples' median. It is constant below the least likely sample, and 0 without samples.
    """
    if not reference.own:
        return 0.0
    return min(0.5, bisect_right(reference.own, mean_logprob(tokens, reference)) / len(reference.own))


def centred(tokens: TokenStats, reference: Reference) -> float:
    """Return the mean over the tokens of log p + entropy (nats), at most 0.

    0 means that the text is as surprising as the target expects; less surprise than expected is not rewarded.
    """
    if not tokens.logprobs:
        return 0.0
    return min(0.0, mean(p + h for p, h in zip(tokens.logprobs, tokens.entropies, strict=True)))


def rank_surprisal(tokens: TokenStats, reference: Reference) -> float:
    """Return minus the ratio of mean rank to mean surprisal (RSR, arXiv 2601.14249; ranks above 100 count as 100).

    It prefers text that is informative to the target but among its first choices. Text that is nearly certain scores
    low too.
    """
    if not tokens.logprobs:
        return -float(LARGEST_RANK) / SMALLEST_SURPRISAL
    # The lower bound keeps the ratio finite for text that the target is certain of.
    surprisal = max(SMALLEST_SURPRISAL, -mean(tokens.logprobs))
    return -mean(min(rank, LARGEST_RANK) for rank in tokens.ranks) / surprisal


def no_alignment(tokens: TokenStats, reference: Reference) -> float:
    """Return 0 for every completion. This is the control that shows the effect of the gates alone."""
    return 0.0


# These scores need entropies or ranks; log-probabilities alone are cheaper to compute.
centred.needs_distribution = True
rank_surprisal.needs_distribution = True
SCORES: dict[str, AlignmentScore] = {
    score.__name__: score
    for score in (content_logprob, sum_logprob, mean_logprob, capped_percentile, centred, rank_surprisal, no_alignment)
}


def natural_alignment(own: Sequence[float]) -> float:
    """Return the alignment that is as natural as the reward asks for: the median of the target's own finished samples.

    `gain_cap` is the reward's cap; this is the level it reaches up to, of a row and of the data set.
    """
    return float(np.median(np.asarray(own)))


def typical_alignment(own: Sequence[float], minimum: int = FEWEST_SAMPLES) -> float | None:
    """Return the data set's `natural_alignment`, for rows without own samples; None if there are too few samples."""
    return natural_alignment(own) if len(own) >= minimum else None


def style_means(own: Sequence[float], pooled: Sequence[float]) -> Sequence[float]:
    """Return the mean log-probabilities that a row is compared with: its own samples', or if too few all rows'."""
    return own if len(own) >= FEWEST_SAMPLES else pooled


def gain_cap(source: float, own: Sequence[float], typical: float | None) -> float | None:
    """Return the cap: the largest gain that a row rewards, the `natural_alignment` of its own samples minus A(s).

    This is the only place of the cap; `experiments/style_scores.py` repeats it for its tables. Without a cap, text that
    is more predictable than anything the target writes would be rewarded most.

    Args:
        source: A(s).
        own: alignments of the row's finished own samples.
        typical: the data set's `typical_alignment`, for a row without own samples; None means no cap.
    """
    natural = natural_alignment(own) if own else typical
    return None if natural is None else max(0.0, natural - source)
