"""Log-probabilities of completions, with one forward per prompt for all completions that share it.

A first forward reads the prompts. Their keys and values are repeated for the completions, which follow in a second
forward. Gradients flow through the cache, so values and gradients equal those of a forward over prompt + completion, at
a fraction of the FLOPs.

Shapes use these letters: G prompts of at most P tokens, N rows (completions) of at most T response tokens and S tokens
in all, M response tokens over all rows, V tokens in the vocabulary.
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

from dartune.engines.base import TokenIds
from dartune.engines.kv_cache import expand_rows
from dartune.engines.sliced_head import chosen_logprobs, is_sharded, max_positions, token_logprobs
from dartune.errors import InputError
from dartune.models.device import device_of

# Padding. Any id of the vocabulary works, because the mask or the causal order hides the position.
FILL_ID = 0

# Fixed cost of one more forward and backward, in tokens; measured on a CPU.
CPU_FORWARD_OVERHEAD, GPU_FORWARD_OVERHEAD = 2**7, 2**12

Group = tuple[TokenIds, Sequence[TokenIds]]
"""A prompt and its completions."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The result of a forward over prompts, left-padded to P tokens.

    Args:
        cache: keys and values, a transformers `Cache` with one row per prompt.
        valid: False at padding, (G, P).
        lengths: tokens per prompt, (G,).
        logits: logits of the token after each prompt, (G, V).
    """

    cache: Any
    valid: torch.Tensor
    lengths: torch.Tensor
    logits: torch.Tensor


def group_logprobs(
    model: nn.Module, groups: Sequence[Group], *, with_entropy: bool = False, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns the log-probabilities, with gradient, of each group's completions given its prompt.

    Both forwards go through `model` itself: under DDP or FSDP pass the wrapped module, otherwise gradients are not
    synchronised. In training mode all completions of a group share the dropout of their prompt.

    Prompts are not shared in two cases, in which each row is read in full. Under activation (gradient) checkpointing,
    layers would be recomputed against a cache that has grown since, which silently gives wrong values (errors up to 1
    nat). For a sharded model, all processes must run the same number of forwards.

    Args:
        groups: (prompt, completions) token ids; N completions in all, the longest of T tokens.
        with_entropy: also return the entropy, without gradient, of the distribution that predicts each token.
        temperature: temperature of the distribution, the one at which the tokens were sampled.

    Returns:
        The log-probabilities in nats, float32, 0 outside the mask, (N, T); the mask, bool, (N, T); the entropy in
        nats, (N, T), or None.

    Raises:
        InputError: an empty prompt.
    """
    if is_checkpointed(model) or is_sharded(model):
        rows = [(prompt, completion) for prompt, completions in groups for completion in completions]
        return _plain_logprobs(model, rows, with_entropy, temperature)
    prefix = read_prompts(model, [prompt for prompt, _ in groups])
    owner = [g for g, (_, completions) in enumerate(groups) for _ in completions]
    completions = [completion for _, group in groups for completion in group]

    def read(batch: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return read_completions(
            model,
            prefix,
            [owner[i] for i in batch],
            [completions[i] for i in batch],
            with_entropy=with_entropy,
            temperature=temperature,
        )

    return _read_by_length([len(completion) for completion in completions], prefix.logits.device, read)


def _read_by_length(
    lengths: Sequence[int], device: torch.device, read: Callable[[Sequence[int]], tuple]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Calls `read` on batches of row indices of similar length, and returns the results in the order of the rows."""
    batches = batch_by_length(lengths, forward_overhead(device))
    if len(batches) <= 1:
        return read(range(len(lengths)))
    logprobs, mask, extra = map(partial(_restore_order, batches), zip(*map(read, batches), strict=True))
    return logprobs, mask, extra


def forward_overhead(device: torch.device) -> int:
    """Returns the fixed cost of one more forward, in tokens."""
    return CPU_FORWARD_OVERHEAD if device.type == "cpu" else GPU_FORWARD_OVERHEAD


def _restore_order(batches: Sequence[Sequence[int]], parts: Sequence[Any]) -> Any:
    """Joins (n, t) parts to one (N, T), padded with zeros: row k of part p becomes row `batches[p][k]`."""
    if parts[0] is None:
        return None
    width = max(part.shape[1] for part in parts)
    padded = torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
    source_rows = torch.empty(len(padded), dtype=torch.long)
    source_rows[[i for batch in batches for i in batch]] = torch.arange(len(padded))
    return padded[source_rows.to(padded.device)]


def batch_by_length(
    lengths: Sequence[int], forward_overhead: int, max_rows: Callable[[int], int] = lambda longest: sys.maxsize
) -> list[list[int]]:
    """Splits rows into batches at the least total cost, where each batch is padded to its longest row.

    The cost of a batch is its padded tokens plus `forward_overhead`. With rows sorted by length the best batches are
    contiguous, so dynamic programming over the first n rows finds the optimum.

    Args:
        lengths: tokens of each row.
        forward_overhead: fixed cost of a batch, in tokens.
        max_rows: the most rows of a batch, at least 1, given the length of its longest row.

    Returns:
        Row indices of each batch, shortest rows first; within a batch in ascending order.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    starts = torch.arange(len(order) + 1)
    # For the first n rows: their least cost, and the start of their last batch.
    least_cost, last_start = torch.zeros(len(order) + 1, dtype=torch.float64), [0]
    for n in range(1, len(order) + 1):
        longest = lengths[order[n - 1]]
        first = n - min(n, max_rows(longest))
        costs = least_cost[first:n] + (n - starts[first:n]) * longest + forward_overhead
        last_start.append(first + int(costs.argmin()))
        least_cost[n] = costs[last_start[n] - first]
    batches, end = [], len(order)
    while end:
        batches.append(sorted(order[last_start[end] : end]))
        end = last_start[end]
    return batches[::-1]


def sequence_logprobs(model: nn.Module, rows: Sequence[tuple[TokenIds, TokenIds]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the log-probabilities, with gradient, of each row's response given its prompt; no prompts are shared.

    Args:
        rows: (prompt, response) token ids; N rows, the longest response of T tokens.

    Returns:
        The log-probabilities in nats, float32, 0 outside the mask, (N, T); the mask, bool, (N, T).

    Raises:
        InputError: a prompt is empty, so nothing predicts the first response token.
    """
    if is_sharded(model):  # all processes must run the same number of forwards
        return _plain_logprobs(model, rows)[:2]

    def read(batch: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        return _plain_logprobs(model, [rows[i] for i in batch])

    lengths = [len(prompt) + len(response) for prompt, response in rows]
    return _read_by_length(lengths, device_of(model), read)[:2]


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
    """As `sequence_logprobs`, with the KL divergence of the model from `anchor` at every position.

    Returns:
        The log-probabilities, (N, T); KL(anchor || model) over the vocabulary in nats, with gradient, (N, T); the
        mask, (N, T).
    """
    inputs, keep, targets, mask = sequence_inputs(model, rows)
    keep = keep.to(targets.device)
    logits = model(logits_to_keep=keep, **inputs).logits  # (M, V)
    with torch.no_grad():
        anchor_logits = anchor(logits_to_keep=keep, **inputs).logits
    # In chunks whose float32 copies are recomputed in the backward, instead of (M, V) copies in float32 of both.
    size = max_positions(logits.T)
    chunks = [
        checkpoint(_kl_from_anchor, *chunk, use_reentrant=False)
        for chunk in zip(logits.split(size), anchor_logits.split(size), strict=True)
    ]
    return _scatter(token_logprobs(logits, targets)[0], mask), _scatter(torch.cat(chunks), mask), mask


def _kl_from_anchor(logits: torch.Tensor, anchor_logits: torch.Tensor) -> torch.Tensor:
    """Returns KL(anchor || model) at each position, (M,)."""
    logprobs, anchor_logprobs = logits.float().log_softmax(dim=-1), anchor_logits.float().log_softmax(dim=-1)
    return (anchor_logprobs.exp() * (anchor_logprobs - logprobs)).sum(dim=-1)


def sequence_inputs(
    model: nn.Module, rows: Sequence[tuple[TokenIds, TokenIds]]
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the inputs of a forward over rows of prompt and response.

    Returns:
        The model's inputs; the positions that predict the M response tokens, bool, (N, S), on the CPU, where they can
        be read without waiting for the device; the response tokens, row by row, (M,); the mask, bool, (N, T).

    Raises:
        InputError: a prompt is empty.
    """
    _check_not_empty([prompt for prompt, _ in rows])
    device = device_of(model)
    ids = _padded([[*prompt, *response] for prompt, response in rows])  # (N, S)
    mask = _length_mask([len(response) for _, response in rows])  # (N, T)
    starts = torch.tensor([len(prompt) for prompt, _ in rows])
    ends = starts + mask.sum(dim=1)
    column = torch.arange(ids.shape[1])
    response = (column >= starts[:, None]) & (column < ends[:, None])  # (N, S)
    device_ids = ids.to(device)
    # Padding is on the right, where the causal order hides it from all real tokens, so the mask is all ones.
    inputs = {"input_ids": device_ids, "attention_mask": torch.ones_like(device_ids), "use_cache": False}
    # A token is predicted by the position before it.
    return inputs, response.roll(-1, dims=1), ids[response].to(device), mask.to(device)


def read_prompts(model: nn.Module, prompts: Sequence[TokenIds]) -> Prefix:
    """Runs one forward over prompts; only the logits of the last position are computed.

    Prompts are left-padded, so that the last position is the last token of every prompt and completions follow it
    directly in the cache.
    """
    _check_not_empty(prompts)
    device = device_of(model)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = _padded(prompts, side="left")  # (G, P)
    positions = torch.arange(ids.shape[1]) - (ids.shape[1] - lengths[:, None])  # (G, P), negative at padding
    valid = (positions >= 0).to(device)
    output = model(
        input_ids=ids.to(device),
        attention_mask=valid,
        position_ids=positions.clamp(min=0).to(device),
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
    """Runs one forward over completions that continue the prompts of `prefix`, which is not changed.

    Args:
        model: the model that read the prompts.
        prefix: G prompts.
        owner: index into `prefix` of the prompt that each completion continues.
        completions: N token lists, the longest of T tokens.
        with_entropy: as in `group_logprobs`.
        temperature: as in `group_logprobs`.

    Returns:
        As `group_logprobs`.
    """
    device = prefix.logits.device
    cpu_mask = _length_mask([len(completion) for completion in completions])  # (N, T)
    mask = cpu_mask.to(device)
    if not cpu_mask.any():
        zeros = torch.zeros(mask.shape, device=device)
        return zeros, mask, zeros if with_entropy else None
    cpu_ids, cpu_later = _padded(completions), cpu_mask[:, 1:]
    ids = cpu_ids.to(device)  # (N, T)
    index = torch.tensor(owner, device=device)
    # The first token is predicted by the last position of the prompt, every later one by the token before it.
    first_logprobs = (prefix.logits.float() / temperature).log_softmax(dim=-1)  # (G, V)
    first, later = mask[:, 0], mask[:, 1:]  # (N,), (N, T - 1)
    logprobs = [(first_logprobs[index, ids[:, 0]] * first)[:, None]]
    entropies = [(_entropy(first_logprobs.detach())[index] * first)[:, None]] if with_entropy else []
    if ids.shape[1] > 1:
        # The last token predicts nothing, so the forward takes T - 1 tokens. Padding on the right needs no mask.
        later_logprobs, later_entropies = chosen_logprobs(
            model,
            cpu_later,
            cpu_ids[:, 1:][cpu_later].to(device),
            with_entropy,
            temperature,
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([prefix.valid[index], torch.ones_like(later)], dim=1),  # (N, P + T - 1)
            position_ids=prefix.lengths[index, None] + torch.arange(ids.shape[1] - 1, device=device),
            past_key_values=expand_rows(prefix.cache, owner),
            use_cache=True,
        )
        logprobs.append(_scatter(later_logprobs, later))
        if later_entropies is not None:
            entropies.append(_scatter(later_entropies, later))
    return torch.cat(logprobs, dim=1), mask, torch.cat(entropies, dim=1) if with_entropy else None


def is_checkpointed(model: nn.Module) -> bool:
    """Returns whether any module recomputes its activations in the backward; always False in evaluation mode."""
    return model.training and any(
        getattr(module, "gradient_checkpointing", False) or type(module).__name__ == "CheckpointWrapper"
        for module in model.modules()
    )


def _entropy(logprobs: torch.Tensor) -> torch.Tensor:
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def _padded(rows: Sequence[TokenIds], side: str = "right") -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=FILL_ID, padding_side=side)


def _length_mask(lengths: Sequence[int]) -> torch.Tensor:
    """Returns True at the first `lengths[i]` places of row i, (N, T)."""
    return torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.long)[:, None]


def _scatter(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns (N, T) with `values`, (M,), at the M places of the mask in row order, and 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_scatter(mask, values)


def _check_not_empty(prompts: Sequence[TokenIds]) -> None:
    empty = [i for i, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise InputError(
            "an empty prompt cannot predict the first token; start it with a BOS token or an instruction",
            [f"prompt {i} is empty" for i in empty],
        )
