"""The gold probe: does more reward still buy a better target?

Every so many steps of mapper training the current mapper rewrites a few hundred demonstrations, a copy of the target
is briefly fine-tuned on them, and answers the development questions. The reward is a proxy; this is what it stands for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dartune.config import Config
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, SampleSpec
from dartune.models.parallel_engine import engine_on
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.reward import Reward
from dartune.stages.evaluate import evaluate
from dartune.train.mapper import mapper_prompt
from dartune.train.sft import fine_tune

EPOCHS = 2


class GoldProbe:
    """Called with the mapper's engine; returns for each development question whether the probe's target solves it.

    The same rows, questions and order every time, so that two probes can be compared question by question.
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
        self.demonstrations, self.dev = demonstrations[: config.mapper.probe_rows], dev
        self.renderer, self.checker = renderer, checker

    def __call__(self, mapper: Engine) -> list[bool]:
        import torch

        sft = self.config.sft
        steps = max(1, EPOCHS * len(self.demonstrations) // sft.batch_size)
        settings = sft.model_copy(update={"steps": steps, "checkpoint_every": steps})
        rate = sorted(sft.learning_rates)[len(sft.learning_rates) // 2]
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            rows = self._rewrites(mapper)
            model, _ = fine_tune(self.target_copy(), rows, self.renderer, settings, rate, 0, Path(folder))
        limit = self.config.evaluate.max_new_tokens
        records = evaluate({"dev": self.dev}, engine_on(model), self.renderer, self.checker, limit)
        return [bool(record["correct"]) for record in records]

    def _rewrites(self, mapper: Engine) -> list[tuple[str, str]]:
        """What the data set would become now: one sample a row, the original where it is not accepted."""
        config = self.config.mapper
        spec = SampleSpec(1, config.max_new_tokens, config.temperature, (self.renderer.end_id,), 0)
        prompts = [self.renderer.prompt_ids(mapper_prompt(config.prompt, row)) for row in self.demonstrations]
        scored = self.reward(self.demonstrations, mapper.generate(prompts, spec))
        return [
            (row.question, item.text if item.accepted and item.surplus > 0 else row.solution)
            for row, (item,) in zip(self.demonstrations, scored, strict=True)
        ]
