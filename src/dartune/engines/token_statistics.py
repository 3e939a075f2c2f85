"""Computes the log-probability, entropy and rank of each completion token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dartune.engines.base import TokenIds, TokenStats
from dartune.engines.logprobs import sequence_inputs
from dartune.engines.sliced_head import max_positions

# Entropy and rank need the logits over the full vocabulary, so a forward is kept small.
TOKENS_PER_FORWARD = 2**12


def token_stats(
    model: nn.Module,
    pairs: Sequence[tuple[TokenIds, TokenIds]],
    report: Callable[[int, int], None] = lambda rows, tokens: None,
) -> list[TokenStats]:
    """Returns the statistics of each (prompt, completion) pair, in order.

    Each row is read in full (no shared prompts), and the log-softmax is taken in float32.

    Args:
        report: called with the rows and the completion tokens of every forward.
    """

    def fill(batch: Sequence[int]) -> None:
        _fill_batch(stats, model, pairs, batch)
        report(len(batch), sum(len(pairs[i][1]) for i in batch))

    lengths = [sum(map(len, pair)) for pair in pairs]
    stats: list[TokenStats] = [TokenStats(())] * len(pairs)
    batch: list[int] = []
    # Longest first, so that a batch that does not fit in memory fails at once.
    for i in sorted(range(len(pairs)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_PER_FORWARD:
            fill(batch)
            batch = []
        batch.append(i)
    if batch:
        fill(batch)
    return stats


def _fill_batch(
    stats: list[TokenStats], model: nn.Module, pairs: Sequence[tuple[TokenIds, TokenIds]], batch: Sequence[int]
) -> None:
    """Fills in `stats[i]` for each i in `batch`, from one forward."""
    inputs, keep, targets, mask = sequence_inputs(model, [pairs[i] for i in batch])
    if not len(targets):
        return
    logits = model(logits_to_keep=keep.to(targets.device), **inputs).logits  # (M, V), for the M completion tokens
    size = max_positions(logits.T)
    chunks = [_statistics(*chunk) for chunk in zip(logits.split(size), targets.split(size), strict=True)]
    # Per statistic, the M values split into one tensor per row.
    columns = [torch.cat(column).split(mask.sum(dim=1).tolist()) for column in zip(*chunks, strict=True)]
    for i, *row in zip(batch, *columns, strict=True):
        stats[i] = TokenStats(*(tuple(values.tolist()) for values in row))


def _statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns log-probability, entropy and rank, each (M,), of `targets` (M,) under `logits` (M, V)."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, targets[:, None])  # (M, 1)
    # A probability of 0 has log-probability -inf, and 0 * -inf is NaN; its term in the entropy is 0.
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1)
    return chosen[:, 0], entropy, (logprobs > chosen).sum(dim=-1) + 1
