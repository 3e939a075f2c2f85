"""A run in progress: its config, data, models and folder, as the stages ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dartune.arm_settings import adapted_config
from dartune.arms import ADAPTATIONS
from dartune.config import Config
from dartune.data.records import Demonstration
from dartune.inputs import Data
from dartune.lab import source as lab
from dartune.progress import Progress
from dartune.rewards.checker import AnswerChecker
from dartune.roster import Roster
from dartune.run import Run
from dartune.stages.evaluate import StepJudge
from dartune.tracking import Tracking


@dataclass
class Job:
    """What all stages share; `view` is how an adaptation sees it."""

    config: Config
    run: Run
    checker: AnswerChecker
    data: Data
    models: Roster
    tracking: Tracking = field(default_factory=Tracking)
    _views: dict[str, tuple[Config, Roster]] = field(default_factory=dict)

    @property
    def in_lab(self) -> bool:
        return lab.is_lab(self.config.data.path)

    @property
    def judge(self) -> StepJudge | None:
        """Says which steps of a solution are right; only the lab can."""
        return lab.judge if self.in_lab else None

    @property
    def describe(self) -> Callable[[Demonstration, str], str | None] | None:
        """Names the style of a rewrite; only the lab can."""
        return lab.dialect if self.in_lab else None

    def view(self, adaptation: str) -> tuple[Config, Roster]:
        """The config and the models of an adaptation; models are loaded once for all that share them."""
        if adaptation not in self._views:
            config = adapted_config(self.config, adaptation, len(self.data.train))
            models = Roster(config) if ADAPTATIONS[adaptation].other_target else self.models
            self._views[adaptation] = (config, models)
        return self._views[adaptation]

    def progress(self, total: int, label: str) -> Progress:
        return Progress(total, label, log_path=self.run.log_path)
