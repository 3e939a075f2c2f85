"""Stage: fine-tuning that ends once its dev accuracy reaches that of another arm.

It answers the objection that one arm forgets less only because it was trained less: both arms have then gained as much
in distribution.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.config.arms import ARMS
from dartune.engines.distributed import engine_on
from dartune.engines.meter import Meter, counters
from dartune.run.cost import Cost
from dartune.run.files import append_jsonl, read_json, read_jsonl
from dartune.run.progress import note
from dartune.stages.arm_training import chosen_learning_rate, keep_model, start_of
from dartune.stages.base import StageInputs
from dartune.stages.evaluate import accuracy, evaluate
from dartune.stages.finetune import FineTune
from dartune.stages.names import train_stage

CHECKS_PER_EPOCH = 4
CURVE = "dev-curve.jsonl"
"""Dev accuracy by step, in the stage's folder."""


class FineTuneMatched(FineTune):
    """Fine-tuning up to the first of its checkpoints, four per epoch, that is as accurate on dev as the other arm.

    If none is, the most accurate one is kept, the first of equals. The untrained model is the first checkpoint.
    """

    @property
    def other(self) -> str:
        """The stage of the other arm's model."""
        arm = ARMS[self.arm].gains_as_much_as
        assert arm is not None
        return train_stage(arm, self.seed, chosen_learning_rate(self.context, arm, self.seed)[0])

    def inputs(self) -> StageInputs:
        return super().inputs() | {"gains_as_much_as": self.context.key(self.other)}

    @cached_property
    def goal(self) -> float:
        """Dev accuracy of the other arm's model."""
        dev = read_json(self.context.folder(self.other) / "dev.json")
        assert dev is not None  # the stage has finished
        return dev["accuracy"]

    def run(self, folder: Path) -> Cost:
        context, models, goal = self.context, self.context.models, self.goal
        if not self.rows[0]:  # nothing to learn from
            return super().run(folder)
        every = max(1, round(len(self.rows[0]) / self.settings.batch_size / CHECKS_PER_EPOCH))
        start, _ = start_of(context, self.arm, self.seed)

        def reached(model: Any, step: int) -> str | None:
            if step % every and step != self.settings.steps:
                return None
            measured = self._measured(model, step, folder / CURVE)
            return f"dev accuracy {measured:.1%}, the goal is {goal:.1%}" if measured >= goal else None

        model, cost = models.to_train(start, self.settings), Cost()
        if not reached(model, 0):
            model, cost = self.train(model, folder, reached)
        best = _first_at(folder / CURVE, goal)
        if best < max(curve(folder / CURVE)):
            # The training went on to worse checkpoints, which are not kept: it is repeated up to the best one.
            context.log(f"{self.name}: dev accuracy never reached {goal:.1%}; the best checkpoint is step {best}")
            model = models.to_train(start, self.settings)
            if best:
                model, more = self.train(
                    model, folder / "repeated", lambda _, step: "the best checkpoint" if step == best else None
                )
                cost += more
        cost += sum((Cost(**row["spent"]) for row in read_jsonl(folder / CURVE, damaged=True)), Cost())
        return cost + keep_model(context, model, folder)

    def _measured(self, model: Any, step: int, path: Path) -> float:
        """Dev accuracy of the model in training, also appended to the curve."""
        if step in (measured := curve(path)):  # by an earlier attempt
            return measured[step]
        context, engine = self.context, engine_on(model)
        model.eval()
        meter, limit = Meter(engine), context.config.evaluate.max_new_tokens
        with note("dev questions"):
            records = evaluate({"dev": context.data.dev}, engine, context.models.renderer, context.checker, limit)
        share = distributed.broadcast(accuracy(records))
        if distributed.is_main():
            append_jsonl(path, {"step": step, "accuracy": share, "spent": counters(meter.cost())})
        distributed.barrier()
        return share


def curve(path: Path) -> dict[int, float]:
    """Dev accuracy by step; empty before the first measurement."""
    return {row["step"]: row["accuracy"] for row in read_jsonl(path, damaged=True)} if path.exists() else {}


def _first_at(path: Path, goal: float) -> int:
    """The first step with at least the accuracy `goal`; the most accurate one if there is none."""
    by_step = curve(path)
    reached = [step for step, value in by_step.items() if value >= goal]
    return min(reached) if reached else max(by_step, key=lambda step: (by_step[step], -step))
