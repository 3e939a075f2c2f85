"""Stage: on-policy distillation of the target, from itself or from the trained mapper, which read the demonstration."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from dartune import distributed
from dartune.config.arms import ARMS
from dartune.run.cost import Cost
from dartune.run.progress import follow
from dartune.stages.arm_training import keep_model, start_of
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import mapper_stage, probe_stage, train_stage


class Distil(Stage):
    """The target trained on its own samples against a teacher, at one learning rate.

    The teacher reads `mapper.prompt`, the request with question and demonstration, and then the target's sample.
    """

    def __init__(self, context: StageContext, arm: str, seed: int, learning_rate: float):
        super().__init__(context, train_stage(arm, seed, learning_rate))
        self.arm, self.seed, self.learning_rate = arm, seed, learning_rate
        self.from_mapper = ARMS[arm].teacher == "mapper"

    def inputs(self) -> StageInputs:
        context, config = self.context, self.context.config
        return {
            "data": context.key("data"),
            "start": start_of(context, self.arm, self.seed)[1],
            "target": context.models.target_fingerprint,
            "teacher": context.key(mapper_stage("dart", self.seed)) if self.from_mapper else "target",
            "teacher_update": ARMS[self.arm].teacher_update,
            "prompt": config.mapper.prompt,
            "examples": context.key(probe_stage("dart")) if config.mapper.examples else None,
            "sft": config.sft.model_dump(exclude={"learning_rates"}),
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            "max_new_tokens": config.evaluate.max_new_tokens,
        }

    def run(self, folder: Path) -> Cost:
        from dartune.train.distillation import distil

        context, models, config, spec = self.context, self.context.models, self.context.config, ARMS[self.arm]
        model = models.to_train(start_of(context, self.arm, self.seed)[0], config.sft)
        if spec.teacher_update:
            # Checkpoints do not hold the teacher, so an interrupted training with a moving one starts again.
            if distributed.is_main():
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            distributed.barrier()
        mapper = models.mapper(context.folder(mapper_stage("dart", self.seed)) / "model") if self.from_mapper else None
        progress_bar = context.progress(config.sft.steps, self.name)
        with mapper or nullcontext(models.target_engine) as teacher, progress_bar as progress:
            # A teacher that changes must not be the frozen target, which other stages use.
            moving = bool(spec.teacher_update) and not self.from_mapper
            model, cost = distil(
                model,
                context.data.train,
                models.trained(Path(models.target_path)).model if moving else teacher.model,
                models.renderer,
                partial(mapper_prompt, context.mapper_config("dart").prompt),
                config.sft,
                self.learning_rate,
                config.evaluate.max_new_tokens,
                self.seed,
                folder,
                teacher_update=spec.teacher_update,
                execution=config.execution,
                on_step=context.trackers.follow(self.name, folder, follow(progress, "loss")),
            )
        return cost + keep_model(context, model, folder)
