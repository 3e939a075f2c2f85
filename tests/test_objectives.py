"""Losses against their definitions: signs, masks, constants, and TRL's k3 estimate of the KL divergence."""

import pytest
import torch

from dartune.train.losses import asft, cross_entropy, dft, group_advantages, grpo, vargrad_advantages


def tensors(seed=0, rows=4, length=6):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(rows, length, generator=generator, dtype=torch.float64)
    reference = -torch.rand(rows, length, generator=generator, dtype=torch.float64)
    mask = torch.ones(rows, length, dtype=torch.float64)
    mask[1, 3:] = 0
    mask[3, 1:] = 0
    return logprobs.requires_grad_(), reference, mask


def test_advantages_are_centred_per_group_and_keep_their_scale():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.02, 0.0, 0.0, 0.02], [0.5, 0.5, 0.5, 0.5]])
    advantages = group_advantages(rewards, scale=2.0)
    torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(3))
    assert advantages[0, 0] == 0.25
    assert advantages[1].abs().max() == pytest.approx(0.005)  # a tiny spread stays tiny
    assert advantages[2].abs().max() == 0


def test_the_gradient_follows_the_advantages_and_ignores_padding():
    logprobs, reference, mask = tensors()
    advantages = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    loss, _ = grpo(logprobs, reference, advantages, mask, tokens=int(mask.sum()), kl_weight=0.0)
    loss.backward()
    expected = -advantages[:, None] * mask / mask.sum()
    torch.testing.assert_close(logprobs.grad, expected)


def test_the_kl_penalty_is_zero_at_the_reference_and_its_gradient_points_to_it():
    logprobs, reference, mask = tensors()
    zero = torch.zeros(4, dtype=torch.float64)
    _, kl = grpo(reference.clone().requires_grad_(), reference, zero, mask, 1, 1.0)
    assert float(kl) == 0
    loss, kl = grpo(logprobs, reference, zero, mask, 1, 1.0)
    assert float(kl) > 0 and float(loss.detach()) == pytest.approx(float(kl))
    loss.backward()
    unmasked = mask.bool()
    assert torch.equal(torch.sign(logprobs.grad[unmasked]), torch.sign((logprobs - reference).detach()[unmasked]))


def test_the_kl_estimate_is_trls():
    logprobs, reference, mask = tensors(seed=3)
    with torch.no_grad():
        per_token = torch.exp(reference - logprobs) - (reference - logprobs) - 1  # trl.GRPOTrainer, beta > 0
    _, kl = grpo(logprobs, reference, torch.zeros(4, dtype=torch.float64), mask, 1, 1.0)
    torch.testing.assert_close(kl, (per_token * mask).sum())


def test_microbatches_add_up_to_the_step():
    logprobs, reference, mask = tensors()
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    tokens = int(mask.sum())
    step_loss, _ = grpo(logprobs, reference, advantages, mask, tokens, 0.1)
    summed = sum(
        grpo(logprobs[i : i + 2], reference[i : i + 2], advantages[i : i + 2], mask[i : i + 2], tokens, 0.1)[0]
        for i in (0, 2)
    )
    torch.testing.assert_close(step_loss, summed)


def test_cross_entropy_is_the_mean_over_trained_tokens():
    logprobs, _, mask = tensors()
    loss = cross_entropy(logprobs, mask, int(mask.sum()))
    torch.testing.assert_close(loss, -logprobs[mask.bool()].mean())


def test_vargrad_is_the_gradient_of_half_the_variance_over_valid_samples():
    torch.manual_seed(0)
    log_q = torch.randn(2, 5, requires_grad=True)
    log_p, valid = (
        torch.randn(2, 5),
        torch.tensor([[True, True, False, True, True], [True, False, False, False, False]]),
    )
    weights = vargrad_advantages(log_q.detach(), log_p, valid, clip=100.0) * 100.0
    residuals = (log_q - log_p)[0][valid[0]]
    half_variance = 0.5 * ((residuals - residuals.mean()) ** 2).sum()
    (expected,) = torch.autograd.grad(half_variance, log_q)
    assert torch.allclose(-weights, expected, atol=1e-5)
    assert weights[1].abs().sum() == 0, "a single valid sample has no variance"


def test_vargrad_converges_to_the_targets_distribution_over_valid_samples():
    torch.manual_seed(0)
    target = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    valid = torch.tensor([True, True, True, False])
    logits = torch.tensor([-2.0, 0.0, 1.0, 0.5], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.03)
    for _ in range(600):
        log_q = logits.log_softmax(-1)
        samples = torch.multinomial(log_q.exp(), 256, replacement=True)
        weights = vargrad_advantages(log_q.detach()[samples][None], target[samples][None], valid[samples][None])
        loss = -(weights[0] * log_q[samples]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = logits.detach()[:3].softmax(-1)
    assert torch.allclose(learned, target.exp()[:3] / 0.95, atol=0.03)


def test_dft_weights_every_token_by_its_probability_without_gradient():
    logprobs, _, mask = tensors()
    loss = dft(logprobs, mask, tokens=int(mask.sum()))
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -logprobs.detach().exp() * mask / mask.sum())
    weighted = (-logprobs.exp() * logprobs * mask).sum() / mask.sum()
    assert float(loss.detach()) == pytest.approx(float(weighted.detach()))


def test_asft_is_dft_with_a_kl_penalty():
    logprobs, _, mask = tensors()
    kl = torch.full_like(mask, 2.0)
    tokens = int(mask.sum())
    assert float((asft(logprobs, kl, mask, tokens) - dft(logprobs, mask, tokens)).detach()) == pytest.approx(0.1)
