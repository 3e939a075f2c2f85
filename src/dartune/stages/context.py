"""What the stages of a run share: config, data, models, run folder, answer checker, trackers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dartune.answers.checker import AnswerChecker
from dartune.config.arm_config import adapted_config
from dartune.config.arms import ADAPTATIONS
from dartune.config.schema import Config, MapperConfig
from dartune.data.records import Demonstration
from dartune.data.run_records import ProbeRow
from dartune.lab import source as lab
from dartune.run.folder import RunFolder
from dartune.run.progress import Progress
from dartune.stages.base import Stage
from dartune.stages.data import Data
from dartune.stages.names import probe_stage
from dartune.train.trackers import Tracking

if TYPE_CHECKING:
    from dartune.rewards.reward import Reward
    from dartune.stages.evaluate import StepJudge
    from dartune.stages.models import RunModels
    from dartune.stages.probe_references import Calibration
    from dartune.stages.synthesise import OriginalsDecision


@dataclass
class StageContext:
    """What all stages share. `view` returns the config and the models of an adaptation.

    Args:
        calibration, originals: of the run whose rows these rows are judged like; None: measured on these rows.
    """

    config: Config
    run_folder: RunFolder
    checker: AnswerChecker
    data: Data
    models: RunModels
    trackers: Tracking = field(default_factory=Tracking)
    calibration: Calibration | None = None
    originals: OriginalsDecision | None = None
    _views: dict[str, tuple[Config, RunModels]] = field(default_factory=dict)

    def execute(self, stage: Stage) -> Path:
        """Bring a stage up to date (skipped, continued or run) and return its folder."""
        folder = self.run_folder.stage(stage.name, stage.inputs(), stage.run)
        stage.completed(folder)
        return folder

    def folder(self, stage: str) -> Path:
        return self.run_folder.stage_folder(stage)

    def key(self, stage: str) -> str:
        """The key of an earlier stage."""
        return self.run_folder.key(stage)

    def log(self, message: str) -> None:
        self.run_folder.log(message)

    def progress(self, total: int | None, label: str) -> Progress:
        return self.run_folder.progress(total, label)

    @property
    def in_lab(self) -> bool:
        return lab.is_lab(self.config.data.path)

    @property
    def judge(self) -> StepJudge | None:
        """Decides which steps of a solution are right; None outside of the lab."""
        return lab.judge if self.in_lab else None

    @property
    def describe(self) -> Callable[[Demonstration, str], str | None] | None:
        """Names the dialect of a rewrite; None outside of the lab."""
        return lab.dialect if self.in_lab else None

    def view(self, adaptation: str) -> tuple[Config, RunModels]:
        """The config and the models of an adaptation; adaptations with the same models share the loaded ones."""
        if adaptation not in self._views:
            from dartune.stages.models import RunModels

            config = adapted_config(self.config, adaptation, len(self.data.train))
            models = RunModels(config) if ADAPTATIONS[adaptation].other_target else self.models
            self._views[adaptation] = (config, models)
        return self._views[adaptation]

    def probe_and_reward(self, adaptation: str) -> tuple[Sequence[ProbeRow], Reward]:
        """The probe's rows, and the reward that is built on them."""
        from dartune.rewards.reward import build_reward
        from dartune.stages.probe import load_probe

        config, models = self.view(adaptation)
        rows, references, thresholds = load_probe(self.folder(probe_stage(adaptation)), self.calibration)
        target, renderer = models.target_engine, models.renderer
        return rows, build_reward(config.reward, target, renderer, self.checker, thresholds, references)

    def solved_rows(self, adaptation: str) -> tuple[Sequence[Demonstration], Sequence[ProbeRow]]:
        """The demonstrations that worked examples are chosen from, with the target's own solutions of them."""
        from dartune.stages.probe import load_probe

        return self.data.train, load_probe(self.folder(probe_stage(adaptation)))[0]

    def mapper_config(self, adaptation: str) -> MapperConfig:
        """The config's `mapper` section, its prompt preceded by `mapper.examples` worked examples."""
        from dartune.stages.mapper_prompt import with_examples, worked_examples

        mapper = self.view(adaptation)[0].mapper
        if not mapper.examples:
            return mapper
        shown = worked_examples(*self.solved_rows(adaptation), mapper.examples)
        if len(shown) < mapper.examples:
            self.log(
                f"mapper.examples: {len(shown)} of {mapper.examples} worked examples, for the target solved no more "
                "rows"
            )
        return mapper.model_copy(update={"prompt": with_examples(mapper.prompt, shown)})
