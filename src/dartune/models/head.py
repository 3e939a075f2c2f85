"""Log-probabilities of chosen tokens without ever holding all logits: the head is applied to a slice of the vocabulary
at a time.

A vocabulary of 150,000 makes the logits of a batch many times larger than all its activations. The forward runs up to
the head, whose input is taken; each slice's logits are made, summed up and dropped, and made again in the backward. The
head's weights are the largest there are, and are read once a batch, not once for every few positions.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Most logits (positions x words) that are held at a time; more on a GPU, which many small products would leave idle.
CPU_LOGITS, GPU_LOGITS = 2**20, 2**25
# A product with fewer columns than this is slow, and so is one whose rows begin at odd places.
FEWEST_WORDS, WHOLE_WORDS = 256, 64


def chosen_logprobs(
    model: nn.Module,
    keep: torch.Tensor,
    targets: torch.Tensor,
    with_entropy: bool,
    temperature: float = 1.0,
    **inputs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log softmax(logits / temperature)[target] at M positions with gradient, and the entropy there without, in float32
    and nats.

    Args:
        keep: the positions whose logits predict `targets`, bool, (N, S), on the CPU.
        targets: token ids, (M,).
        temperature: the one that the tokens were sampled at.
        inputs: of the model's forward.
    """
    head = _head(model)
    few = head is None or len(targets) * len(head.weight) <= _most_logits(head.weight)
    if few or not _gives_the_logits(model, head):
        logits = model(logits_to_keep=keep.to(targets.device), **inputs).logits
        return token_logprobs(logits, targets, with_entropy, temperature)
    hidden, dtype = _up_to_the_head(model, head, keep, inputs)
    bias = head.bias
    if temperature != 1.0:  # the head is linear: dividing its input divides the logits
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    return _SlicedLogprobs.apply(hidden.to(dtype), head.weight, bias, targets, with_entropy)


class _SlicedLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target] and, without gradient, the entropy.

    Shapes: hidden (M, H), weight (V, H), bias (V,) or None, targets (M,); both results (M,), float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, with_entropy):
        normalisers, means, spare = [], [], None
        chosen = torch.zeros(len(hidden), device=hidden.device)
        for low, logits in _slices(hidden, weight, bias):
            place, here = _places(targets, low, logits)
            chosen += logits.gather(-1, place)[:, 0] * here
            largest = logits.amax(dim=-1)
            logits.sub_(largest[:, None])
            if with_entropy:
                spare = torch.empty_like(logits).flatten() if spare is None else spare
                weights = torch.exp(logits, out=spare[: logits.numel()].view(logits.shape))
            else:
                weights = logits.exp_()
            total = weights.sum(dim=-1)
            normalisers.append(total.log() + largest)
            if with_entropy:
                means.append(weights.mul_(logits).sum(dim=-1) / total + largest)
        each = torch.stack(normalisers)  # (slices, M)
        normaliser = each.logsumexp(dim=0)
        entropy = normaliser - ((each - normaliser).exp() * torch.stack(means)).sum(dim=0) if with_entropy else None
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        if with_entropy:
            ctx.mark_non_differentiable(entropy)
        return chosen - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: Any):
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        hidden_needed, weight_needed, bias_needed = ctx.needs_input_grad[:3]
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if hidden_needed else None  # a sum over all slices
        of_weight = torch.empty_like(weight) if weight_needed else None
        of_bias = torch.empty_like(bias) if bias_needed else None
        for low, logits in _slices(hidden, weight, bias):
            place, here = _places(targets, low, logits)
            change = logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
            change.scatter_add_(-1, place, (gradient * here)[:, None])
            words, change = slice(low, low + change.shape[1]), change.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden += change @ weight[words].to(hidden.dtype)
            if of_weight is not None:
                of_weight[words] = change.T @ hidden
            if of_bias is not None:
                of_bias[words] = change.sum(dim=0)
        return of_hidden, of_weight, of_bias, None, None


def _slices(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Some words' logits at M positions after the other's: the first word, and (M, W) in float32.

    They may be written to, and are gone with the next slice, which takes over their memory: freed and asked for again,
    as much of it as all slices together may be held by an allocator that finds no place quite large enough.
    """
    most = _most_logits(hidden) // len(hidden) // WHOLE_WORDS * WHOLE_WORDS
    words = min(len(weight), max(FEWEST_WORDS, most))
    room = hidden.new_empty(len(hidden) * words)
    precise = room if room.dtype == torch.float32 else torch.empty_like(room, dtype=torch.float32)
    for low in range(0, len(weight), words):
        part = weight[low : low + words].to(hidden.dtype)
        size, shape = len(hidden) * len(part), (len(hidden), len(part))
        logits = room[:size].view(shape)
        if bias is None:
            torch.mm(hidden, part.T, out=logits)
        else:
            torch.addmm(bias[low : low + words].to(hidden.dtype), hidden, part.T, out=logits)
        yield low, logits if precise is room else precise[:size].view(shape).copy_(logits)


def _places(targets: torch.Tensor, low: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the targets are among a slice's words, (M, 1), and whether they are there at all, (M,)."""
    place = targets - low
    return place.clamp(0, logits.shape[1] - 1)[:, None], (place >= 0) & (place < logits.shape[1])


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
            # Without dropout: it would draw random numbers that a resumed run, which has another trial, does not.
            with torch.no_grad(), evaluating(_unwrapped(model)):
                ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
                logits = _unwrapped(model)(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        _GIVES_THE_LOGITS[head] = given[0].shape == logits.shape and torch.equal(given[0].float(), logits.float())
    return _GIVES_THE_LOGITS[head]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout; every module is put back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are spread over processes (FSDP2)."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def _up_to_the_head(
    model: nn.Module, head: nn.Linear, keep: torch.Tensor, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.dtype]:
    """What the head is given at the kept positions, (M, H), and what it would compute in."""
    taken: list[tuple[torch.Tensor, torch.dtype]] = []
    # Numbers instead of a mask, whose forward and backward would wait for the device.
    kept = keep.flatten().nonzero()[:, 0].to(head.weight.device)

    def take(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        device, hidden = args[0].device.type, args[0].flatten(0, -2).index_select(0, kept)
        casts = torch.is_autocast_enabled(device)
        taken.append((hidden, torch.get_autocast_dtype(device) if casts else head.weight.dtype))
        return (hidden[:1],)

    hook = head.register_forward_pre_hook(take)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return taken[0]


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, with_entropy: bool = False, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log softmax(logits / temperature)[target] and, without gradient, the entropy, in float32 and nats.

    Shapes: logits (M, V), targets (M,); both results (M,).

    Large vocabularies are worked off in chunks whose float32 copies are recomputed in the backward.
    """
    size = rows_at_once(logits.T)
    if len(logits) <= size:
        return _token_logprobs(logits, targets, with_entropy, temperature)
    parts = [
        checkpoint(_token_logprobs, rows, ids, with_entropy, temperature, use_reentrant=False)
        if logits.requires_grad
        else _token_logprobs(rows, ids, with_entropy, temperature)
        for rows, ids in zip(logits.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _token_logprobs(logits, targets, with_entropy, temperature):
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    normaliser = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
    if not with_entropy:
        return logprobs, None
    with torch.no_grad():
        expected = ((logits - normaliser[:, None]).exp() * logits).sum(dim=-1)
        return logprobs, normaliser - expected
