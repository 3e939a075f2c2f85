"""LoRA adapters on a model's own weights.

With the adapter enabled the model is the policy, with it disabled the frozen model, so one copy of the weights serves
both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from dartune.errors import InputError
from dartune.models.language_model import LanguageModel
from dartune.models.precision import compute_in

WEIGHTS_FILE = "adapter_model.safetensors"
_WEIGHT = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


def add_lora(model: LanguageModel, rank: int) -> nn.Module:
    """Returns the model with LoRA (arXiv 2106.09685) on all linear layers except the head; only LoRA layers train.

    The update is scaled by 2 (alpha = 2 * rank), so the learning rate need not change with the rank. The layers are
    inserted into `model` itself: `without_adapter` disables them, `remove_lora` removes them. Their weights are float32
    and compute in the model's dtype (see `compute_in`).

    Raises:
        InputError: `rank` is less than 1.
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
    # PEFT would cast the inputs to the adapter's float32 and multiply at a fraction of the bfloat16 speed.
    for layer in _lora_layers(wrapped):
        layer.cast_input_dtype_enabled = False
    return compute_in(wrapped, model.dtype)


def load_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Returns the model with the adapter in `folder`, frozen, in the model's dtype, inserted as by `add_lora`."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `add_lora`
        return PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).eval()


def unfit_layers(model: nn.Module, folder: Path) -> list[str]:
    """Returns the layers of the adapter in `folder` that a plain model does not have, or has in another size.

    PEFT raises for some of them and leaves out others, so the adapter would be applied in part.
    """
    layers = dict(model.named_modules())
    unfit: dict[str, None] = {}
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 - not a dict
            match = _WEIGHT.fullmatch(name)
            layer = layers.get(match["layer"]) if match else None
            # lora_A: (rank, inputs), lora_B: (outputs, rank)
            size = weights.get_slice(name).get_shape()[-1 if match and match["side"] == "A" else 0]
            if match is None or layer is None or size != _size(layer, match["side"]):
                unfit[match["layer"] if match else name] = None
    return list(unfit)


def _size(layer: nn.Module, side: str) -> int | None:
    """The number of inputs (`A`) or outputs (`B`) of a linear layer; None for a layer without a matrix."""
    if (weight := getattr(layer, "weight", None)) is None or weight.dim() != 2:
        return None
    # The layers of GPT-2 hold (inputs, outputs), those of torch (outputs, inputs).
    return weight.shape[1 if (side == "A") == isinstance(layer, nn.Linear) else 0]


def has_adapter(model: nn.Module) -> bool:
    """Returns whether the model is wrapped by `add_lora` or `load_adapter`."""
    return hasattr(model, "peft_config")


def merge_lora(model: LanguageModel) -> nn.Module:
    """Returns a plain model with its LoRA layers merged into the weights; a model without them is returned as is."""
    return model.merge_and_unload() if has_adapter(model) else model


def remove_lora(model: LanguageModel) -> nn.Module:
    """Returns the plain model as it was before `add_lora`; a model without LoRA layers is returned as is."""
    # PEFT leaves the base weights frozen, so they are made trainable again.
    return model.unload().requires_grad_(True) if has_adapter(model) else model


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Disables the LoRA layers of `model` within the context; has no effect on a plain model.

    The layers themselves are switched, so this also works where `model` is the base model inside a PEFT wrapper.
    """
    enabled = [layer for layer in _lora_layers(model) if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)


def _lora_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
