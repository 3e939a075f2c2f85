"""Log-probabilities of a model's most likely tokens, for distillation.

Shapes use these letters: N rows, M response tokens over all rows, V tokens in the vocabulary, K chosen tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dartune.engines.base import TokenIds
from dartune.engines.logprobs import sequence_inputs
from dartune.engines.sliced_head import max_positions

Pairs = Sequence[tuple[TokenIds, TokenIds]]
"""(prompt, response) token ids."""


@torch.no_grad()
def top_logprobs(model: nn.Module, rows: Pairs, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k most likely tokens at each response position, and their log-probabilities.

    Returns:
        Token ids, (M, K), and log-probabilities in nats, float32, (M, K), row after row; K is at most V.

    Raises:
        InputError: a prompt is empty.
    """
    logits = _response_logits(model, rows)
    k = min(k, logits.shape[-1])
    parts = [part.float().log_softmax(dim=-1).topk(k, dim=-1) for part in logits.split(max_positions(logits.T))]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def chosen_token_logprobs(model: nn.Module, rows: Pairs, ids: torch.Tensor) -> torch.Tensor:
    """Returns the log-probabilities, with gradient, of K given tokens at each response position, nats, (M, K).

    Args:
        model: the model in training.
        rows: as in `top_logprobs`.
        ids: token ids, (M, K).

    Raises:
        InputError: a prompt is empty.
    """
    logits = _response_logits(model, rows)
    size = max_positions(logits.T)
    chunks = zip(logits.split(size), ids.split(size), strict=True)
    # In chunks whose float32 copies are recomputed in the backward, instead of one (M, V) copy.
    return torch.cat([checkpoint(_gather, *chunk, use_reentrant=False) for chunk in chunks])


def _gather(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(dim=-1).gather(-1, ids)


def _response_logits(model: nn.Module, rows: Pairs) -> torch.Tensor:
    """Returns the logits that predict the response tokens, (M, V)."""
    inputs, keep, targets, _ = sequence_inputs(model, rows)
    return model(logits_to_keep=keep.to(targets.device), **inputs).logits
