"""Losses: pure functions on tensors."""

from __future__ import annotations

import torch


def cross_entropy(logprobs: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Negative log-likelihood in nats per trained token.

    Args:
        logprobs: log-probabilities of the response tokens, (B, T).
        mask: 1 where a token is trained, (B, T).
        tokens: trained tokens of the whole step, over all of its microbatches.
    """
    return -(logprobs * mask).sum() / tokens


def dft(logprobs: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Dynamic fine-tuning: every token's loss is weighted by its own probability, without gradient (arXiv 2508.05629).

    Arguments as in `cross_entropy`.
    """
    return -(logprobs.detach().exp() * logprobs * mask).sum() / tokens


def asft(
    logprobs: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, tokens: int, kl_weight: float = 0.05
) -> torch.Tensor:
    """Anchored fine-tuning: DFT and a pull back to the untouched target (arXiv 2509.23753).

    Args:
        kl: KL(untouched target || model) of each position's distribution over the vocabulary, nats, (B, T).
    """
    return dft(logprobs, mask, tokens) + kl_weight * (kl * mask).sum() / tokens


def group_advantages(rewards: torch.Tensor, scale: float) -> torch.Tensor:
    """Rewards (groups, samples) centred per group and divided by a constant.

    Dividing by the group's standard deviation instead would turn any tiny spread of a saturated
    group into a full-size advantage (cf. Dr. GRPO, arXiv 2503.20783).
    """
    return (rewards - rewards.mean(dim=-1, keepdim=True)) / scale


def vargrad_advantages(
    log_q: torch.Tensor, log_p: torch.Tensor, valid: torch.Tensor, clip: float = 5.0
) -> torch.Tensor:
    """Weights that make the policy gradient that of half the variance of log q - log p over a group's valid samples.

    Its minimum is q proportional to p on what is valid (VarGrad, arXiv 2010.10436; trajectory balance with a learned
    constant), so it keeps as many ways of writing as p has, where a reward seeks the likeliest.

    Args:
        log_q: summed log-probability of each sample under the policy, nats, (groups, samples).
        log_p: the same under the target.
        valid: which samples passed, bool; the others, and groups with fewer than two, have no say.
        clip: largest residual, in nats: samples the target finds absurd would drown all others.

    Returns:
        (groups, samples), within -1..1.
    """
    count = valid.sum(dim=-1, keepdim=True)
    residual = torch.where(valid, log_q - log_p, 0.0)
    centred = residual - residual.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    return torch.where(valid & (count > 1), -centred.clamp(-clip, clip) / clip, 0.0)


def grpo(
    logprobs: torch.Tensor,
    start_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    tokens: int,
    kl_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """On-policy group-relative policy gradient with a KL penalty to the start (arXiv 2402.03300, eq. 3-4).

    Args:
        logprobs: log q_phi(y_t | ...), with gradient, (B, T).
        start_logprobs: the same tokens under the start policy, (B, T).
        advantages: one per sample, (B,).
        mask: 1 where a token counts, (B, T).
        tokens: sampled tokens of the whole step, over all of its microbatches.
        kl_weight: weight of the KL penalty.

    Returns:
        The loss, and the summed per-token KL estimate (k3: exp(d) - d - 1, d = start - current).
    """
    ratio = torch.exp(logprobs - logprobs.detach())
    difference = start_logprobs - logprobs
    kl = ((torch.exp(difference) - difference - 1.0) * mask).sum()
    gain = (ratio * advantages[:, None] * mask).sum()
    return (kl_weight * kl - gain) / tokens, kl.detach()
