"""What training will hold in memory, before it starts: model states from their number, activations as measured.

Activations grow with the tokens of a microbatch, and how much one token takes is read off a short forward of the model
itself, so that it holds for any architecture, with or without LoRA and activation checkpointing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dartune.config import LOCAL, Adapter, ExecutionConfig
from dartune.models.adapter import add_lora, remove_lora
from dartune.models.shared_prefix import device_of, sequence_logprobs

TRIAL_TOKENS = 64
# Bytes of a trained weight: itself, its gradient and Adam's two moments, all float32.
TRAINED = 16
# Its copy in what is computed in, of which the backward needs the same one as the forward.
ROUNDED = 2
# Of one forward and backward on a CPU.
CPU_TOKENS = 2**12


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes, by what they are for."""

    frozen: int
    """Models that are only read."""
    trained: int
    """Weights that are trained, their gradients and the optimiser's state, and the weights in what is computed in."""
    activations: int
    """What the forward of one full microbatch keeps for its backward."""

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.activations


def footprint(model: nn.Module, settings: Adapter, frozen: int, execution: ExecutionConfig = LOCAL) -> Footprint:
    """Memory of training a copy of `model` by `settings` beside `frozen` bytes of other models.

    With LoRA the copy's own weights are in `frozen` as well; pass `frozen` without them where the adapter sits on a
    model that is counted there already.
    """
    if settings.adapter == "lora":
        model = add_lora(model, settings.lora_rank)
    try:
        if execution.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        copied = settings.adapter == "full" and model.dtype != torch.float32
        with as_float32(model) if copied else nullcontext():
            per_token = activation_bytes(model) / TRIAL_TOKENS
    finally:
        if execution.gradient_checkpointing:
            model.activation_checkpointing_disable()
        remove_lora(model)
    each = TRAINED + (ROUNDED if copied else 0)
    return Footprint(frozen, weights * each, round(per_token * tokens_at_once(model, execution.microbatch_tokens)))


@contextmanager
def as_float32(model: nn.Module) -> Iterator[None]:
    """Activations in the dtypes that a float32 copy of `model` which computes in its dtype has (see `compute_in`)."""
    hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, states: states.float())
    try:
        with torch.autocast(device_of(model).type, dtype=model.dtype):
            yield
    finally:
        hook.remove()


def tokens_at_once(model: nn.Module, limit: int) -> int:
    """Most tokens of one forward and backward: `limit`, fewer on a CPU, where more leave its caches for no gain."""
    return min(limit, CPU_TOKENS) if device_of(model).type == "cpu" else limit


def activation_bytes(model: nn.Module, tokens: int = TRIAL_TOKENS) -> int:
    """Bytes that a forward over one row of `tokens` tokens keeps for its backward, the logits of half of them too."""
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sequence_logprobs(model, [((0,) * (tokens // 2), (0,) * (tokens - tokens // 2))])
    finally:
        model.train(training)
    return sum(storage.nbytes() for storage in kept.values())


def memory_lines(footprints: Mapping[str, Footprint], device: torch.device) -> list[str]:
    """A line for each training, with a warning where it needs more than the device has."""
    room, lines = capacity(device), []
    for section, found in footprints.items():
        lines.append(
            f"{section}: about {_gb(found.total)} of {_gb(room)} on {device.type} ({_gb(found.frozen)} frozen models, "
            f"{_gb(found.trained)} trained weights with optimiser, {_gb(found.activations)} activations)"
        )
        if found.total > room:
            lines.append(
                "  this does not fit: lower execution.microbatch_tokens, set execution.gradient_checkpointing: true or "
                f"{section}.adapter: lora"
            )
    return lines


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def weight_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def capacity(device: torch.device) -> int:
    """Bytes of memory that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
