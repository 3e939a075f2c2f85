"""Log-probabilities of chosen tokens without ever holding all logits: the head is applied to a slice of the vocabulary
at a time.

A vocabulary of 150,000 makes the logits of a batch many times larger than all its activations. The forward runs up to
the head, whose input is taken; each slice's logits are made, summed up and dropped, and made again in the backward. The
head's weights are the largest there are, and are read once a batch, not once for every few positions.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Most logits (positions x words) that are held at a time; more on a GPU, which many small products would leave idle.
CPU_LOGITS, GPU_LOGITS = 2**21, 2**25
# A product with fewer columns than this is slow.
FEWEST_WORDS = 256


def chosen_logprobs(
    model: nn.Module, keep: torch.Tensor, targets: torch.Tensor, with_entropy: bool, **inputs: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log softmax(logits)[target] at M positions, and the entropy there, in float32 and nats, with gradient.

    Args:
        keep: the positions whose logits predict `targets`, bool, (N, S).
        targets: token ids, (M,).
        inputs: of the model's forward.
    """
    head = _head(model)
    few = head is None or len(targets) * len(head.weight) <= _most_logits(head.weight)
    if few or not _gives_the_logits(model, head):
        return token_logprobs(model(logits_to_keep=keep, **inputs).logits, targets, with_entropy)
    hidden, dtype = _up_to_the_head(model, head, keep, inputs)
    return _sliced_logprobs(head, hidden, targets, with_entropy, dtype)


def _sliced_logprobs(
    head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor, with_entropy: bool, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    words = max(FEWEST_WORDS, _most_logits(hidden) // len(hidden))
    weights = head.weight.split(words)  # views, whose gradients are put together at once
    biases = [None] * len(weights) if head.bias is None else head.bias.split(words)
    slices = []
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        inputs = (hidden, weight, bias, targets - i * words, with_entropy, dtype)
        again = hidden.requires_grad or weight.requires_grad
        slices.append(checkpoint(_slice, *inputs, use_reentrant=False) if again else _slice(*inputs))
    normalisers, chosen, expected = (torch.stack(parts) for parts in zip(*slices, strict=True))  # (slices, M) each
    normaliser = normalisers.logsumexp(dim=0)
    logprobs = chosen.sum(dim=0) - normaliser
    if not with_entropy:
        return logprobs, None
    return logprobs, normaliser - ((normalisers - normaliser).exp() * expected).sum(dim=0)


def _slice(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    with_entropy: bool,
    dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of some words' logits at M positions: log sum exp, the target's (0 if it is none of them), their mean.

    The mean is by the words' own softmax.

    Args:
        hidden: (M, hidden size); weight: of W words, (W, hidden size); targets: counted from the first of them, (M,).
    """
    with _casting(hidden, dtype):
        logits = nn.functional.linear(hidden, weight, bias).float()
    here = (targets >= 0) & (targets < len(weight))
    chosen = logits.gather(-1, targets.clamp(0, len(weight) - 1)[:, None])[:, 0] * here
    if torch.is_grad_enabled() or with_entropy:
        normaliser = logits.logsumexp(dim=-1)
        expected = ((logits - normaliser[:, None]).exp() * logits).sum(dim=-1) if with_entropy else normaliser
        return normaliser, chosen, expected
    largest = logits.amax(dim=-1, keepdim=True)
    normaliser = logits.sub_(largest).exp_().sum(dim=-1).log_() + largest[:, 0]  # in place, unlike `logsumexp`
    return normaliser, chosen, normaliser


def _most_logits(weights: torch.Tensor) -> int:
    return GPU_LOGITS if weights.is_cuda else CPU_LOGITS


def rows_at_once(weights: torch.Tensor) -> int:
    """Positions whose logits may be held at a time, by the head's weights (V, ...)."""
    return max(1, _most_logits(weights) // weights.shape[0])


def _head(model: nn.Module) -> nn.Linear | None:
    """The last layer, where it is an ordinary one and its weights are in this process."""
    if is_sharded(model):
        return None
    head = _unwrapped(model).get_output_embeddings()
    return head if type(head) is nn.Linear else None


def _unwrapped(model: nn.Module) -> nn.Module:
    while hasattr(model, "module"):  # DDP, DeepSpeed
        model = model.module
    return model


_GIVES_THE_LOGITS: MutableMapping[nn.Module, bool] = WeakKeyDictionary()


def _gives_the_logits(model: nn.Module, head: nn.Linear) -> bool:
    """Whether the head's output is the model's logits as they are, found out by a short forward, once for a head.

    Some architectures scale it, or bend it towards a limit.
    """
    if head not in _GIVES_THE_LOGITS:
        given: list[torch.Tensor] = []
        hook = head.register_forward_hook(lambda module, inputs, output: given.append(output))
        try:
            with torch.no_grad():
                ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
                logits = _unwrapped(model)(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        _GIVES_THE_LOGITS[head] = given[0].shape == logits.shape and torch.equal(given[0].float(), logits.float())
    return _GIVES_THE_LOGITS[head]


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are spread over processes (FSDP2)."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def _up_to_the_head(
    model: nn.Module, head: nn.Linear, keep: torch.Tensor, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.dtype | None]:
    """What the head is given at the kept positions, (M, hidden), and what it computes in under autocast."""
    taken: list[tuple[torch.Tensor, torch.dtype | None]] = []

    def take(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        device, hidden = args[0].device.type, args[0].flatten(0, -2)
        taken.append((hidden, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None))
        return (hidden[:1],)

    hook = head.register_forward_pre_hook(take)
    try:
        model(logits_to_keep=keep, **inputs)
    finally:
        hook.remove()
    return taken[0]


def _casting(hidden: torch.Tensor, dtype: torch.dtype | None) -> Any:
    return torch.autocast(hidden.device.type, dtype=dtype) if dtype else nullcontext()


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, with_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log softmax(logits)[target] and the entropy, in float32 and nats, for logits (M, V) and targets (M,).

    Large vocabularies are worked off in chunks whose float32 copies are recomputed in the backward.
    """
    size = rows_at_once(logits.T)
    if len(logits) <= size:
        return _token_logprobs(logits, targets, with_entropy)
    parts = [
        checkpoint(_token_logprobs, rows, ids, with_entropy, use_reentrant=False)
        if logits.requires_grad
        else _token_logprobs(rows, ids, with_entropy)
        for rows, ids in zip(logits.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _token_logprobs(logits, targets, with_entropy):
    logits = logits.float()
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    if not with_entropy:
        return logprobs, None
    expected = ((logits - normaliser[:, None]).exp() * logits).sum(dim=-1)
    return logprobs, normaliser - expected
