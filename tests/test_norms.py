"""Fused RMSNorms compute the same as the model's own norms."""

import copy

import pytest
import torch
from torch import nn

from dartune.models.fused_rmsnorm import FusedRMSNorm, fuse_norms
from dartune.models.loading import load_model
from fixtures_models import ARCHITECTURES, save_tiny, tiny_model

IDS = torch.arange(3, 27).view(2, 12)


def count_fused(model: nn.Module) -> int:
    return sum(isinstance(module, FusedRMSNorm) for module in model.modules())


def with_random_norms(model: nn.Module) -> nn.Module:
    """The model with norm weights that are not all ones."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_norms_change_neither_logits_nor_gradients(architecture):
    original = with_random_norms(tiny_model(architecture, 64, pad=0, eos=1))
    logits_by_model, gradients_by_model = [], []
    for model in (original, fuse_norms(copy.deepcopy(original))):
        logits = model(IDS).logits
        logits.logsumexp(dim=-1).sum().backward()
        logits_by_model.append(logits.detach())
        gradients_by_model.append([weight.grad for weight in model.parameters() if weight.grad is not None])
    torch.testing.assert_close(logits_by_model[1], logits_by_model[0], atol=1e-5, rtol=1e-5)
    for fused, expected in zip(*reversed(gradients_by_model), strict=True):
        torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-4)


def test_a_loaded_model_has_all_its_norms_fused(tmp_path):
    model = load_model(save_tiny(tmp_path / "model", "llama"))
    assert count_fused(model) == 2 * model.config.num_hidden_layers + 1
    unloaded = tiny_model("llama", 64, pad=0, eos=1)
    assert count_fused(unloaded) == 0, "the classes of transformers must not change"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_output_has_the_wider_dtype_of_inputs_and_weights(dtype):
    model = fuse_norms(with_random_norms(tiny_model("llama", 64, pad=0, eos=1)))
    norm = next(module for module in model.modules() if isinstance(module, FusedRMSNorm)).to(dtype)
    states = torch.randn(4, len(norm.weight))
    for inputs in (states, states.bfloat16()):
        outputs = norm(inputs)
        assert outputs.dtype == torch.promote_types(inputs.dtype, dtype)
        wide = inputs.float()
        expected = wide / (wide.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.float()
        torch.testing.assert_close(outputs.float(), expected, atol=0.02, rtol=0.01)


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
def test_other_norms_are_not_replaced(norm):
    assert count_fused(fuse_norms(nn.Sequential(norm()))) == 0
