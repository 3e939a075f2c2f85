"""Stage: fine-tune the target on the rows of an arm, at one learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from dartune.config.arms import ARMS
from dartune.config.schema import SFTConfig
from dartune.data.adapted_dataset import VIEWS
from dartune.data.row_store import open_rows, select_rows
from dartune.data.run_records import AdaptedRow
from dartune.lab import source as lab
from dartune.run.cost import Cost
from dartune.run.progress import follow
from dartune.stages.arm_training import keep_model, start_of
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import greedy_stage, own_stage, renewed_stage, synthesis_stage, train_stage

Pairs = list[tuple[str, str]]


def training_rows(context: StageContext, arm: str, seed: int) -> tuple[Pairs, str]:
    """(question, solution) rows an arm is fine-tuned on, and the key of the stage they come from."""
    source = ARMS[arm].rows
    if source == "demonstrations":
        return [(row.question, row.solution) for row in context.data.train], context.key("data")
    if source == "gold":
        gold = lab.native_solutions(context.config.target.path, context.data.train)
        return [(row.question, row.solution) for row in gold], context.key("data")
    if source in ("own", "greedy"):
        name = own_stage(arm, seed) if source == "own" else greedy_stage()
        rows = open_rows(context.folder(name) / "rows.jsonl")
        return [(row["question"], text) for row in rows for text in row["solutions"]], context.key(name)
    assert source is not None  # such an arm is not fine-tuned
    name = renewed_stage(arm, seed) if ARMS[arm].renewed else synthesis_stage(source, seed)
    wanted = VIEWS[ARMS[arm].view].provenances
    rows = open_rows(context.folder(name) / "rows.jsonl")
    rows = select_rows(rows, np.flatnonzero([row["provenance"] in wanted for row in rows]))
    if share := ARMS[arm].select:
        rows = select_by_gain(rows, share)
    pairs = [(row["question"], row["solution"]) for row in rows]
    if ARMS[arm].augment:
        pairs += [(row["question"], text) for row in rows for text in row["alternatives"]]
    return pairs, context.key(name)


def _gain(row: AdaptedRow) -> float:
    """The gain in alignment of a row that was not dropped."""
    after = row["alignment_after"]
    assert after is not None
    return after - row["alignment_before"]


def select_by_gain(rows: Sequence[AdaptedRow], share: float) -> Sequence[AdaptedRow]:
    """The adapted rows with the most gain in alignment, in their order, up to a share of all tokens.

    Alignment is a mean per token, so the gains of long and short rows can be compared.
    """
    loss_and_tokens = [(-_gain(row), len(row["ids"])) for row in rows]
    budget = share * sum(tokens for _, tokens in loss_and_tokens)
    chosen = np.zeros(len(rows), bool)
    for index in sorted(range(len(rows)), key=lambda index: loss_and_tokens[index][0]):
        tokens = loss_and_tokens[index][1]
        if tokens <= budget:
            budget -= tokens
            chosen[index] = True
    return select_rows(rows, np.flatnonzero(chosen))


class FineTune(Stage):
    """The target fine-tuned on an arm's rows; dev accuracy later chooses among the learning rates."""

    def __init__(self, context: StageContext, arm: str, seed: int, learning_rate: float):
        super().__init__(context, train_stage(arm, seed, learning_rate))
        self.arm, self.seed, self.learning_rate = arm, seed, learning_rate

    @cached_property
    def rows(self) -> tuple[Pairs, str]:
        """(question, solution) rows, and the key of the stage they come from."""
        return training_rows(self.context, self.arm, self.seed)

    @cached_property
    def settings(self) -> SFTConfig:
        """The config's `sft`, with as many steps as the arm gets."""
        settings, spec = self.context.config.sft, ARMS[self.arm]
        if spec.share < 1:
            settings = settings.model_copy(update={"steps": max(1, round(spec.share * settings.steps))})
        if not (other := spec.trains_as_much_as):
            return settings
        tokens = [self._mean_tokens(rows) for rows in (training_rows(self.context, other, self.seed)[0], self.rows[0])]
        return settings.model_copy(update={"steps": max(1, round(settings.steps * tokens[0] / tokens[1]))})

    def _mean_tokens(self, rows: Pairs) -> float:
        renderer = self.context.models.renderer
        return mean(len(renderer.response_ids(solution)) for _, solution in rows) if rows else 0.0

    def inputs(self) -> StageInputs:
        spec = ARMS[self.arm]
        return {
            "rows": self.rows[1],
            "target": start_of(self.context, self.arm, self.seed)[1],
            "sft": self.settings.model_dump(exclude={"learning_rates"}),
            "arm": {key: getattr(spec, key) for key in ("rows", "loss", "keep_original", "select", "augment")},
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "max_new_tokens": self.context.config.evaluate.max_new_tokens,
        }

    def run(self, folder: Path) -> Cost:
        context, models = self.context, self.context.models
        start, _ = start_of(context, self.arm, self.seed)
        model = models.to_train(start, self.settings)
        if not self.rows[0]:  # nothing to learn from: the target stays as it is
            return keep_model(context, model, folder)
        model, cost = self.train(model, folder)
        return cost + keep_model(context, model, folder)

    def train(
        self, model: Any, folder: Path, until: Callable[[Any, int], str | None] | None = None
    ) -> tuple[Any, Cost]:
        """Fine-tune `model` on the arm's rows; `until` can end the training (`train/sft.py`)."""
        from dartune.train.sft import ANCHORED, fine_tune

        context, models, loss = self.context, self.context.models, ARMS[self.arm].loss
        with context.progress(self.settings.steps, self.name) as progress:
            return fine_tune(
                model,
                self.rows[0],
                models.renderer,
                self.settings,
                self.learning_rate,
                self.seed,
                folder,
                loss=loss,
                anchor=models.target_engine.model if loss in ANCHORED else None,
                until=until,
                execution=context.config.execution,
                on_step=context.trackers.follow(self.name, folder, follow(progress, "loss")),
            )
