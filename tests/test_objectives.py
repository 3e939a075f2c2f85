"""Losses against their definitions: signs, masks, constants, and TRL's k3 estimate of the KL."""

import pytest
import torch

from dartune.train.objectives import asft, cross_entropy, dft, group_advantages, grpo, vargrad_advantages


def tensors(seed=0, rows=4, length=6):
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(rows, length, generator=generator, dtype=torch.float64)
    start = -torch.rand(rows, length, generator=generator, dtype=torch.float64)
    mask = torch.ones(rows, length, dtype=torch.float64)
    mask[1, 3:] = 0
    mask[3, 1:] = 0
    return logprobs.requires_grad_(), start, mask


def test_advantages_are_centred_per_group_and_keep_their_scale():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.02, 0.0, 0.0, 0.02], [0.5, 0.5, 0.5, 0.5]])
    advantages = group_advantages(rewards, scale=2.0)
    torch.testing.assert_close(advantages.sum(dim=1), torch.zeros(3))
    assert advantages[0, 0] == 0.25
    assert advantages[1].abs().max() == pytest.approx(0.005)  # a tiny spread stays tiny
    assert advantages[2].abs().max() == 0


def test_the_gradient_raises_what_was_better_and_ignores_padding():
    logprobs, start, mask = tensors()
    advantages = torch.tensor([1.0, -1.0, 0.0, 2.0], dtype=torch.float64)
    loss, _ = grpo(logprobs, start, advantages, mask, tokens=int(mask.sum()), kl_weight=0.0)
    loss.backward()
    expected = -advantages[:, None] * mask / mask.sum()
    torch.testing.assert_close(logprobs.grad, expected)


def test_the_kl_penalty_is_zero_at_the_start_and_pulls_back_to_it():
    logprobs, start, mask = tensors()
    zero = torch.zeros(4, dtype=torch.float64)
    _, kl = grpo(start.clone().requires_grad_(), start, zero, mask, 1, 1.0)
    assert float(kl) == 0
    loss, kl = grpo(logprobs, start, zero, mask, 1, 1.0)
    assert float(kl) > 0 and float(loss.detach()) == pytest.approx(float(kl))
    loss.backward()
    counted = mask.bool()
    assert torch.equal(torch.sign(logprobs.grad[counted]), torch.sign((logprobs - start).detach()[counted]))


def test_the_kl_estimate_is_trls():
    logprobs, start, mask = tensors(seed=3)
    with torch.no_grad():
        per_token = torch.exp(start - logprobs) - (start - logprobs) - 1  # trl.GRPOTrainer, beta > 0
    _, kl = grpo(logprobs, start, torch.zeros(4, dtype=torch.float64), mask, 1, 1.0)
    torch.testing.assert_close(kl, (per_token * mask).sum())


def test_microbatches_add_up_to_the_step():
    logprobs, start, mask = tensors()
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    tokens = int(mask.sum())
    whole, _ = grpo(logprobs, start, advantages, mask, tokens, 0.1)
    parts = sum(
        grpo(logprobs[i : i + 2], start[i : i + 2], advantages[i : i + 2], mask[i : i + 2], tokens, 0.1)[0]
        for i in (0, 2)
    )
    torch.testing.assert_close(whole, parts)


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
    kept = (log_q - log_p)[0][valid[0]]
    half_variance = 0.5 * ((kept - kept.mean()) ** 2).sum()
    (expected,) = torch.autograd.grad(half_variance, log_q)
    assert torch.allclose(-weights, expected, atol=1e-5)
    assert weights[1].abs().sum() == 0, "one valid sample says nothing about a spread"


def test_vargrad_ends_at_the_targets_spread_over_what_is_valid():
    torch.manual_seed(0)
    target = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    valid = torch.tensor([True, True, True, False])
    logits = torch.tensor([-2.0, 0.0, 1.0, 0.5], requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.03)
    for _ in range(600):
        log_q = logits.log_softmax(-1)
        drawn = torch.multinomial(log_q.exp(), 256, replacement=True)
        weights = vargrad_advantages(log_q.detach()[drawn][None], target[drawn][None], valid[drawn][None])
        loss = -(weights[0] * log_q[drawn]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    kept = logits.detach()[:3].softmax(-1)
    assert torch.allclose(kept, target.exp()[:3] / 0.95, atol=0.03)


def test_dft_weighs_every_token_by_its_probability_and_that_without_gradient():
    logprobs, _, mask = tensors()
    loss = dft(logprobs, mask, tokens=int(mask.sum()))
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -logprobs.detach().exp() * mask / mask.sum())
    weighted = (-logprobs.exp() * logprobs * mask).sum() / mask.sum()
    assert float(loss.detach()) == pytest.approx(float(weighted.detach()))


def test_asft_is_dft_and_a_pull_back():
    logprobs, _, mask = tensors()
    kl = torch.full_like(mask, 2.0)
    tokens = int(mask.sum())
    assert float((asft(logprobs, kl, mask, tokens) - dft(logprobs, mask, tokens)).detach()) == pytest.approx(0.1)
