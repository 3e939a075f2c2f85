"""Log-probabilities of chosen tokens, computed in slices of the vocabulary.

With a vocabulary of 150,000 the logits of a batch are many times larger than all its activations. Here the forward runs
up to the head (the output layer) and returns the head's input. The logits of one vocabulary slice at a time are
computed, reduced and freed, and computed again in the backward. Slices of positions would work too, but then the head's
weights, the largest of the model, would be read once per slice instead of once per batch.

Shapes use these letters: M positions, H hidden size, V tokens in the vocabulary, W tokens in a slice, N rows of S
tokens.
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

from dartune.models.language_model import LanguageModel

# Most logits (positions x vocabulary tokens) that are held at a time. More on a GPU, which small products leave idle.
CPU_LOGITS, GPU_LOGITS = 2**20, 2**25
# A matrix product with fewer columns than MIN_SLICE is slow, and so is one whose width is not a multiple of
# SLICE_MULTIPLE, because its rows are not aligned.
MIN_SLICE, SLICE_MULTIPLE = 256, 64


def chosen_logprobs(
    model: nn.Module,
    keep: torch.Tensor,
    targets: torch.Tensor,
    with_entropy: bool,
    temperature: float = 1.0,
    **inputs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns log softmax(logits / temperature)[target] and, if requested, the entropy, in float32 and nats.

    Args:
        model: the model, with or without a wrapper such as DDP.
        keep: the positions whose logits predict `targets`, bool, (N, S), on the CPU.
        targets: token ids, (M,).
        with_entropy: also return the entropy of the predictive distribution.
        temperature: the temperature at which the tokens were sampled.
        inputs: arguments of the model's forward.

    Returns:
        The log-probabilities with gradient, (M,); the entropy without gradient, (M,), or None.
    """
    head = _output_layer(model)
    small = head is None or len(targets) * len(head.weight) <= _max_logits(head.weight)
    if head is None or small or not _head_returns_logits(model, head):
        logits = model(logits_to_keep=keep.to(targets.device), **inputs).logits  # (M, V)
        return token_logprobs(logits, targets, with_entropy, temperature)
    hidden, dtype = _head_inputs(model, head, keep, inputs)
    bias = head.bias
    if temperature != 1.0:  # the head is linear: dividing its input divides the logits
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
    return _SlicedLogprobs.apply(hidden.to(dtype), head.weight, bias, targets, with_entropy)


class _SlicedLogprobs(torch.autograd.Function):
    """log softmax(hidden @ weight.T + bias)[target] and, without gradient, the entropy.

    Shapes: hidden (M, H), weight (V, H), bias (V,) or None, targets (M,); both results (M,), float32.

    With z the logits and p their softmax, the entropy is logsumexp(z) - sum(p * z). Both terms are combined from the
    slices: a slice contributes its own logsumexp and its own mean logit.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, targets, with_entropy):
        slice_normalisers, slice_means, buffer = [], [], None  # (M,) per slice
        chosen = torch.zeros(len(hidden), device=hidden.device)
        for low, logits in _logit_slices(hidden, weight, bias):
            index, in_slice = _slice_index(targets, low, logits)
            chosen += logits.gather(-1, index)[:, 0] * in_slice
            largest = logits.amax(dim=-1)
            logits.sub_(largest[:, None])  # so that `exp` cannot overflow
            if with_entropy:
                # The logits are needed again below, so `exp` goes into a buffer that all slices share.
                buffer = torch.empty_like(logits).flatten() if buffer is None else buffer
                weights = torch.exp(logits, out=buffer[: logits.numel()].view(logits.shape))
            else:
                weights = logits.exp_()
            total = weights.sum(dim=-1)
            slice_normalisers.append(total.log() + largest)
            if with_entropy:
                slice_means.append(weights.mul_(logits).sum(dim=-1) / total + largest)
        normalisers = torch.stack(slice_normalisers)  # (slices, M)
        normaliser = normalisers.logsumexp(dim=0)
        entropy = None
        if with_entropy:
            slice_shares = (normalisers - normaliser).exp()  # probability of each slice
            entropy = normaliser - (slice_shares * torch.stack(slice_means)).sum(dim=0)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        if with_entropy:
            ctx.mark_non_differentiable(entropy)
        return chosen - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: Any):
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # float32, because it is a sum over all slices.
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        weight_grad = torch.empty_like(weight) if needs_weight else None
        bias_grad = torch.empty_like(bias) if needs_bias else None
        for low, logits in _logit_slices(hidden, weight, bias):
            index, in_slice = _slice_index(targets, low, logits)
            # d log p(target) / d logits = one-hot(target) - p, (M, W).
            logit_grad = logits.sub_(normaliser[:, None]).exp_().mul_(-gradient[:, None])
            logit_grad.scatter_add_(-1, index, (gradient * in_slice)[:, None])
            tokens, logit_grad = slice(low, low + logit_grad.shape[1]), logit_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad += logit_grad @ weight[tokens].to(hidden.dtype)
            if weight_grad is not None:
                weight_grad[tokens] = logit_grad.T @ hidden
            if bias_grad is not None:
                bias_grad[tokens] = logit_grad.sum(dim=0)
        return hidden_grad, weight_grad, bias_grad, None, None


def _logit_slices(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields the first token id of each slice and its logits at all positions, (M, W), in float32.

    The caller may overwrite the logits. All slices share one buffer, so they are valid until the next slice. If each
    slice were allocated and freed instead, a fragmented allocator could end up holding the memory of all of them.
    """
    max_tokens = _max_logits(hidden) // len(hidden) // SLICE_MULTIPLE * SLICE_MULTIPLE
    width = min(len(weight), max(MIN_SLICE, max_tokens))
    buffer = hidden.new_empty(len(hidden) * width)
    float_buffer = buffer if buffer.dtype == torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
    for low in range(0, len(weight), width):
        rows = weight[low : low + width].to(hidden.dtype)  # (W, H)
        size, shape = len(hidden) * len(rows), (len(hidden), len(rows))
        logits = buffer[:size].view(shape)
        if bias is None:
            torch.mm(hidden, rows.T, out=logits)
        else:
            torch.addmm(bias[low : low + width].to(hidden.dtype), hidden, rows.T, out=logits)
        yield low, logits if float_buffer is buffer else float_buffer[:size].view(shape).copy_(logits)


