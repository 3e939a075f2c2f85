"""Weights, gradients and optimiser state spread over the processes (FSDP2), for a model too large for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dartune.models.norms import fuse_norms
from dartune.models.precision import compute_in


def shard(model: nn.Module) -> nn.Module:
    """Spread `model` over all processes, in place, layer by layer; a layer is whole while it is computed with."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype = getattr(model, "computed_in", None)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None)
    layers = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def sharded_parts(model: nn.Module) -> list[Any]:
    """Modules of the model that are spread over the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All weights in every process, for as long: processes then need not compute in step. Nothing for a plain model."""
    parts = sharded_parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def gathered(model: nn.Module) -> nn.Module:
    """A plain model with the weights of a sharded one, in every process; a plain model is returned as it is."""
    parts = sharded_parts(model)
    if not parts:
        return model
    from accelerate import init_empty_weights

    for part in parts:
        part.reshard()
    with init_empty_weights(include_buffers=False):
        plain = type(model)(model.config)
    # One weight at a time, and one that is used twice once: beside the parts there is never more than one whole model.
    made: dict[torch.Tensor, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight not in made:
            made[weight] = nn.Parameter(full(weight.detach()), requires_grad=weight.requires_grad)
        owner, _, own = name.rpartition(".")
        plain.get_submodule(owner).register_parameter(own, made[weight])
    for name, buffer in model.named_buffers(remove_duplicate=False):
        owner, _, own = name.rpartition(".")
        setattr(plain.get_submodule(owner), own, buffer.clone())
    return compute_in(fuse_norms(plain).eval(), getattr(model, "computed_in", torch.float32))


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's whole value, in every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread_like(value: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """This process's part of a whole value, where `example` is spread; else the value itself."""
    if not hasattr(example, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
