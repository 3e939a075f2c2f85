"""Auxiliary attention loss for the first steps of pretraining: one head learns to attend to each sentence's subject.

Solving a lab problem requires binding each amount to the person that it belongs to. Without this loss, a model this
small first learns to mix up the amounts and stays on that plateau for tens of millions of tokens. With about a
hundred steps of supervised attention it learns the binding. The loss changes the weights only; the trained model is
an ordinary Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dartune.lab.tokenizer import ASSISTANT, USER, vocabulary
from dartune.lab.world import NAMES

if TYPE_CHECKING:
    import torch

_BEFORE_A_SUBJECT = frozenset((".", ",", ";", ":", "?", "need", "that", USER, ASSISTANT))
_SENTENCE_ENDS = frozenset((".", ",", ";"))


def subject_positions(tokens: Sequence[str]) -> list[int]:
    """For every token, the position of its sentence's subject; -1 where the sentence has none so far.

    A subject holds up to and including the token that ends the sentence.
    """
    positions, subject = [], -1
    for position, (previous, token) in enumerate(zip(["", *tokens], tokens, strict=False)):
        if token in NAMES and previous in _BEFORE_A_SUBJECT:
            subject = position
        positions.append(subject)
        if token in _SENTENCE_ENDS:
            subject = -1
    return positions


def attention_loss(model, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> torch.Tensor:
    """Mean negative log attention weight, in nats, from each token to its subject in the first head of the first layer.

    Args:
        rows: (prompt ids, response ids) of the lab's tokenizer.
    """
    import torch

    from dartune.models.device import device_of

    tokens_by_id, device = vocabulary(), device_of(model)
    sequences = [[*prompt, *reply] for prompt, reply in rows]
    subjects = [subject_positions([tokens_by_id[i] for i in ids]) for ids in sequences]
    width = max(map(len, sequences))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in sequences], device=device)  # (rows, tokens)
    positions = torch.tensor([row + [-1] * (width - len(row)) for row in subjects], device=device)  # (rows, tokens)
    # Only the eager implementation returns attention weights.
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attention = model.model(ids, output_attentions=True).attentions[0][:, 0]  # (rows, queries, keys)
    model.set_attn_implementation(implementation)
    on_subject = attention.gather(-1, positions.clamp(min=0)[..., None])[..., 0]  # (rows, tokens)
    return -on_subject.clamp(min=1e-6).log()[positions >= 0].mean()
