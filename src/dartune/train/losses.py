"""Losses and advantages: pure functions on tensors.

Shapes use these letters: B sequences of T response tokens.
"""

from __future__ import annotations

import math

import torch


def cross_entropy(logprobs: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Returns the negative log-likelihood in nats per trained token.

    Args:
        logprobs: log-probabilities of the response tokens, (B, T).
        mask: 1 where a token is trained, (B, T).
        tokens: trained tokens of the whole step, over all of its microbatches, so that the losses of the microbatches
            add up to the loss of the step.
    """
    return -(logprobs * mask).sum() / tokens


def dft(logprobs: torch.Tensor, mask: torch.Tensor, tokens: int) -> torch.Tensor:
    """Returns the dynamic fine-tuning loss (arXiv 2508.05629).

    The cross-entropy of each token is weighted by the token's own probability, without gradient. Arguments as in
    `cross_entropy`.
    """
    return -(logprobs.detach().exp() * logprobs * mask).sum() / tokens


def asft(
    logprobs: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, tokens: int, kl_weight: float = 0.05
) -> torch.Tensor:
    """Returns the anchored fine-tuning loss: DFT with a KL penalty to the untrained target (arXiv 2509.23753).

    Args:
        logprobs: as in `cross_entropy`.
        kl: KL(untrained target || model) of each position's distribution over the vocabulary, nats, (B, T).
        mask: as in `cross_entropy`.
        tokens: as in `cross_entropy`.
        kl_weight: KL coefficient.
    """
    return dft(logprobs, mask, tokens) + kl_weight * (kl * mask).sum() / tokens


STM_PERPLEXITY = 2.5
"""Largest perplexity of a token that selective token masking trains on; the value of arXiv 2501.14315."""


def selected_tokens(anchor_logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the tokens that selective token masking (STM, arXiv 2501.14315) trains on, bool, (B, T).

    Args:
        anchor_logprobs: log-probabilities of the response tokens under the untrained target, nats, (B, T).
        mask: 1 where there is a token, (B, T).
    """
    return mask.bool() & (anchor_logprobs >= -math.log(STM_PERPLEXITY))


def bucket_kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Returns KL(teacher || student) per position over the teacher's most likely tokens and one bucket for the rest.

    Args:
        teacher: log-probabilities of the K tokens, nats, without gradient, (M, K).
        student: log-probabilities of the same tokens under the student, (M, K).

    Returns:
        The KL divergence in nats, (M,). It is a lower bound of the divergence over the whole vocabulary.
    """
    teacher_rest, student_rest = log_rest(teacher), log_rest(student)
    shown = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return shown + teacher_rest.exp() * (teacher_rest - student_rest)


def log_rest(logprobs: torch.Tensor) -> torch.Tensor:
    """Returns the log of the probability that (M, K) log-probabilities leave to all other tokens, (M,).

    Bounded from below, because rounding can leave nothing or less than nothing.
    """
    return torch.log((1.0 - logprobs.exp().sum(dim=-1)).clamp(min=1e-6))


def group_advantages(rewards: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns rewards, (groups, samples), centred per group and divided by a constant.

    Dividing by the standard deviation of the group instead would turn any small difference in a saturated group into a
    full-size advantage (Dr. GRPO, arXiv 2503.20783).
    """
    return (rewards - rewards.mean(dim=-1, keepdim=True)) / scale


def vargrad_advantages(
    log_q: torch.Tensor, log_p: torch.Tensor, valid: torch.Tensor, clip: float = 5.0
) -> torch.Tensor:
    """Returns advantages whose policy gradient is that of half the variance of log q - log p over valid samples.

    The minimum is q proportional to p on the valid samples (VarGrad, arXiv 2010.10436; trajectory balance with a
    learned constant). The policy therefore keeps the diversity of p, while maximising a reward converges to the most
    likely text.

    Args:
        log_q: summed log-probability of each sample under the policy, nats, (groups, samples).
        log_p: the same under the target.
        valid: samples that were accepted, bool, (groups, samples). All others get 0, as do groups with fewer than two.
        clip: largest residual in nats. Without it, samples that are very unlikely under the target would dominate.

    Returns:
        Advantages in [-1, 1], (groups, samples).
    """
    count = valid.sum(dim=-1, keepdim=True)
    residual = torch.where(valid, log_q - log_p, 0.0)
    centred = residual - residual.sum(dim=-1, keepdim=True) / count.clamp(min=1)
    return torch.where(valid & (count > 1), -centred.clamp(-clip, clip) / clip, 0.0)


def grpo(
    logprobs: torch.Tensor,
    reference_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    tokens: int,
    kl_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the on-policy GRPO loss with a KL penalty to the reference model (arXiv 2402.03300, eq. 3-4).

    Args:
        logprobs: log-probabilities of the sampled tokens under the policy, with gradient, (B, T).
        reference_logprobs: the same under the reference model, (B, T).
        advantages: one per sample, (B,).
        mask: 1 where a token counts, (B, T).
        tokens: sampled tokens of the whole step, over all of its microbatches.
        kl_weight: KL coefficient.

    Returns:
        The loss, and the KL estimate summed over tokens (k3: exp(d) - d - 1, with d = reference - policy).
    """
    # Its value is 1, because the samples come from the current policy. Its gradient is that of the log-probability.
    ratio = torch.exp(logprobs - logprobs.detach())
    difference = reference_logprobs - logprobs
    # k3 is never negative and has a lower variance than the plain difference.
    kl = ((torch.exp(difference) - difference - 1.0) * mask).sum()
    gain = (ratio * advantages[:, None] * mask).sum()
    return (kl_weight * kl - gain) / tokens, kl.detach()
