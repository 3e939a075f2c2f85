"""Supervised fine-tuning on exactly the response tokens and the end token, by cross-entropy or a rival loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from dartune import processes
from dartune.config import LOCAL, ExecutionConfig, SFTConfig
from dartune.data.render import Renderer
from dartune.errors import InputError
from dartune.models.adapter import merge_lora
from dartune.models.flops import FORWARD, TRAINING, multiplied_weights
from dartune.models.loading import context_length
from dartune.models.memory import tokens_at_once
from dartune.models.shared_prefix import anchored_logprobs, sequence_logprobs
from dartune.run import Cost
from dartune.train.loop import shuffled_rows, train_as_set
from dartune.train.microbatches import cut
from dartune.train.objectives import asft, cross_entropy, dft

CHECKPOINT_EVERY = 50
"""Steps between checkpoints, unless the config says."""
Loss = Literal["ce", "dft", "asft"]
Row = tuple[list[int], list[int]]
Microbatch = tuple[list[Row], int]
"""(prompt, response) token ids, and the trained tokens of the whole step."""


class SFTObjective:
    """The `Objective` of fine-tuning on (question, solution) rows; step k's rows depend on k and the seed."""

    def __init__(
        self,
        rows: Sequence[tuple[str, str]],
        renderer: Renderer,
        batch_size: int,
        seed: int,
        context: int,
        microbatch_tokens: int,
        loss: Loss = "ce",
        anchor: torch.nn.Module | None = None,
    ):
        """`context` is the model's context length in tokens, `anchor` the untouched target (for `asft`).

        Raises:
            InputError: there is no row, or rows do not fit the context (all of them are named).
        """
        self.renderer = renderer
        self.rows = [(renderer.prompt_ids(question), renderer.response_ids(solution)) for question, solution in rows]
        long = [i for i, (prompt, reply) in enumerate(self.rows) if len(prompt) + len(reply) > context]
        if not rows or long:
            raise InputError(
                "the training rows cannot be used" if rows else "there is no row to train on",
                [f"row {i + 1}: {sum(map(len, self.rows[i]))} tokens, the model reads {context}" for i in long],
            )
        self.batch_size, self.seed = min(batch_size, len(rows)), seed
        self.microbatch_tokens = microbatch_tokens
        self.kind, self.anchor = loss, anchor

    def begin(self, step: int) -> list[Microbatch]:
        chosen = [self.rows[i] for i in shuffled_rows(len(self.rows), self.batch_size, step, self.seed)]
        chosen.sort(key=_length)
        self._tokens = sum(len(reply) for _, reply in chosen)
        self._read = sum(len(prompt) + len(reply) for prompt, reply in chosen)
        batches = cut(processes.share(chosen), _padded_tokens, self.microbatch_tokens)
        return [(batch, self._tokens) for batch in batches]

    def heaviest(self) -> Microbatch:
        # Where shorter rows fill the limit better than the longest do, they are the heavier. A step across two epochs
        # can have a row twice.
        rows = sorted([*self.rows, *self.rows], key=_length, reverse=True)
        share = math.ceil(self.batch_size / processes.count())

        def fitting(first: int) -> int:
            return max(1, min(share, self.microbatch_tokens // _length(rows[first]), len(rows) - first))

        first = max(range(len(rows)), key=lambda i: fitting(i) * _length(rows[i]))
        chosen = rows[first : first + fitting(first)]
        return chosen, sum(len(reply) for _, reply in chosen)

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        rows, tokens = microbatch
        if self.kind == "asft":
            logprobs, kl, mask = anchored_logprobs(model, self.anchor, rows)
            return asft(logprobs, kl, mask, tokens)
        logprobs, mask = sequence_logprobs(model, rows)
        return (dft if self.kind == "dft" else cross_entropy)(logprobs, mask, tokens)

    def shown(self, microbatch: Microbatch) -> list[dict[str, Any]]:
        spell = self.renderer.tokenizer.decode
        return [{"prompt": spell(prompt), "response": spell(reply)} for prompt, reply in microbatch[0]]

    def end(self, step: int) -> dict[str, Any]:
        return {"trained_tokens": self._tokens, "read_tokens": self._read}


def _length(row: Row) -> int:
    return len(row[0]) + len(row[1])


def _padded_tokens(rows: Sequence[Row]) -> int:
    return len(rows) * max(map(_length, rows))


def fine_tune(
    model: torch.nn.Module,
    rows: Sequence[tuple[str, str]],
    renderer: Renderer,
    config: SFTConfig,
    learning_rate: float,
    seed: int,
    folder: Path,
    *,
    loss: Loss = "ce",
    anchor: torch.nn.Module | None = None,
    execution: ExecutionConfig = LOCAL,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Fine-tune `model` on (question, solution) rows, fully or by LoRA (merged at the end).

    `loss` is cross-entropy, `dft` or `asft`; the last needs the untouched target as `anchor`.

    Continues from the checkpoints an interrupted call left in `folder`.
    """

    def objective(trained: torch.nn.Module) -> SFTObjective:
        context, limit = context_length(trained), tokens_at_once(trained, execution.microbatch_tokens)
        return SFTObjective(rows, renderer, config.batch_size, seed, context, limit, loss, anchor)

    model, history = train_as_set(
        model,
        objective,
        config,
        folder,
        seed=seed,
        steps=config.steps,
        learning_rate=learning_rate,
        weight_decay=config.weight_decay,
        checkpoint_every=CHECKPOINT_EVERY,
        execution=execution,
        on_step=on_step,
    )
    each = (TRAINING + (FORWARD if loss == "asft" else 0)) * multiplied_weights(model)
    flops = each * sum(row["read_tokens"] for row in history)
    return merge_lora(model), Cost(trained_tokens=sum(row["trained_tokens"] for row in history), flops=flops)
