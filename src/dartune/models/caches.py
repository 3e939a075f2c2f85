"""Caches of prompts' keys and values, continued by several completions each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from dartune.errors import InputError

Run = tuple[int, int, int]
"""Rows first, ..., end - 1, each repeated as often: (first, end, repeats)."""


def selected(cache: Any, rows: Sequence[int]) -> Any:
    """A cache whose row i is row `rows[i]` of `cache`, which stays as it is.

    Raises:
        InputError: the model keeps something other than keys and values.
    """
    return _with_layers(cache, [_selected(layer, rows) for layer in _checked(cache)])


def lent(cache: Any, rows: Sequence[int]) -> Any:
    """As `selected`, for a single forward, and wherever possible without a copy of all layers at once."""
    run = _even_run(rows)
    return _with_layers(cache, [_lent(layer, rows, run) for layer in _checked(cache)])


class LentLayer(DynamicLayer):
    """A layer's keys and values of G prompts, in N rows that continue them.

    The rows exist only while the layer attends to them, and what a forward adds is not kept.
    """

    def __init__(self, layer: DynamicLayer, rows: Sequence[int], run: Run | None) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values  # (G, heads, P, head size)
        self.rows, self.run = rows, run

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._continued(self.keys, key_states), self._continued(self.values, value_states)

    def _continued(self, prompts: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        if self.run is None:
            rows = torch.tensor(self.rows, device=prompts.device)
            return torch.cat([prompts[rows], states], dim=2)
        # One copy instead of two, and a backward that is a sum, far cheaper than an index's.
        first, end, repeats = self.run
        repeated = prompts[first:end, None].expand(-1, repeats, -1, -1, -1)
        return torch.cat([repeated, states.unflatten(0, (-1, repeats))], dim=3).flatten(0, 1)


def _even_run(rows: Sequence[int]) -> Run | None:
    """(first, end, repeats) where `rows` are first, ..., end - 1, each as often as the others; None where not."""
    first, end = rows[0], rows[-1] + 1
    repeats = len(rows) // max(1, end - first)
    even = list(rows) == [p for p in range(first, end) for _ in range(repeats)]
    return (first, end, repeats) if even else None


def _checked(cache: Any) -> list[Any]:
    if not all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
        raise InputError(
            "this model's layers keep a state other than keys and values (Mamba, linear attention), which "
            "cannot be shared between completions; use an attention-only model"
        )
    return cache.layers


def _with_layers(cache: Any, layers: list[Any]) -> Any:
    cache = copy.copy(cache)
    cache.layers = layers
    return cache


def _selected(layer: Any, rows: Sequence[int]) -> Any:
    layer = copy.copy(layer)
    if layer.keys is not None:  # a layer may have nothing of its own
        layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
    return layer


def _lent(layer: Any, rows: Sequence[int], run: Run | None) -> Any:
    plain = type(layer) is DynamicLayer and layer.keys is not None
    return LentLayer(layer, rows, run) if plain else _selected(layer, rows)
