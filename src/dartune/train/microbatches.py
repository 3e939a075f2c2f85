"""Cutting a step into forwards and backwards that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dartune.models.engine import TokenIds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """Samples `low` to `high` of a step's group: all of it, or as many as fit."""

    group: int
    low: int
    high: int


def cut(items: Iterable[T], tokens: Callable[[Sequence[T]], int], limit: int) -> list[list[T]]:
    """Items in their order, as many together as have no more `tokens` than `limit`, and at least one."""
    batches: list[list[T]] = []
    for item in items:
        if batches and tokens([*batches[-1], item]) <= limit:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def pieces(prompt: TokenIds, completions: Sequence[TokenIds], group: int, limit: int, shared: bool) -> list[Piece]:
    """A group, split where its samples together are longer than `limit` tokens; `shared`: its prompt is read once."""
    longest = max(map(len, completions))
    room = (limit - len(prompt)) // longest if shared else limit // (len(prompt) + longest)
    size = min(max(1, room), len(completions))
    return [Piece(group, low, min(low + size, len(completions))) for low in range(0, len(completions), size)]


def padded_tokens(groups: Sequence[tuple[TokenIds, Sequence[TokenIds]]], shared: bool) -> int:
    """Tokens of a forward over (prompt, completions) groups, padding counted."""
    prompt = max(len(prompt) for prompt, _ in groups)
    completion = max(len(one) for _, completions in groups for one in completions)
    samples = sum(len(completions) for _, completions in groups)
    return len(groups) * prompt + samples * completion if shared else samples * (prompt + completion)
