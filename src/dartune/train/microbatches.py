"""Splits a step into microbatches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dartune.engines.base import TokenIds

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GroupSlice:
    """The samples `start` to `stop` (exclusive) of a group, the `group`-th of a step."""

    group: int
    start: int
    stop: int


def split_by_tokens(values: Iterable[T], tokens: Callable[[Sequence[T]], int], limit: int) -> list[list[T]]:
    """Splits values, in order, into batches of at most `limit` tokens; a batch holds at least one value.

    Args:
        values: the values.
        tokens: returns the tokens of a batch.
        limit: most tokens of a batch, which only a single value may exceed.
    """
    batches: list[list[T]] = []
    for value in values:
        if batches and tokens([*batches[-1], value]) <= limit:
            batches[-1].append(value)
        else:
            batches.append([value])
    return batches


def slice_group(
    prompt: TokenIds, completions: Sequence[TokenIds], group: int, limit: int, shared: bool
) -> list[GroupSlice]:
    """Splits a group into slices of at most `limit` tokens, or of a single sample.

    Args:
        prompt: the prompt of the group.
        completions: its completions.
        group: index of the group.
        limit: most tokens of a forward.
        shared: whether the prompt is read once for all completions of a forward.
    """
    longest = max(map(len, completions))
    samples_that_fit = (limit - len(prompt)) // longest if shared else limit // (len(prompt) + longest)
    size = min(max(1, samples_that_fit), len(completions))
    return [GroupSlice(group, start, min(start + size, len(completions))) for start in range(0, len(completions), size)]


def padded_tokens(groups: Sequence[tuple[TokenIds, Sequence[TokenIds]]], shared: bool) -> int:
    """Returns the tokens of a forward over (prompt, completions) groups, including padding."""
    longest_prompt = max(len(prompt) for prompt, _ in groups)
    longest_completion = max(len(completion) for _, completions in groups for completion in completions)
    samples = sum(len(completions) for _, completions in groups)
    if shared:
        return len(groups) * longest_prompt + samples * longest_completion
    return samples * (longest_prompt + longest_completion)
