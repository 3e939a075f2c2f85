"""Estimates the memory of a training before it starts.

The memory of weights, gradients and optimizer state follows from the number of weights. The memory of activations is
proportional to the tokens of a microbatch. The bytes per token are measured in a short forward of the model itself, so
the estimate holds for any architecture, with or without LoRA and activation checkpointing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dartune.config.schema import DEFAULT_EXECUTION, Adapter, ExecutionConfig
from dartune.engines.logprobs import sequence_logprobs
from dartune.models.activations import recompute_activations
from dartune.models.device import device_of
from dartune.models.language_model import LanguageModel
from dartune.models.lora import add_lora, remove_lora
from dartune.run.number_format import gigabytes

# Tokens of the forward that is measured.
MEASURED_TOKENS = 64
# Bytes per trained weight: the weight, its gradient and Adam's two moments, all float32.
BYTES_PER_TRAINED_WEIGHT = 16
# Bytes of the weight's copy in the compute dtype, which is kept from the forward to the backward.
BYTES_PER_CAST_WEIGHT = 2
# Most tokens of a forward and backward on a CPU.
CPU_TOKENS = 2**12


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a training in bytes."""

    frozen: int
    """Models that are not trained."""
    trained: int
    """Trained weights, their gradients, the optimizer state, and the copy of the weights in the compute dtype."""
    activations: int
    """Activations that the forward of a full microbatch keeps for its backward."""

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.activations


def footprint(
    model: LanguageModel, settings: Adapter, frozen: int, execution: ExecutionConfig = DEFAULT_EXECUTION
) -> Footprint:
    """Returns the memory of training a copy of `model`.

    Args:
        model: the model; it is not changed.
        settings: the config section of the training.
        frozen: bytes of the models that are not trained. With LoRA these include the base weights of the copy, unless
            the adapter is attached to a model that is counted already.
        execution: how the training is executed.
    """
    if settings.lora_rank is not None:
        model = add_lora(model, settings.lora_rank)
    try:
        if execution.gradient_checkpointing:
            recompute_activations(model)
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        mixed_precision = settings.lora_rank is None and model.dtype != torch.float32
        with as_float32(model) if mixed_precision else nullcontext():
            per_token = activation_bytes(model) / MEASURED_TOKENS
    finally:
        if execution.gradient_checkpointing:
            recompute_activations(model, on=False)
        remove_lora(model)
    weight_size = BYTES_PER_TRAINED_WEIGHT + (BYTES_PER_CAST_WEIGHT if mixed_precision else 0)
    activations = round(per_token * max_forward_tokens(model, execution.microbatch_tokens))
    return Footprint(frozen, weights * weight_size, activations)


@contextmanager
def as_float32(model: LanguageModel) -> Iterator[None]:
    """Gives activations the dtypes of mixed precision within the context, without a float32 copy of the weights.

    A float32 copy of `model` that computes in the model's dtype (see `compute_in`) has float32 activations between its
    matrix products. Converting the output of the embedding to float32 has the same effect.
    """
    hook = model.get_input_embeddings().register_forward_hook(lambda _, ids, states: states.float())
    try:
        with torch.autocast(device_of(model).type, dtype=model.dtype):
            yield
    finally:
        hook.remove()


def max_forward_tokens(model: nn.Module, limit: int) -> int:
    """Returns the most tokens of a forward and backward: `limit`, or less on a CPU.

    On a CPU, more tokens exceed the caches and are not faster.
    """
    return min(limit, CPU_TOKENS) if device_of(model).type == "cpu" else limit


def activation_bytes(model: nn.Module, tokens: int = MEASURED_TOKENS) -> int:
    """Returns the bytes that a forward over one row keeps for its backward.

    Half of the `tokens` are the prompt and half the response, and only the response has logits.
    """
    weight_storages = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    # By address, because several saved tensors can be views of one storage. The storage itself is held, so that its
    # address is not reused before the forward has ended.
    saved_storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weight_storages:
            saved_storages[storage.data_ptr()] = storage
        return tensor

    training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            sequence_logprobs(model, [((0,) * (tokens // 2), (0,) * (tokens - tokens // 2))])
    finally:
        model.train(training)
    return sum(storage.nbytes() for storage in saved_storages.values())


def memory_lines(footprints: Mapping[str, Footprint], device: torch.device) -> list[str]:
    """Returns a line per training, followed by a warning if it needs more memory than the device has."""
    available, lines = capacity(device), []
    for section, estimate in footprints.items():
        lines.append(
            f"{section}: about {gigabytes(estimate.total)} of {gigabytes(available)} on {device.type} "
            f"({gigabytes(estimate.frozen)} frozen models, {gigabytes(estimate.trained)} trained weights with "
            f"optimiser, {gigabytes(estimate.activations)} activations)"
        )
        if estimate.total > available:
            lines.append(
                "  this does not fit: lower execution.microbatch_tokens, set execution.gradient_checkpointing: true or "
                f"{'sft' if section == 'sft' else 'mapper'}.lora_rank: 16"
            )
    return lines


def weight_bytes(model: nn.Module) -> int:
    """Returns the bytes of the model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def capacity(device: torch.device) -> int:
    """Returns the total memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
