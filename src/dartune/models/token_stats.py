"""What a model thinks of each token beyond its log-probability: its rank, and how uncertain it was there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dartune.models.engine import TokenIds, TokenStats
from dartune.models.head import rows_at_once
from dartune.models.shared_prefix import sequence_inputs

TOKENS_PER_FORWARD = 2**12


def token_stats(model: nn.Module, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
    """Statistics of each (prompt, completion), in order; plain forwards, the log-softmax in float32."""
    lengths = [sum(map(len, pair)) for pair in pairs]
    found: list[TokenStats] = [TokenStats(())] * len(pairs)
    batch: list[int] = []
    # Longest first, so that a batch that does not fit fails at once.
    for i in sorted(range(len(pairs)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > TOKENS_PER_FORWARD:
            _fill(found, model, pairs, batch)
            batch = []
        batch.append(i)
    if batch:
        _fill(found, model, pairs, batch)
    return found


def _fill(
    found: list[TokenStats], model: nn.Module, pairs: Sequence[tuple[TokenIds, TokenIds]], batch: Sequence[int]
) -> None:
    """One forward, and from it the statistics of the pairs in `batch`."""
    inputs, keep, targets, mask = sequence_inputs(model, [pairs[i] for i in batch])
    if not len(targets):
        return
    logits = model(logits_to_keep=keep.to(targets.device), **inputs).logits
    size = rows_at_once(logits.T)
    parts = [_statistics(*chunk) for chunk in zip(logits.split(size), targets.split(size), strict=True)]
    columns = [torch.cat(column).split(mask.sum(dim=1).tolist()) for column in zip(*parts, strict=True)]
    for i, *row in zip(batch, *columns, strict=True):
        found[i] = TokenStats(*(tuple(values.tolist()) for values in row))


def _statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, targets[:, None])
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1)
    return chosen[:, 0], entropy, (logprobs > chosen).sum(dim=-1) + 1
