"""Sharding of weights, gradients and optimizer state with FSDP2, for a model that does not fit on one device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dartune.models.fused_rmsnorm import fuse_norms
from dartune.models.language_model import LanguageModel
from dartune.models.precision import compute_in


def shard(model: LanguageModel) -> LanguageModel:
    """Shards `model` over all processes, in place, one FSDP module per layer.

    The weights of a layer are all-gathered for its forward and backward and freed afterwards.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = getattr(model, "compute_dtype", None)
    # Gradients are reduced in float32: a sum over many processes in bfloat16 loses small terms.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    layer_classes = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layer_classes:
            fully_shard(module, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def fsdp_modules(model: nn.Module) -> list[Any]:
    """Returns the sharded modules of `model`; empty for a model that is not sharded."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Holds all weights in every process within the context; has no effect on a model that is not sharded.

    Without it each forward all-gathers the weights, so all processes would have to run the same number of forwards.
    Sampling cannot guarantee that, because completions differ in length.
    """
    modules = fsdp_modules(model)
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def gather_model(model: nn.Module) -> nn.Module:
    """Returns an unsharded model with the weights of `model`, in every process; an unsharded model is returned as is.

    Every process must call this.
    """
    modules = fsdp_modules(model)
    if not modules:
        return model
    from accelerate import init_empty_weights

    for module in modules:
        module.reshard()
    with init_empty_weights(include_buffers=False):
        plain = type(model)(model.config)
    # One weight at a time, and a tied weight only once: memory never holds more than one full model beside the shards.
    full_weights: dict[torch.Tensor, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight not in full_weights:
            full_weights[weight] = nn.Parameter(full_tensor(weight.detach()), requires_grad=weight.requires_grad)
        owner, _, attribute = name.rpartition(".")
        plain.get_submodule(owner).register_parameter(attribute, full_weights[weight])
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, attribute = name.rpartition(".")
        setattr(plain.get_submodule(owner), attribute, buffer.clone())
    return compute_in(fuse_norms(plain).eval(), getattr(model, "compute_dtype", torch.float32))


def full_tensor(tensor: Any) -> torch.Tensor:
    """Returns the unsharded value of a tensor, in every process; every process must call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(value: torch.Tensor, example: Any) -> torch.Tensor:
    """Returns this process's shard of `value` where `example` is sharded, and `value` itself otherwise."""
    if not hasattr(example, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
