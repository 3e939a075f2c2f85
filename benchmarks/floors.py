"""What cannot be done without: operations and bytes of a piece of work, and the forward pass that it comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dartune.engines.base import TokenIds
from dartune.models.device import device_of

ROW = 128  # tokens in a row of the bare forward
CPU_TOKENS = 1024  # tokens of one forward on a CPU, where more leaves the caches


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that a model reads, and those of them that it has to predict."""

    read: float
    predicted: float


def flops(model: nn.Module, work: Work) -> float:
    """Operations of a forward: two for each weight of the layers and token read, of the output and token predicted.

    Attention's own products are left out.
    """
    output = model.get_output_embeddings().weight
    held = {id(output), id(model.get_input_embeddings().weight)}
    layers = sum(weights.numel() for weights in model.parameters() if id(weights) not in held)
    return 2 * (layers * work.read + output.numel() * work.predicted)


def rl_flops(model: nn.Module, asked: float, read: float, generated: float, lora: bool) -> float:
    """Operations of a step of mapper training, each prompt read once.

    Sampling, the target's view, the start's view, and the update: a forward, and a backward of twice as much, or of as
    much where only an adapter is trained.

    Args:
        asked: tokens of the step's requests for a rewrite; read: of its questions alone; generated: of its rollouts.
    """
    policy, target = Work(asked + generated, generated), Work(read + generated, generated)
    return (2 + (2 if lora else 3)) * flops(model, policy) + flops(model, target)


def decode_bytes(model: nn.Module, prompts: Sequence[TokenIds], n: int, new: int) -> float:
    """Bytes that have to be read to sample `new` tokens `n` times a prompt.

    A step reads all weights, every prompt's keys and values once, and every sample's own.
    """
    config = model.config.get_text_config()
    size = next(model.parameters()).element_size()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
    weights = sum(one.numel() for one in model.parameters()) * size
    kept = sum(map(len, prompts)) + len(prompts) * n * (new - 1) / 2
    return new * (weights + token * kept)


def _rows(model: nn.Module, work: Work) -> list[torch.Tensor]:
    """As many tokens as `work` reads, in rows of `ROW` without padding."""
    count = max(1, round(work.read / ROW))
    ids = torch.randint(8, model.config.vocab_size, (count, ROW), device=device_of(model))
    return list(ids.split(CPU_TOKENS // ROW if ids.device.type == "cpu" else count))


@torch.no_grad()
def bare_forward(model: nn.Module, work: Work) -> None:
    """A forward over as many tokens and logits as `work` has, and nothing else: no padding, no mask, no softmax."""
    kept = max(1, round(ROW * work.predicted / work.read))
    for ids in _rows(model, work):
        model(input_ids=ids, use_cache=False, logits_to_keep=kept)


@torch.no_grad()
def layers_only(model: nn.Module, work: Work) -> None:
    """The same without the output layer: the model's own activations."""
    for ids in _rows(model, work):
        model.base_model(input_ids=ids, use_cache=False)
