"""Mixed precision: trained weights are float32, matrix products use the compute dtype.

A step at a learning rate of 1e-6 is far below the resolution of bfloat16 (about three significant digits). Added to a
bfloat16 weight, it is rounded away.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from dartune.models.device import device_of
from dartune.models.language_model import LanguageModel


def compute_in(model: LanguageModel, dtype: torch.dtype) -> nn.Module:
    """Makes every forward of a float32 `model` compute its matrix products in `dtype`, and returns the model.

    This is accelerate's mixed precision without its float32 copy of all logits, which does not fit in memory for a
    large vocabulary. The forward itself is replaced, so sampling, scoring and training compute the same function.
    """
    if dtype == torch.float32:
        return model
    forward = model.forward

    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_of(model).type, dtype=dtype):
            return forward(*args, **kwargs)

    model.forward, model.compute_dtype = autocast_forward, dtype
    return model


def cached_casts(model: nn.Module) -> AbstractContextManager:
    """Returns a context in which every weight is cast to the compute dtype once instead of once per forward.

    For sampling and scoring only: a cached cast would not follow a weight that is updated within the context.
    """
    dtype = vars(model).get("compute_dtype")
    # Autocast keeps its cast weights until the outermost autocast context exits.
    return torch.autocast(device_of(model).type, dtype=dtype) if dtype else nullcontext()


def cast_to_compute_dtype(model: nn.Module) -> nn.Module:
    """Undoes `compute_in`: returns the model with its weights cast to the compute dtype, as it is saved and used."""
    dtype = vars(model).pop("compute_dtype", None)
    if dtype is None:
        return model
    del model.forward
    return model.to(dtype)
