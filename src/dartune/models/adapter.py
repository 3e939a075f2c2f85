"""LoRA on a model's own weights: with the adapter on it is the policy, without it the frozen model, in one copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dartune.errors import InputError
from dartune.models.precision import compute_in

CONFIG_FILE = "adapter_config.json"


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """The model with LoRA (arXiv 2106.09685) on all linear layers but the head; only those train.

    The update is scaled by 2 (alpha = 2 * rank), so the learning rate need not change with the rank. The layers are
    put into `model` itself: `without_adapter` shows it as it was, `remove_lora` takes them off again. They are float32,
    and compute in what the model computes in (see `compute_in`).
    """
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise InputError(f"lora_rank must be at least 1, not {rank}")
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about deprecations between the libraries, and GPT-2's transposed layers
        wrapped = get_peft_model(model, config)
    # The adapter's float32 weights would have their inputs in float32, and multiply at a fraction of the speed.
    for layer in _layers(wrapped):
        layer.cast_input_dtype_enabled = False
    return compute_in(wrapped, model.dtype)


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the adapter that `folder` holds, in the model's dtype, put into it as by `add_lora`; frozen."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `add_lora`
        return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).eval()


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / CONFIG_FILE).exists() and not (folder / "config.json").exists()


def has_adapter(model: nn.Module) -> bool:
    """Whether the model is wrapped by `add_lora` or `load_adapter`."""
    return hasattr(model, "peft_config")


def merge_lora(model: nn.Module) -> nn.Module:
    """A plain model with its LoRA layers added into the weights; one without them is returned as it is."""
    return model.merge_and_unload() if has_adapter(model) else model


def remove_lora(model: nn.Module) -> nn.Module:
    """The plain model as it was before `add_lora`; one without LoRA layers is returned as it is."""
    # PEFT leaves the weights frozen.
    return model.unload().requires_grad_(True) if has_adapter(model) else model


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model as it was before `add_lora`, for as long, however it is called; nothing changes for a plain one."""
    enabled = [layer for layer in _layers(model) if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)


def _layers(model: nn.Module) -> list[Any]:
    """The model's LoRA layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
