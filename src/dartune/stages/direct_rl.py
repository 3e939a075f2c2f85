"""Stage: direct reinforcement learning of the target on its own solutions; the reward is 1 for a right answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from dartune.answers.checker import AnswerChecker
from dartune.answers.grading import grade_samples
from dartune.config.arm_config import direct_rl_settings
from dartune.config.arms import ARMS
from dartune.config.schema import DEFAULT_EXECUTION, DirectRLSettings, ExecutionConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.run_records import StepMetrics
from dartune.engines.base import Engine, Sample
from dartune.engines.distributed import engine_on
from dartune.models.lora import merge_lora
from dartune.run.cost import Cost
from dartune.run.files import append_jsonl, read_jsonl
from dartune.run.number_format import decimals, thousands
from dartune.stages.arm_training import dart_cost, keep_model, start_of
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.names import synthesis_stage, train_stage
from dartune.train.loop import train_from_config
from dartune.train.losses import group_advantages
from dartune.train.rl import CHECKPOINT_EVERY, PolicyObjective, evenly_spaced, total_cost, zero_variance

MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on generated tokens and seconds; training ends with the step that reaches one of them."""

    generated_tokens: float = float("inf")
    seconds: float = float("inf")


class DirectRLObjective(PolicyObjective):
    """The `Objective` of direct RL: reward 1 for a right answer, else 0.

    If the answer check fails (timeout, crash), the solution gets the mean reward of its group, so that its advantage
    is 0.
    """

    config: DirectRLSettings

    def __init__(self, *arguments: Any, checker: AnswerChecker, budget: Budget):
        """`arguments` are those of `PolicyObjective`."""
        super().__init__(*arguments)
        self.checker, self.budget = checker, budget
        self._tokens, self._seconds = 0, 0.0

    def prompt(self, row: Demonstration) -> str:
        return row.question

    def begin(self, step: int):
        self._began = time.monotonic()
        return super().begin(step)

    def score_samples(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, StepMetrics]:
        verdicts = grade_samples(rows, samples, self.renderer, self.checker)
        checked = [[right for _, right in group if right is not None] for group in verdicts]
        group_means = [mean(group) if group else 0.0 for group in checked]
        rewards = torch.tensor(
            [
                [mean_right if right is None else float(right) for _, right in group]
                for group, mean_right in zip(verdicts, group_means, strict=True)
            ]
        )
        flat = [(row, text, right) for row, group in zip(rows, verdicts, strict=True) for text, right in group]
        for row, text, right in evenly_spaced(flat):
            append_jsonl(
                self.samples_path,
                {"step": step + 1, "id": row.id, "question": row.question, "solution": text, "correct": right},
            )
        ids = [sample.ids for group in samples for sample in group]
        return group_advantages(rewards, 1.0), {
            "reward": float(rewards.mean()),
            "unjudged": mean(right is None for _, _, right in flat),
            "length": mean(map(len, ids)),
            "zero_variance": zero_variance(rewards),
        }

    def end(self, step: int) -> StepMetrics:
        row = super().end(step) | {"seconds": time.monotonic() - self._began}
        self._tokens += row["generated_tokens"]
        self._seconds += row["seconds"]
        row |= {"spent_tokens": self._tokens, "spent_seconds": self._seconds}
        if self._tokens >= self.budget.generated_tokens or self._seconds >= self.budget.seconds:
            row["stop"] = (
                f"{thousands(self._tokens)} tokens generated in {decimals(self._seconds, 0)} s: the budget is spent"
            )
        return row

    def discard_samples_after(self, step: int) -> None:
        """As in `PolicyObjective`; the budget spent up to `step` still counts."""
        metrics = self.samples_path.parent / "metrics.jsonl"
        spent = [row for row in read_jsonl(metrics) if row["step"] <= step] if step and metrics.exists() else []
        self._tokens = sum(row["generated_tokens"] for row in spent)
        self._seconds = sum(row["seconds"] for row in spent)
        super().discard_samples_after(step)


def train_directly(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    start: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    config: DirectRLSettings,
    learning_rate: float,
    budget: Budget,
    seed: int,
    folder: Path,
    *,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    on_step: Callable[[int, StepMetrics], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Train `model` on its own solutions of the demonstrations' questions until `budget` is spent.

    Continues from the checkpoints an interrupted call left in `folder`.
    """
    rows = [row for row in demonstrations if row.answer is not None]
    samples = folder / "samples.jsonl"

    def objective(trained: torch.nn.Module) -> DirectRLObjective:
        policy = engine_on(trained)
        arguments = rows, policy, start, renderer, config, seed, samples, execution
        return DirectRLObjective(*arguments, checker=checker, budget=budget)

    model, history = train_from_config(
        model,
        objective,
        config,
        folder,
        seed=seed,
        steps=MOST_STEPS,
        learning_rate=learning_rate,
        decay=0.0,
        checkpoint_every=CHECKPOINT_EVERY,
        execution=execution,
        on_step=on_step,
    )
    return merge_lora(model), total_cost(history)


class DirectRL(Stage):
    """Direct RL on the target for what `dart` took, at one learning rate."""

    def __init__(self, context: StageContext, arm: str, seed: int, learning_rate: float):
        super().__init__(context, train_stage(arm, seed, learning_rate))
        self.arm, self.seed, self.learning_rate = arm, seed, learning_rate
        self.by_tokens = ARMS[arm].budget == "tokens"

    @cached_property
    def limit(self) -> float:
        """Generated tokens, or seconds, that the arm may spend."""
        spent = dart_cost(self.context, self.seed)
        return ARMS[self.arm].times * (spent.generated_tokens if self.by_tokens else spent.seconds)

    def inputs(self) -> StageInputs:
        context, dart = self.context, synthesis_stage("dart", self.seed)
        return {
            "data": context.key("data"),
            "target": start_of(context, self.arm, self.seed)[1],
            "direct_rl": direct_rl_settings(context.config).model_dump(),
            # Tokens are the same in every run of a config, seconds are not: what dart was is what counts.
            "budget": self.limit if self.by_tokens else [ARMS[self.arm].times, context.key(dart)],
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "max_new_tokens": context.config.evaluate.max_new_tokens,
        }

    def run(self, folder: Path) -> Cost:
        context, models, config = self.context, self.context.models, direct_rl_settings(self.context.config)
        start, _ = start_of(context, self.arm, self.seed)
        budget = Budget(generated_tokens=self.limit) if self.by_tokens else Budget(seconds=self.limit)
        unit = "generated_tokens" if self.by_tokens else "seconds"
        spent = "spent_tokens" if self.by_tokens else "spent_seconds"
        with context.progress(round(self.limit), self.name) as progress:

            def on_step(step: int, row: StepMetrics) -> None:
                progress.advance_to(round(row[spent]), last=max(1, round(row[unit])), reward=row["reward"])

            model, cost = train_directly(
                models.to_train(start, config),
                context.data.train,
                models.frozen(start),
                models.renderer,
                context.checker,
                config,
                self.learning_rate,
                budget,
                self.seed,
                folder,
                execution=context.config.execution,
                on_step=context.trackers.follow(self.name, folder, on_step),
            )
        return cost + keep_model(context, model, folder)
