"""Norms computed as one operation are the norms the model came with."""

import copy

import pytest
import torch
from torch import nn

from dartune.models.loading import load_model
from dartune.models.norms import FusedRMSNorm, fuse_norms
from fixtures_models import ARCHITECTURES, save_tiny, tiny_model

IDS = torch.arange(3, 27).view(2, 12)


def fused(model: nn.Module) -> int:
    return sum(isinstance(module, FusedRMSNorm) for module in model.modules())


def shaken(model: nn.Module) -> nn.Module:
    """The model with norms' weights that are not all ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_gives_the_logits_and_gradients_it_gave(architecture):
    model = shaken(tiny_model(architecture, 64, pad=0, eos=1))
    found, grads = [], []
    for one in (model, fuse_norms(copy.deepcopy(model))):
        logits = one(IDS).logits
        logits.logsumexp(dim=-1).sum().backward()
        found.append(logits.detach())
        grads.append([weight.grad for weight in one.parameters() if weight.grad is not None])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(*reversed(grads), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_loaded_model_has_all_its_norms_fused(tmp_path):
    model = load_model(save_tiny(tmp_path / "model", "llama"))
    assert fused(model) == 2 * model.config.num_hidden_layers + 1
    assert fused(tiny_model("llama", 64, pad=0, eos=1)) == 0, "only the model itself is changed, not its architecture"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_inputs_and_weights_of_different_dtypes_give_the_wider(dtype):
    model = fuse_norms(shaken(tiny_model("llama", 64, pad=0, eos=1)))
    norm = next(module for module in model.modules() if isinstance(module, FusedRMSNorm)).to(dtype)
    states = torch.randn(4, len(norm.weight))
    for given in (states, states.bfloat16()):
        found = norm(given)
        assert found.dtype == torch.promote_types(given.dtype, dtype)
        wide = given.float()
        expected = wide / (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.float()
        torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.01)


class ShiftedRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(8)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


class GatedRMSNorm(ShiftedRMSNorm):
    def forward(self, x, gate=None):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight
        return x if gate is None else x * gate


@pytest.mark.parametrize("norm", [ShiftedRMSNorm, GatedRMSNorm, lambda: nn.LayerNorm(8)])
def test_other_norms_are_left_alone(norm):
    assert fused(fuse_norms(nn.Sequential(norm()))) == 0
