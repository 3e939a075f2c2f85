"""Guidance for the first steps of pretraining: one head learns whose sentence a token is in.

Everything in the lab hangs on binding what is said to the person it is said of. Left to itself, a
model this small first learns to mix up the amounts and stays there for tens of millions of tokens;
shown for a hundred steps where to look, it binds them. Nothing of this is left in the trained model
but its weights.
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
    """For every token the position of its sentence's subject, up to and with the sentence's end; -1 where none is."""
    positions, subject = [], -1
    for place, (before, token) in enumerate(zip(["", *tokens], tokens, strict=False)):
        if token in NAMES and before in _BEFORE_A_SUBJECT:
            subject = place
        positions.append(subject)
        if token in _SENTENCE_ENDS:
            subject = -1
    return positions


def attention_loss(model, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> torch.Tensor:
    """Mean surprise, in nats, of the first layer's first head at finding each token's subject.

    Args:
        rows: (prompt, response) ids of the lab's tokenizer.
    """
    import torch

    from dartune.models.shared_prefix import device_of

    words, device = vocabulary(), device_of(model)
    texts = [[*prompt, *reply] for prompt, reply in rows]
    subjects = [subject_positions([words[i] for i in ids]) for ids in texts]
    width = max(map(len, texts))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in texts], device=device)
    where = torch.tensor([row + [-1] * (width - len(row)) for row in subjects], device=device)
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    first = model.model(ids, output_attentions=True).attentions[0][:, 0]
    model.set_attn_implementation(usual)
    found = first.gather(-1, where.clamp(min=0)[..., None])[..., 0]
    return -found.clamp(min=1e-6).log()[where >= 0].mean()
