"""Alignment: how natural a solution is to the target, given the question alone.

`A(y) = log p_S(y | x) / L(x)`: the summed log-probability of the response tokens (with the end
token, in the exact SFT template) over a length that depends on the question only, here the
source's token count. A length of the rewrite's own would pay for long predictable text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

MIN_VERIFIED = 8
"""Fewer verified own samples than this over a whole data set set no threshold."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a demonstration's rewrites are measured against.

    `length` is L(x) in tokens; `source_alignment` is A(s) in nats per token of L(x); `cap` the
    largest gain that is paid for (None: no cap); `expected_tokens` the length the length gate
    compares with: the longer of the source and the target's own median sample.
    """

    length: int
    source_alignment: float
    cap: float | None
    expected_tokens: int

    @property
    def best_gain(self) -> float:
        """The most a rewrite can gain: the cap, or certainty of every token."""
        return max(0.0, -self.source_alignment if self.cap is None else self.cap)


def alignment(logprobs: Sequence[float], length: int) -> float:
    """Summed log-probability in nats over `length` tokens (A(y) of the module's docstring)."""
    return sum(logprobs) / max(1, length)


def gain_caps(
    source: Sequence[float], verified: Sequence[Sequence[float]], minimum: int = MIN_VERIFIED
) -> list[float | None]:
    """Per row the most that is paid: median alignment of its verified own samples minus A(s).

    A row without verified samples takes the data set's median; where the whole data set has fewer
    than `minimum`, there is no cap.
    """
    everything = [value for values in verified for value in values]
    overall = median(everything) if len(everything) >= minimum else None
    caps: list[float | None] = []
    for own, values in zip(source, verified, strict=True):
        typical = median(values) if values else overall
        caps.append(None if typical is None else max(0.0, typical - own))
    return caps


def lower_threshold(values: Sequence[float], percentile: float, default: float, minimum: int = 20) -> float:
    """`percentile` of `values`, but never stricter than `default`; `default` where there are few values."""
    if len(values) < minimum:
        return default
    return min(default, float(np.percentile(np.asarray(values), percentile)))
