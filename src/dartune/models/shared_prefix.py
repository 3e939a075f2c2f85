"""Log-probabilities of completions, reading a prompt once for all completions that share it.

A group's prompt goes through the model once; its keys and values are repeated for the group's
completions, which follow in a second forward. Gradients flow through the cache, so the result and
its gradient equal those of a forward over prompt + completion, at a fraction of the work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from dartune.errors import InputError
from dartune.models.caches import lent
from dartune.models.engine import TokenIds
from dartune.models.head import chosen_logprobs, is_sharded, rows_at_once, token_logprobs

# Any id will do where the mask or the causal order hides the position.
FILL_ID = 0

# What one more forward and backward costs beside its tokens, in tokens; on a CPU as measured.
CPU_FORWARD_COSTS, GPU_FORWARD_COSTS = 2**7, 2**12

Group = tuple[TokenIds, Sequence[TokenIds]]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Prompts a model has read, left-padded to P tokens.

    Args:
        cache: their keys and values, a transformers `Cache` with one row per prompt.
        valid: True at real tokens, (G, P).
        lengths: tokens per prompt, (G,).
        logits: for the token after each prompt, (G, V).
    """

    cache: Any
    valid: torch.Tensor
    lengths: torch.Tensor
    logits: torch.Tensor


def group_logprobs(
    model: nn.Module, groups: Sequence[Group], *, with_entropy: bool = False, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probabilities, with gradient, of each group's completions given its prompt.

    Both forwards go through `model` itself: under DDP or FSDP pass the wrapped module, or gradients
    are not synchronised. In training mode a prompt's dropout is shared by its group. Every row is read
    whole under activation (gradient) checkpointing, where layers recomputed against a cache that has grown
    since would silently give wrong values (errors up to 1 nat), and where the model is spread over
    processes, which must all do as many forwards.

    Args:
        groups: (prompt, completions) token ids; N completions in all, the longest of T tokens.
        with_entropy: also, without gradient, the entropy of each token's predictive distribution.
        temperature: of the distribution that the tokens are scored under; that which they were sampled at.

    Returns:
        log p in nats, float32, 0 outside the mask, (N, T); the mask, bool, (N, T); the entropy in
        nats, (N, T), or None.

    Raises:
        InputError: an empty prompt.
    """
    if is_checkpointed(model) or is_sharded(model):
        rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
        return _plain_logprobs(model, rows, with_entropy, temperature)
    prefix = read_prompts(model, [prompt for prompt, _ in groups])
    owner = [g for g, (_, completions) in enumerate(groups) for _ in completions]
    rows = [completion for _, completions in groups for completion in completions]

    def read(few: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        few_rows = [rows[i] for i in few]
        owners = [owner[i] for i in few]
        return read_completions(model, prefix, owners, few_rows, with_entropy=with_entropy, temperature=temperature)

    return _read_alike([len(row) for row in rows], prefix.logits.device, read)


def _read_alike(
    lengths: Sequence[int], device: torch.device, read: Callable[[Sequence[int]], tuple]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`read`, of row numbers, on rows of like length together; the results in the rows' own order."""
    alike = of_like_length(lengths, forward_costs(device))
    if len(alike) <= 1:
        return read(range(len(lengths)))
    return tuple(map(partial(_in_order, alike), zip(*map(read, alike), strict=True)))


def forward_costs(device: torch.device) -> int:
    """What one more forward costs beside its tokens, in tokens."""
    return CPU_FORWARD_COSTS if device.type == "cpu" else GPU_FORWARD_COSTS


def _in_order(alike: Sequence[Sequence[int]], parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Rows of several (n, t) parts as one (N, T): row k of part p becomes row `alike[p][k]`, padded with zeros."""
    if parts[0] is None:
        return None
    width = max(part.shape[1] for part in parts)
    padded = torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
    place = torch.empty(len(padded), dtype=torch.long)
    place[[i for few in alike for i in few]] = torch.arange(len(padded))
    return padded[place.to(padded.device)]


def of_like_length(
    lengths: Sequence[int], forward_costs: int, most: Callable[[int], int] = lambda longest: sys.maxsize
) -> list[list[int]]:
    """Rows cut into batches that are padded to their own longest each, at the least cost in all.

    Args:
        lengths: tokens of each row.
        forward_costs: what one more batch costs, in tokens.
        most: rows that a batch may have, at least one, given its longest row's tokens.

    Returns:
        Row numbers of each batch, shortest rows first; within a batch in their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    places = torch.arange(len(order) + 1)
    # Of the first n rows: their least cost, and where their last batch begins.
    least, begins = torch.zeros(len(order) + 1, dtype=torch.float64), [0]
    for n in range(1, len(order) + 1):
        longest = lengths[order[n - 1]]
        low = n - min(n, most(longest))
        costs = least[low:n] + (n - places[low:n]) * longest + forward_costs
        begins.append(low + int(costs.argmin()))
        least[n] = costs[begins[n] - low]
    batches, end = [], len(order)
    while end:
        batches.append(sorted(order[begins[end] : end]))
        end = begins[end]
    return batches[::-1]


def sequence_logprobs(model: nn.Module, rows: Sequence[tuple[TokenIds, TokenIds]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, with gradient, of each row's response given its prompt, in plain forwards.

    Args:
        rows: (prompt, response) token ids; N rows, the longest response of T tokens.

    Returns:
        log p in nats, float32, 0 outside the mask, (N, T); the mask, bool, (N, T).

    Raises:
        InputError: an empty prompt, which leaves the first response token without a prediction.
    """
    if is_sharded(model):  # all processes must do as many forwards
        return _plain_logprobs(model, rows)[:2]

    def read(few: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return _plain_logprobs(model, [rows[i] for i in few])

    lengths = [len(prompt) + len(response) for prompt, response in rows]
    return _read_alike(lengths, device_of(model), read)[:2]


def _plain_logprobs(
    model: nn.Module,
    rows: Sequence[tuple[TokenIds, TokenIds]],
    with_entropy: bool = False,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    inputs, keep, targets, mask = sequence_inputs(model, rows)
    logprobs, entropy = chosen_logprobs(model, keep, targets, with_entropy, temperature, **inputs)
    return _scatter(logprobs, mask), mask, None if entropy is None else _scatter(entropy, mask)


def anchored_logprobs(
    model: nn.Module, anchor: nn.Module, rows: Sequence[tuple[TokenIds, TokenIds]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `sequence_logprobs`, and how far the model has gone from `anchor` at every position.

    Returns:
        log p, (N, T); KL(anchor || model) over the vocabulary in nats, with gradient, (N, T); the mask, (N, T).
    """
    inputs, keep, targets, mask = sequence_inputs(model, rows)
    keep = keep.to(targets.device)
    logits = model(logits_to_keep=keep, **inputs).logits
    with torch.no_grad():
        fixed = anchor(logits_to_keep=keep, **inputs).logits
    size = rows_at_once(logits.T)
    parts = [
        checkpoint(_divergence, ours, theirs, use_reentrant=False)
        for ours, theirs in zip(logits.split(size), fixed.split(size), strict=True)
    ]
    return _scatter(token_logprobs(logits, targets)[0], mask), _scatter(torch.cat(parts), mask), mask


def _divergence(logits: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
    ours, theirs = logits.float().log_softmax(dim=-1), anchor.float().log_softmax(dim=-1)
    return (theirs.exp() * (theirs - ours)).sum(dim=-1)


def sequence_inputs(
    model: nn.Module, rows: Sequence[tuple[TokenIds, TokenIds]]
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a plain forward over rows of prompt and response needs.

    Returns:
        its inputs; where the M response tokens are predicted, (N, S), on the CPU, where it can be read without waiting
        for a device; these tokens, row by row, (M,); a mask, (N, T).

    Raises:
        InputError: an empty prompt.
    """
    _refuse_empty([prompt for prompt, _ in rows])
    device = device_of(model)
    ids = _padded([[*prompt, *response] for prompt, response in rows])  # (N, S)
    mask = _length_mask([len(response) for _, response in rows])  # (N, T)
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    ends = starts + mask.sum(dim=1)
    column = torch.arange(ids.shape[1])
    response = (column >= starts[:, None]) & (column < ends[:, None])
    read = ids.to(device)
    # Padding comes last, where the causal order hides it: no mask is needed beyond that.
    inputs = {"input_ids": read, "attention_mask": torch.ones_like(read), "use_cache": False}
    return inputs, response.roll(-1, dims=1), ids[response].to(device), mask.to(device)


def read_prompts(model: nn.Module, prompts: Sequence[TokenIds]) -> Prefix:
    """One forward over left-padded prompts; only the last position's logits are computed."""
    _refuse_empty(prompts)
    device = device_of(model)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = _padded(prompts, side="left")
    offset = torch.arange(ids.shape[1]) - (ids.shape[1] - lengths[:, None])
    valid = (offset >= 0).to(device)
    output = model(
        input_ids=ids.to(device),
        attention_mask=valid,
        position_ids=offset.clamp(min=0).to(device),
        use_cache=True,
        logits_to_keep=1,
    )
    return Prefix(output.past_key_values, valid, lengths.to(device), output.logits[:, -1])


def read_completions(
    model: nn.Module,
    prefix: Prefix,
    owner: Sequence[int],
    completions: Sequence[TokenIds],
    *,
    with_entropy: bool = False,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """One forward over completions that continue the prompts of `prefix`, which stays as it is.

    Args:
        owner: the prompt each completion continues, an index into `prefix`.
        completions: N token lists, the longest of T tokens.

    Returns:
        As `group_logprobs`.
    """
    device = prefix.logits.device
    real = _length_mask([len(completion) for completion in completions])  # (N, T)
    mask = real.to(device)
    if not real.any():
        nothing = torch.zeros(mask.shape, device=device)
        return nothing, mask, nothing if with_entropy else None
    tokens, real = _padded(completions), real[:, 1:]
    ids = tokens.to(device)  # (N, T)
    index = torch.tensor(owner, device=device)
    # The first token is predicted by the prompt's last position, all others by their predecessor.
    predicted = (prefix.logits.float() / temperature).log_softmax(dim=-1)  # (G, V)
    first, later = mask[:, 0], mask[:, 1:]
    logprobs = [(predicted[index, ids[:, 0]] * first)[:, None]]
    entropy = [(_entropy(predicted.detach())[index] * first)[:, None]] if with_entropy else []
    if ids.shape[1] > 1:
        chosen, spread = chosen_logprobs(
            model,
            real,
            tokens[:, 1:][real].to(device),
            with_entropy,
            temperature,
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([prefix.valid[index], torch.ones_like(later)], dim=1),
            position_ids=prefix.lengths[index, None] + torch.arange(ids.shape[1] - 1, device=device),
            past_key_values=lent(prefix.cache, owner),
            use_cache=True,
        )
        logprobs.append(_scatter(chosen, later))
        if spread is not None:
            entropy.append(_scatter(spread, later))
    return torch.cat(logprobs, dim=1), mask, torch.cat(entropy, dim=1) if with_entropy else None


def is_checkpointed(model: nn.Module) -> bool:
    """Whether any part of the model recomputes its activations in the backward (only while training)."""
    return model.training and any(
        getattr(module, "gradient_checkpointing", False) or type(module).__name__ == "CheckpointWrapper"
        for module in model.modules()
    )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs go."""
    return next(model.parameters()).device


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def _padded(rows: Sequence[TokenIds], side: str = "right") -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=FILL_ID, padding_side=side)


def _length_mask(lengths: Sequence[int]) -> torch.Tensor:
    return torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.long)[:, None]


def _scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def _refuse_empty(prompts: Sequence[TokenIds]) -> None:
    empty = [i for i, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise InputError(
            "a prompt without a single token predicts nothing; start it with a BOS token or an instruction",
            [f"prompt {i} is empty" for i in empty],
        )
