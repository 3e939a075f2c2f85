"""Activation checkpointing: the backward pass recomputes activations that the forward pass did not keep."""

from __future__ import annotations

from dartune.models.language_model import LanguageModel


def recompute_activations(model: LanguageModel, on: bool = True) -> None:
    """Switches activation checkpointing on or off in all layers."""
    # transformers renamed the methods in 5.23; older versions in the supported range have the other name.
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{kind}_checkpointing_disable")()
