"""Mixed precision: trained weights are float32, matrix products use the compute dtype.

A step at a learning rate of 1e-6 is far below the resolution of bfloat16 (about three significant digits). Added to a
bfloat16 weight, it is rounded away.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from dartune.models.device import device_of
from dartune.models.language_model import LanguageModel

# On a CPU, the casts of a narrow model cost more than its faster products save.
CPU_MIN_WIDTH = 512
CPU_MIN_SPEEDUP = 1.3
SPEED_ROWS, SPEED_MAX_WIDTH, SPEED_REPEATS = 32, 1024, 5  # of the measurement


def bfloat16_is_faster(device: torch.device, width: int) -> bool:
    """Returns whether bfloat16 is the faster compute dtype on a device for models with hidden states of `width`.

    On a CPU, bfloat16 products are twice as fast with AMX or AVX512-BF16 instructions and emulated without them, so
    they are measured.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or width < CPU_MIN_WIDTH:
        return False
    return _cpu_speedup(min(width, SPEED_MAX_WIDTH)) >= CPU_MIN_SPEEDUP


@cache
def _cpu_speedup(width: int) -> float:
    """Returns how many times as fast as in float32 a product of the model's size is in bfloat16, in about 0.1 s."""
    hidden, weight = torch.zeros(SPEED_ROWS, width), torch.zeros(4 * width, width)
    operands = {dtype: (hidden.to(dtype), weight.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    fastest = dict.fromkeys(operands, float("inf"))
    for _ in range(SPEED_REPEATS + 1):  # the dtypes in turn, since the load of the machine changes; the first warms up
        for dtype, pair in operands.items():
            start = time.perf_counter()
            nn.functional.linear(*pair)
            fastest[dtype] = min(fastest[dtype], time.perf_counter() - start)
    return fastest[torch.float32] / fastest[torch.bfloat16]


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
