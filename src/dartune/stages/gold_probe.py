"""The gold probe: measures during mapper training whether a higher reward still means a better target.

Every `mapper.probe_every` steps the current mapper rewrites some demonstrations, a copy of the target is fine-tuned on
them briefly, and its accuracy on the development questions is measured. The reward is only a proxy for that accuracy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dartune.answers.checker import AnswerChecker
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine, SampleSpec
from dartune.engines.distributed import engine_on
from dartune.engines.meter import Meter
from dartune.rewards.reward import Reward
from dartune.run.cost import Cost
from dartune.run.progress import note
from dartune.stages.evaluate import evaluate
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.train.sft import fine_tune

EPOCHS = 2
PROBE_ROWS = 200
"""Demonstrations of a gold probe's short fine-tuning; more make it slower and more reliable."""


class GoldProbe:
    """Called with the mapper's engine; returns whether the probe's target solves each question, and what that took.

    A development question without a checkable answer, or whose check failed, is None. The same rows, questions
    and order every time, so that two probes can be compared question by question.
    """

    def __init__(
        self,
        config: Config,
        target_copy: Callable[[], Any],
        demonstrations: Sequence[Demonstration],
        dev: Sequence[Demonstration],
        reward: Reward,
        renderer: Renderer,
        checker: AnswerChecker,
    ):
        self.config, self.target_copy, self.reward = config, target_copy, reward
        self.demonstrations, self.dev = demonstrations[:PROBE_ROWS], dev
        self.renderer, self.checker = renderer, checker

    def __call__(self, mapper: Engine) -> tuple[list[bool | None], Cost]:
        import torch

        sft = self.config.sft
        steps = max(1, EPOCHS * len(self.demonstrations) // sft.batch_size)
        settings = sft.model_copy(update={"steps": steps})
        execution = self.config.execution.model_copy(update={"checkpoint_every": steps})
        rate = sorted(sft.learning_rates)[len(sft.learning_rates) // 2]
        sampling = Meter(mapper, self.reward.target)
        with note("gold probe"), tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            rows = self._rewrites(mapper)
            model, trained = fine_tune(
                self.target_copy(), rows, self.renderer, settings, rate, 0, Path(folder), execution=execution
            )
        sampled, engine = sampling.cost(), engine_on(model)
        evaluation = Meter(engine)
        limit = self.config.evaluate.max_new_tokens
        records = evaluate({"dev": self.dev}, engine, self.renderer, self.checker, limit)
        return [record["correct"] for record in records], sampled + trained + evaluation.cost()

    def _rewrites(self, mapper: Engine) -> list[tuple[str, str]]:
        """What the data set would become now: one sample a row, the original where it is not accepted."""
        config = self.config.mapper
        spec = SampleSpec(1, config.max_new_tokens, config.temperature, self.renderer.stop_ids, 0)
        prompts = [self.renderer.prompt_ids(mapper_prompt(config.prompt, row)) for row in self.demonstrations]
        scored = self.reward(self.demonstrations, mapper.generate(prompts, spec))
        return [
            (row.question, item.text if item.accepted and item.surplus > 0 else row.solution)
            for row, (item,) in zip(self.demonstrations, scored, strict=True)
        ]
