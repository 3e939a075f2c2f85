"""Weights that are trained stay in float32, whatever they are computed in.

A step at a learning rate of 1e-6 is far below what bfloat16 can tell from the weight itself (three significant
digits): added to weights in bfloat16, it is lost.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from dartune.models.shared_prefix import device_of


def compute_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Make every forward of a float32 `model` compute its matrix products in `dtype`.

    What accelerate's mixed precision does, but for its float32 copy of all logits, which a large vocabulary cannot
    afford. Whoever calls the model, sampling included, sees the same function.
    """
    if dtype == torch.float32:
        return model
    forward = model.forward

    def cast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_of(model).type, dtype=dtype):
            return forward(*args, **kwargs)

    model.forward, model.computed_in = cast, dtype
    return model


def rounding_once(model: nn.Module) -> AbstractContextManager:
    """Within it every weight is rounded to what the model computes in once, not in each forward; not for training."""
    dtype = vars(model).get("computed_in")
    # Autocast keeps what it has cast until its outermost context is left.
    return torch.autocast(device_of(model).type, dtype=dtype) if dtype else nullcontext()


def rounded(model: nn.Module) -> nn.Module:
    """The model with its weights in what it computes in, as it is saved and used: the end of `compute_in`."""
    dtype = vars(model).pop("computed_in", None)
    if dtype is None:
        return model
    del model.forward
    return model.to(dtype)
