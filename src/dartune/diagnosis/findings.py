"""The figures of a diagnosis: what the measured rows say about data, target and initial mapper."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Literal

import numpy as np

from dartune.diagnosis.measure import MeasuredRewrite, MeasuredRow
from dartune.rewards.reward import SMALLEST_STAKE
from dartune.train.losses import STM_PERPLEXITY

NATURAL_PERCENTILE = 10
"""A demonstration is natural if its alignment is at least this percentile of the target's own solutions."""
LEAST_NATURAL = 10
"""Tokens and rows that are listed."""
SHOWN_CHARACTERS = 40
"""Characters in front of a listed token."""


@dataclass(frozen=True)
class TokenFinding:
    """A token of a demonstration that the target finds unlikely."""

    row: str
    before: str
    token: str
    logprob: float


@dataclass(frozen=True)
class RowFinding:
    """A demonstration that the target finds unnatural."""

    row: str
    solution: str
    alignment: float
    percentile: float | None


@dataclass(frozen=True)
class Findings:
    """Shares are fractions of 1, alignments are in nats per token; None where nothing could be measured.

    Args:
        rows: rows that were measured.
        total_rows: training rows of the data.
        samples: rewrites per row, and solutions of the target per row.
        alignment: median alignment of the demonstrations.
        own_alignment: median alignment of the target's own finished solutions.
        natural: share of the demonstrations that are natural (`NATURAL_PERCENTILE`).
        percentile: median share of the target's own solutions that are less natural than the demonstration.
        gainful: share of the rows that can gain (a cap above 0).
        possible_gain: mean gain that the reward pays at most.
        checkable: share of the rows with an answer.
        pass_at_1, pass_at_k: of the untouched target, on rows with an answer; k is `samples`.
        accepted: share of the rewrites that pass all gates.
        rows_accepted: share of the rows with an accepted rewrite among `samples`.
        gain_of_one, gain_of_best: mean reward of one rewrite, and of the best of `samples`, as shares of
            `possible_gain`.
        distinct: share of different texts among the accepted rewrites of a row.
        masked: share of the demonstrations' tokens with a perplexity above 2.5, which `sft_stm` masks.
        solution_tokens, own_tokens, rewrite_tokens: median lengths in tokens.
        mean_own_tokens, mean_rewrite_tokens: mean lengths, those that are cut included.
        own_finished: share of the target's solutions that end without a loop.
        rewrites_cut: share of the rewrites that did not end within `mapper.max_new_tokens`.
        too_long: share of the demonstrations that are longer than `mapper.max_new_tokens`.
        failed_gates, hacks: share of the rewrites that fail each gate or contain each hack, most frequent first.
        least_natural_tokens, least_natural_rows: the first of them, least natural first.
    """

    rows: int
    total_rows: int
    samples: int
    alignment: float
    own_alignment: float | None
    natural: float | None
    percentile: float | None
    gainful: float
    possible_gain: float
    checkable: float
    pass_at_1: float | None
    pass_at_k: float | None
    accepted: float
    rows_accepted: float
    gain_of_one: float
    gain_of_best: float
    distinct: float | None
    masked: float
    solution_tokens: int
    own_tokens: int | None
    rewrite_tokens: int
    mean_own_tokens: float
    mean_rewrite_tokens: float
    own_finished: float
    rewrites_cut: float
    too_long: float
    failed_gates: dict[str, float]
    hacks: dict[str, float]
    least_natural_tokens: list[TokenFinding]
    least_natural_rows: list[RowFinding]


