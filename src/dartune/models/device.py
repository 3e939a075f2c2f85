"""The device of a model."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Returns the device that the model's inputs must be on."""
    return next(model.parameters()).device
