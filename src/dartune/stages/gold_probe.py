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
from dartune.models.engine import COUNTED, Engine, SampleSpec
from dartune.models.parallel_engine import engine_on
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.reward import Reward
from dartune.run import Cost
from dartune.stages.evaluate import evaluate
from dartune.train.mapper import mapper_prompt
from dartune.train.sft import fine_tune

EPOCHS = 2


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
        self.demonstrations, self.dev = demonstrations[: config.mapper.probe_rows], dev
        self.renderer, self.checker = renderer, checker

    def __call__(self, mapper: Engine) -> tuple[list[bool | None], Cost]:
        import torch

        sft = self.config.sft
        steps = max(1, EPOCHS * len(self.demonstrations) // sft.batch_size)
        settings = sft.model_copy(update={"steps": steps})
        execution = self.config.execution.model_copy(update={"checkpoint_every": steps})
        rate = sorted(sft.learning_rates)[len(sft.learning_rates) // 2]
        before = _counted(mapper, self.reward.target)
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            rows = self._rewrites(mapper)
            model, trained = fine_tune(
                self.target_copy(), rows, self.renderer, settings, rate, 0, Path(folder), execution=execution
            )
        after, engine = _counted(mapper, self.reward.target), engine_on(model)
        limit = self.config.evaluate.max_new_tokens
        records = evaluate({"dev": self.dev}, engine, self.renderer, self.checker, limit)
        sampled = Cost(**{name: after[name] - before[name] for name in COUNTED})
        return [record["correct"] for record in records], sampled + trained + Cost(**_counted(engine))

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


def _counted(*engines: Engine) -> dict[str, float]:
    """What engines spent so far; one that is given twice counts once."""
    different = {id(engine): engine for engine in engines}.values()
    return {name: sum(getattr(engine, name) for engine in different) for name in COUNTED}
