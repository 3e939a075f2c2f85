"""Supervised fine-tuning on the response tokens and the end token, with cross-entropy, DFT, ASFT or STM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dartune import distributed
from dartune.config.schema import DEFAULT_EXECUTION, ExecutionConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.engines.logprobs import anchored_logprobs, sequence_logprobs
from dartune.errors import InputError
from dartune.models.flops import FORWARD, TRAINING, multiplied_weights
from dartune.models.loading import context_length
from dartune.models.lora import merge_lora
from dartune.run.cost import Cost
from dartune.train.loop import shuffled_rows, train_from_config
from dartune.train.losses import asft, cross_entropy, dft, selected_tokens
from dartune.train.memory import max_forward_tokens
from dartune.train.microbatches import split_by_tokens

CHECKPOINT_EVERY = 50
"""Steps between checkpoints if the config does not set them."""
Loss = Literal["ce", "dft", "asft", "stm"]
ANCHORED = ("asft", "stm")
"""Losses that read every row with the untrained target, too."""
Row = tuple[list[int], list[int]]
"""Token ids of prompt and response."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Rows of a step that go through one forward and backward.

    Args:
        rows: N rows, the longest response of T tokens.
        tokens: trained tokens of the whole step, over all microbatches.
        selected: the tokens to train on, bool, (N, T); None for all.
    """

    rows: list[Row]
    tokens: int
    selected: torch.Tensor | None = None


class SFTObjective:
    """The `Objective` of fine-tuning on (question, solution) rows; the rows of a step depend on step and seed."""

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
        until: Callable[[int], str | None] | None = None,
    ):
        """Tokenises the rows.

        Args:
            rows: (question, solution) texts.
            renderer: chat template and tokenizer.
            batch_size: rows per step.
            seed: seed of the order of rows.
            context: the model's context length in tokens.
            microbatch_tokens: most padded tokens of a forward and backward.
            loss: the loss.
            anchor: the untrained target, for `asft` and `stm`.
            until: called with the number of finished steps; a returned reason ends the training.

        Raises:
            InputError: there are no rows, or rows do not fit the context; all of these are listed.
        """
        self.renderer = renderer
        self.rows = [(renderer.prompt_ids(question), renderer.response_ids(solution)) for question, solution in rows]
        too_long = [i for i, row in enumerate(self.rows) if _length(row) > context]
        if not rows or too_long:
            raise InputError(
                "training rows do not fit the context length" if rows else "there are no rows to train on",
                [f"row {i + 1}: {_length(self.rows[i])} tokens, the context is {context}" for i in too_long],
            )
        self.batch_size, self.seed = min(batch_size, len(rows)), seed
        self.microbatch_tokens = microbatch_tokens
        self.loss_name, self.anchor, self.until = loss, anchor, until

    def begin(self, step: int) -> list[Microbatch]:
        rows = [self.rows[i] for i in shuffled_rows(len(self.rows), self.batch_size, step, self.seed)]
        # Sorted, so that padding is short and each process gets rows of all lengths.
        rows.sort(key=_length)
        self._trained_tokens = sum(len(response) for _, response in rows)
        self._read_tokens = sum(map(_length, rows))
        batches = split_by_tokens(distributed.shard(rows), _padded_tokens, self.microbatch_tokens)
        if self.loss_name != "stm":
            return [Microbatch(batch, self._trained_tokens) for batch in batches]
        selected = [self._selected(batch) for batch in batches]
        tokens = distributed.all_reduce({"tokens": sum(int(part.sum()) for part in selected)})["tokens"]
        self._trained_tokens = int(tokens)
        # If the step has no token to train on, its loss is 0.
        return [
            Microbatch(batch, max(1, self._trained_tokens), part) for batch, part in zip(batches, selected, strict=True)
        ]

    @torch.no_grad()
    def _selected(self, rows: list[Row]) -> torch.Tensor:
        """Returns the tokens that STM trains on, bool, (N, T)."""
        assert self.anchor is not None
        return selected_tokens(*sequence_logprobs(self.anchor, rows))

    def largest_microbatch(self) -> Microbatch:
        # Rows that are shorter than the longest can make a larger microbatch, if they fill the limit better. Each row
        # appears twice, because a step that spans two epochs can have a row twice.
        rows = sorted([*self.rows, *self.rows], key=_length, reverse=True)
        rows_per_process = math.ceil(self.batch_size / distributed.world_size())

        def rows_that_fit(first: int) -> int:
            return max(1, min(rows_per_process, self.microbatch_tokens // _length(rows[first]), len(rows) - first))

        first = max(range(len(rows)), key=lambda i: rows_that_fit(i) * _length(rows[i]))
        largest = rows[first : first + rows_that_fit(first)]
        return Microbatch(largest, sum(len(response) for _, response in largest))

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        rows, tokens = microbatch.rows, microbatch.tokens
        if self.loss_name == "asft":
            assert self.anchor is not None
            logprobs, kl, mask = anchored_logprobs(model, self.anchor, rows)
            return asft(logprobs, kl, mask, tokens)
        logprobs, mask = sequence_logprobs(model, rows)
        if microbatch.selected is not None:
            mask = microbatch.selected
        return (dft if self.loss_name == "dft" else cross_entropy)(logprobs, mask, tokens)

    def shown(self, microbatch: Microbatch) -> list[dict[str, Any]]:
        decode = self.renderer.tokenizer.decode
        return [{"prompt": decode(prompt), "response": decode(response)} for prompt, response in microbatch.rows]

    def end(self, step: int) -> dict[str, Any]:
        row: dict[str, Any] = {"trained_tokens": self._trained_tokens, "read_tokens": self._read_tokens}
        reason = self.until(step + 1) if self.until else None
        return row | ({"stop": reason} if reason else {})


def _length(row: Row) -> int:
    return len(row[0]) + len(row[1])


def _padded_tokens(rows: Sequence[Row]) -> int:
    """Returns the tokens of a forward over the rows, including padding."""
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
    until: Callable[[torch.nn.Module, int], str | None] | None = None,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Fine-tunes `model` on (question, solution) rows, all weights or with LoRA (merged at the end).

    Args:
        model: the model to train, in place.
        rows: (question, solution) texts.
        renderer: chat template and tokenizer.
        config: the config section.
        learning_rate: the learning rate after warm-up.
        seed: seed of the order of rows, the LoRA initialisation and dropout.
        folder: metrics and checkpoints; an interrupted call is continued from its last checkpoint.
        loss: `ce` (cross-entropy), `dft`, `asft` or `stm`.
        anchor: the untrained target, for `asft` and `stm`.
        until: called with the model in training and the number of finished steps; a returned reason ends the training.
        execution: how the training is executed.
        on_step: called with the number of finished steps and the metrics of the last one.

    Returns:
        The trained model and the cost of its training.

    Raises:
        InputError: there are no rows, or rows do not fit the context.
        MachineError: the loss or the gradient is not finite.
    """

    def objective(trained: torch.nn.Module) -> SFTObjective:
        context, limit = context_length(trained), max_forward_tokens(trained, execution.microbatch_tokens)
        ends = partial(until, trained) if until else None
        return SFTObjective(rows, renderer, config.batch_size, seed, context, limit, loss, anchor, ends)

    model, history = train_from_config(
        model,
        objective,
        config,
        folder,
        seed=seed,
        steps=config.steps,
        learning_rate=learning_rate,
        checkpoint_every=CHECKPOINT_EVERY,
        execution=execution,
        on_step=on_step,
    )
    flops_per_token = (TRAINING + (FORWARD if loss in ANCHORED else 0)) * multiplied_weights(model)
    flops = flops_per_token * sum(row["read_tokens"] for row in history)
    return merge_lora(model), Cost(trained_tokens=sum(row["trained_tokens"] for row in history), flops=flops)
