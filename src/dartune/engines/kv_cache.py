"""KV caches of prompts that several completions continue."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from dartune.errors import InputError

EvenRepeat = tuple[int, int, int]
"""(first, end, repeats): the rows first, ..., end - 1 in order, each repeated `repeats` times."""


def select_rows(cache: Any, rows: Sequence[int]) -> Any:
    """Returns a new cache whose row i is row `rows[i]` of `cache`; `cache` is not changed.

    Raises:
        InputError: the model caches something other than keys and values.
    """
    return _with_layers(cache, [_select_layer_rows(layer, rows) for layer in _checked_layers(cache)])


def expand_rows(cache: Any, rows: Sequence[int]) -> Any:
    """As `select_rows`, for a single forward, without copying all layers at once wherever possible.

    A copy of the whole cache would hold the keys and values of all completions' prompts in all layers. Here a layer is
    expanded while it attends and freed afterwards.

    Raises:
        InputError: the model caches something other than keys and values.
    """
    repeat = _even_repeat(rows)
    return _with_layers(cache, [_expand_layer_rows(layer, rows, repeat) for layer in _checked_layers(cache)])


class ExpandedLayer(DynamicLayer):
    """Keys and values of G prompts, expanded to the N rows that continue them while the layer attends.

    The keys and values that a forward adds are not stored.
    """

    def __init__(self, layer: DynamicLayer, rows: Sequence[int], repeat: EvenRepeat | None) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values  # (G, heads, P, head size)
        self.rows, self.repeat = rows, repeat

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None and self.values is not None
        return self._append(self.keys, key_states), self._append(self.values, value_states)

    def _append(self, prompt_states: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Returns (N, heads, P + T, head size) from (G, heads, P, head size) and (N, heads, T, head size)."""
        if self.repeat is None:
            rows = torch.tensor(self.rows, device=prompt_states.device)
            return torch.cat([prompt_states[rows], states], dim=2)
        # `expand` copies nothing, so there is one copy instead of two. Its backward is a sum, which is far cheaper than
        # the backward of indexing.
        first, end, repeats = self.repeat
        expanded = prompt_states[first:end, None].expand(-1, repeats, -1, -1, -1)  # (G, repeats, heads, P, head size)
        return torch.cat([expanded, states.unflatten(0, (-1, repeats))], dim=3).flatten(0, 1)


def _even_repeat(rows: Sequence[int]) -> EvenRepeat | None:
    """Returns (first, end, repeats) where `rows` are consecutive and each is repeated equally often; None otherwise."""
    first, end = rows[0], rows[-1] + 1
    repeats = len(rows) // max(1, end - first)
    even = list(rows) == [p for p in range(first, end) for _ in range(repeats)]
    return (first, end, repeats) if even else None


def _checked_layers(cache: Any) -> list[Any]:
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


def _select_layer_rows(layer: Any, rows: Sequence[int]) -> Any:
    layer = copy.copy(layer)
    if layer.keys is not None:  # a layer may share the keys and values of another and have none itself
        layer.batch_select_indices(torch.tensor(rows, device=layer.keys.device))
    return layer


def _expand_layer_rows(layer: Any, rows: Sequence[int], repeat: EvenRepeat | None) -> Any:
    # Subclasses, such as sliding windows, drop keys in `update`, so they are copied instead.
    plain = type(layer) is DynamicLayer and layer.keys is not None
    return ExpandedLayer(layer, rows, repeat) if plain else _select_layer_rows(layer, rows)
