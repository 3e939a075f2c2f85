"""What a model thinks of each token beyond its log-probability: its rank, and how uncertain it was there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dartune.models.engine import TokenIds, TokenStats
from dartune.models.head import rows_at_once
from dartune.models.shared_prefix import device_of

ROWS_PER_FORWARD = 16


def token_stats(model: nn.Module, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
    """Statistics of each (prompt, completion), in order; one plain forward a batch, the log-softmax in float32."""
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    found: list[TokenStats] = [TokenStats(())] * len(pairs)
    for low in range(0, len(order), ROWS_PER_FORWARD):
        batch = order[low : low + ROWS_PER_FORWARD]
        for i, stats in zip(batch, _forward(model, [pairs[i] for i in batch]), strict=True):
            found[i] = stats
    return found


def _forward(model: nn.Module, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
    device = device_of(model)
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    # Padding comes last, where the causal order hides it.
    ids = torch.tensor([[*p, *c, *[0] * (width - len(p) - len(c))] for p, c in pairs], device=device)
    hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    stats = []
    for row, (prompt, completion) in enumerate(pairs):
        targets = ids[row, len(prompt) : len(prompt) + len(completion)]
        logits = hidden[row, len(prompt) - 1 : len(prompt) + len(completion) - 1]
        size = rows_at_once(logits.T)
        parts = [_statistics(*chunk) for chunk in zip(logits.split(size), targets.split(size), strict=True)]
        columns = [torch.cat(column).tolist() for column in zip(*parts, strict=True)] if parts else [[], [], []]
        stats.append(TokenStats(*map(tuple, columns)))
    return stats


def _statistics(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, targets[:, None])
    entropy = -(logprobs.exp() * logprobs.clamp(min=-1e30)).sum(dim=-1)
    return chosen[:, 0], entropy, (logprobs > chosen).sum(dim=-1) + 1
