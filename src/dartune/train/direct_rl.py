"""Direct reinforcement learning of the target: its own solutions, paid for a right answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from dartune.config import LOCAL, DirectRLConfig, ExecutionConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.adapter import merge_lora
from dartune.models.engine import Engine, Sample
from dartune.models.parallel_engine import engine_on
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.solved import solved
from dartune.run import Cost, append_jsonl, read_jsonl
from dartune.train.loop import train_as_set
from dartune.train.objectives import group_advantages
from dartune.train.policy import CHECKPOINT_EVERY, PolicyObjective, a_few, totals, zero_variance

MOST_STEPS = 1_000_000


@dataclass(frozen=True, slots=True)
class Budget:
    """What a training may spend, generated tokens or seconds or both: it ends with the step that reaches one."""

    generated_tokens: float = float("inf")
    seconds: float = float("inf")


class DirectRLObjective(PolicyObjective):
    """The `Objective` of direct RL: 1 for a right answer, else 0; a solution the checker failed on has no say."""

    config: DirectRLConfig

    def __init__(self, *words: Any, checker: AnswerChecker, budget: Budget):
        """`words` are those of `PolicyObjective`."""
        super().__init__(*words)
        self.checker, self.budget = checker, budget
        self._tokens, self._seconds = 0, 0.0

    def prompt(self, row: Demonstration) -> str:
        return row.question

    def begin(self, step: int):
        self._began = time.monotonic()
        return super().begin(step)

    def rewarded(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        verdicts = solved(rows, samples, self.renderer, self.checker)
        known = [[right for _, right in group if right is not None] for group in verdicts]
        usual = [mean(group) if group else 0.0 for group in known]
        rewards = torch.tensor(
            [
                [mean_right if right is None else float(right) for _, right in group]
                for group, mean_right in zip(verdicts, usual, strict=True)
            ]
        )
        flat = [(row, text, right) for row, group in zip(rows, verdicts, strict=True) for text, right in group]
        for row, text, right in a_few(flat):
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

    def end(self, step: int) -> dict[str, Any]:
        row = super().end(step) | {"seconds": time.monotonic() - self._began}
        self._tokens += row["generated_tokens"]
        self._seconds += row["seconds"]
        row |= {"spent_tokens": self._tokens, "spent_seconds": self._seconds}
        if self._tokens >= self.budget.generated_tokens or self._seconds >= self.budget.seconds:
            row["stop"] = f"{self._tokens:,} tokens generated in {self._seconds:.0f} s: the budget is spent"
        return row

    def _forget_samples_after(self, step: int) -> None:
        """As in `PolicyObjective`; what was spent up to `step` stays spent."""
        metrics = self.samples_path.parent / "metrics.jsonl"
        spent = [row for row in read_jsonl(metrics) if row["step"] <= step] if step and metrics.exists() else []
        self._tokens = sum(row["generated_tokens"] for row in spent)
        self._seconds = sum(row["seconds"] for row in spent)
        super()._forget_samples_after(step)


def train_directly(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    start: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    config: DirectRLConfig,
    learning_rate: float,
    budget: Budget,
    seed: int,
    folder: Path,
    *,
    execution: ExecutionConfig = LOCAL,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Train `model` on its own solutions of the demonstrations' questions until `budget` is spent.

    Continues from the checkpoints an interrupted call left in `folder`.
    """
    rows = [row for row in demonstrations if row.answer is not None]
    samples = folder / "samples.jsonl"

    def objective(trained: torch.nn.Module) -> DirectRLObjective:
        policy = engine_on(trained)
        words = rows, policy, start, renderer, config, seed, samples, execution
        return DirectRLObjective(*words, checker=checker, budget=budget)

    model, history = train_as_set(
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
    return merge_lora(model), totals(history)