def _slice_index(targets: torch.Tensor, low: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the targets' indices within a slice, clamped to it, (M, 1), and whether they are inside it, (M,)."""
    index = targets - low
    return index.clamp(0, logits.shape[1] - 1)[:, None], (index >= 0) & (index < logits.shape[1])


def _max_logits(weights: torch.Tensor) -> int:
    return GPU_LOGITS if weights.is_cuda else CPU_LOGITS


def max_positions(weights: torch.Tensor) -> int:
    """Returns the most positions whose logits are held at a time, from the head's weights or any tensor (V, ...)."""
    return max(1, _max_logits(weights) // weights.shape[0])


def _output_layer(model: nn.Module) -> nn.Linear | None:
    """Returns the model's output layer if it is a plain linear layer and not sharded; None otherwise."""
    if is_sharded(model):
        return None
    head = _unwrapped(model).get_output_embeddings()
    return head if type(head) is nn.Linear else None


def _unwrapped(model: LanguageModel) -> LanguageModel:
    while hasattr(model, "module"):  # DDP
        model = model.module
    return model


_HEAD_RETURNS_LOGITS: MutableMapping[nn.Module, bool] = WeakKeyDictionary()


def _head_returns_logits(model: nn.Module, head: nn.Linear) -> bool:
    """Returns whether the head's output equals the model's logits; checked by a short forward, once per head.

    Some architectures scale the head's output or apply a soft cap.
    """
    if head not in _HEAD_RETURNS_LOGITS:
        outputs: list[Any] = []
        hook = head.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            # Without dropout, which would consume random numbers: a resumed run makes this check at another step than
            # an uninterrupted one, and the two would diverge.
            with torch.no_grad(), eval_mode(_unwrapped(model)):
                ids = torch.arange(min(8, head.weight.shape[0]), device=head.weight.device)[None]
                logits = _unwrapped(model)(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        same = outputs[0].shape == logits.shape and torch.equal(outputs[0].float(), logits.float())
        _HEAD_RETURNS_LOGITS[head] = same
    return _HEAD_RETURNS_LOGITS[head]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode within the context; afterwards every module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_sharded(model: nn.Module) -> bool:
    """Returns whether the model's weights are sharded over processes (FSDP2)."""
    return any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


def _head_inputs(
    model: nn.Module, head: nn.Linear, keep: torch.Tensor, inputs: dict[str, Any]
) -> tuple[torch.Tensor, torch.dtype]:
    """Returns the head's inputs at the kept positions, (M, H), and the dtype in which the head would compute."""
    captured: list[tuple[torch.Tensor, torch.dtype]] = []
    # Indices instead of a mask: indexing with a mask waits for the device in the forward and in the backward.
    positions = keep.flatten().nonzero()[:, 0].to(head.weight.device)  # (M,)

    def capture(_: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        device, hidden = args[0].device.type, args[0].flatten(0, -2).index_select(0, positions)
        autocast = torch.is_autocast_enabled(device)
        captured.append((hidden, torch.get_autocast_dtype(device) if autocast else head.weight.dtype))
        return (hidden[:1],)  # the head itself computes the logits of one position only

    hook = head.register_forward_pre_hook(capture)
    try:
        model(**inputs)
    finally:
        hook.remove()
    return captured[0]


def token_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, with_entropy: bool = False, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns log softmax(logits / temperature)[target] and, without gradient, the entropy, in float32 and nats.

    Shapes: logits (M, V), targets (M,); both results (M,).

    Many positions are processed in chunks, whose float32 copies of the logits are recomputed in the backward.
    """
    size = max_positions(logits.T)
    if len(logits) <= size:
        return _token_logprobs(logits, targets, with_entropy, temperature)
    chunks = [
        checkpoint(_token_logprobs, rows, ids, with_entropy, temperature, use_reentrant=False)
        if logits.requires_grad
        else _token_logprobs(rows, ids, with_entropy, temperature)
        for rows, ids in zip(logits.split(size), targets.split(size), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
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
        # The entropy is logsumexp(z) - sum(p * z), with z the logits and p their softmax.
        mean_logit = ((logits - normaliser[:, None]).exp() * logits).sum(dim=-1)
        return logprobs, normaliser - mean_logit