def find(
    rows: Sequence[MeasuredRow],
    total_rows: int,
    samples: int,
    max_new_tokens: int,
    decode: Callable[[Sequence[int]], str],
) -> Findings:
    """Summarise measured rows; see `Findings`.

    Args:
        max_new_tokens: `mapper.max_new_tokens`.
        decode: token ids to text.
    """
    own = [value for row in rows for value in row["own_alignments"]]
    threshold = float(np.percentile(own, NATURAL_PERCENTILE)) if own else None
    own_lengths = [length for row in rows for length in row["own_lengths"]]
    rewrites = [rewrite for row in rows for rewrite in row["rewrites"]]
    checked = [row for row in rows if row["answer"] is not None and row["drawn"]]
    gains = [_possible_gain(row) for row in rows]
    possible = mean(gains)
    return Findings(
        rows=len(rows),
        total_rows=total_rows,
        samples=samples,
        alignment=median(row["alignment"] for row in rows),
        own_alignment=median(own) if own else None,
        natural=None if threshold is None else mean(row["alignment"] >= threshold for row in rows),
        percentile=median(percentile(row["alignment"], own) for row in rows) if own else None,
        gainful=mean(gain > SMALLEST_STAKE for gain in gains),
        possible_gain=possible,
        checkable=mean(row["answer"] is not None for row in rows),
        pass_at_1=mean(row["right"] / row["drawn"] for row in checked) if checked else None,
        pass_at_k=mean(row["right"] > 0 for row in checked) if checked else None,
        accepted=mean(item["accepted"] for item in rewrites),
        rows_accepted=mean(any(item["accepted"] for item in row["rewrites"]) for row in rows),
        gain_of_one=_share_of(mean(max(0.0, item["reward"]) for item in rewrites), possible),
        gain_of_best=_share_of(mean(max(0.0, *(item["reward"] for item in row["rewrites"])) for row in rows), possible),
        distinct=_distinct(rows),
        masked=mean(value < -math.log(STM_PERPLEXITY) for row in rows for value in row["logprobs"]),
        solution_tokens=round(median(row["length"] for row in rows)),
        own_tokens=round(median(own_lengths)) if own_lengths else None,
        rewrite_tokens=round(median(len(item["ids"]) for item in rewrites)),
        mean_own_tokens=_mean_own_tokens(rows, max_new_tokens),
        mean_rewrite_tokens=mean(len(item["ids"]) for item in rewrites),
        own_finished=_share_of(len(own), sum(row["drawn"] for row in rows)),
        rewrites_cut=mean(item["finish"] == "length" for item in rewrites),
        too_long=mean(row["length"] > max_new_tokens for row in rows),
        failed_gates=_shares(rewrites, "failed"),
        hacks=_shares(rewrites, "hacks"),
        least_natural_tokens=_least_natural_tokens(rows, decode),
        least_natural_rows=_least_natural_rows(rows, own),
    )


def _mean_own_tokens(rows: Sequence[MeasuredRow], max_new_tokens: int) -> float:
    """Mean length of the target's solutions; those that do not end count with the maximum."""
    finished = [length for row in rows for length in row["own_lengths"]]
    drawn = sum(row["drawn"] for row in rows)
    return _share_of(sum(finished) + (drawn - len(finished)) * max_new_tokens, drawn)


def percentile(alignment: float, own: Sequence[float]) -> float:
    """Return the share (0..1) of the target's own solutions that are less natural than `alignment`."""
    return mean(value < alignment for value in own)


def _possible_gain(row: MeasuredRow) -> float:
    """The largest gain that the reward pays for a row; see `Reference.best_gain`."""
    return max(0.0, -row["alignment"] if row["cap"] is None else row["cap"])


def _share_of(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _distinct(rows: Sequence[MeasuredRow]) -> float | None:
    """Share of different texts among a row's accepted rewrites, mean over rows with at least two of them."""
    shares = []
    for row in rows:
        texts = [item["text"] for item in row["rewrites"] if item["accepted"]]
        if len(texts) > 1:
            shares.append(len(set(texts)) / len(texts))
    return mean(shares) if shares else None


def _shares(rewrites: Sequence[MeasuredRewrite], field: Literal["failed", "hacks"]) -> dict[str, float]:
    """Share of the rewrites that have each name in `field`, most frequent first."""
    counts = Counter(name for item in rewrites for name in item[field])
    return {name: count / len(rewrites) for name, count in counts.most_common()}


def _least_natural_tokens(rows: Sequence[MeasuredRow], decode: Callable[[Sequence[int]], str]) -> list[TokenFinding]:
    """The tokens of lowest probability, with the text before them; at most one per row, so that rows differ."""
    lowest = []
    for row in rows:
        if row["logprobs"]:
            index = min(range(len(row["logprobs"])), key=row["logprobs"].__getitem__)
            before, text = decode(row["tokens"][:index]), decode(row["tokens"][: index + 1])
            token = text[len(before) :] if text.startswith(before) else text
            lowest.append(TokenFinding(row["id"], before[-SHOWN_CHARACTERS:], token, row["logprobs"][index]))
    return sorted(lowest, key=lambda token: token.logprob)[:LEAST_NATURAL]


def _least_natural_rows(rows: Sequence[MeasuredRow], own: Sequence[float]) -> list[RowFinding]:
    least = sorted(rows, key=lambda row: row["alignment"])[:LEAST_NATURAL]
    return [
        RowFinding(row["id"], row["solution"], row["alignment"], percentile(row["alignment"], own) if own else None)
        for row in least
    ]
