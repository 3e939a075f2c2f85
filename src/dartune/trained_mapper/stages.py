"""The stages that rewrite new rows: those of a run, with the mapper, the thresholds and the decisions of that run.

New rows are judged exactly as the run's rows were, and each one independently of the others:

* The thresholds of the gates and the values for rows without own samples (`Calibration`) are the run's. Percentiles of
  the new rows would change with their number, and the mapper was trained against the run's.
* Whether originals suit the target, and the lowest alignment of a replacement (`OriginalsDecision`), are the run's.
  Otherwise the same row could be `natural` in one file and `original` in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dartune.data.records import Demonstration
from dartune.data.row_store import open_rows, write_rows
from dartune.data.run_records import ProbeRow
from dartune.run.cost import Cost
from dartune.stages.base import StageInputs
from dartune.stages.context import StageContext
from dartune.stages.data import data_name
from dartune.stages.prepare import WriteData
from dartune.stages.probe import CHUNK, ProbeTarget
from dartune.stages.synthesise import Synthesise, public_names
from dartune.trained_mapper.source_run import ADAPTATION, SourceRun


@dataclass
class NewRowsContext(StageContext):
    """The context of the new rows' own folder. The mapper and its worked examples are those of the run."""

    origin: SourceRun = field(kw_only=True)

    def folder(self, stage: str) -> Path:
        return self.origin.stage_folder(stage) if stage == self.origin.mapper else super().folder(stage)

    def key(self, stage: str) -> str:
        return self.origin.key(stage) if stage == self.origin.mapper else super().key(stage)

    def solved_rows(self, adaptation: str) -> tuple[Sequence[Demonstration], Sequence[ProbeRow]]:
        return self.origin.training_rows(), open_rows(self.origin.stage_folder(self.origin.probe) / "probe.jsonl")


class WriteNewRows(WriteData):
    """The new rows, in the file that holds the training rows of a run."""

    def run(self, folder: Path) -> Cost:
        write_rows(folder / "train.jsonl", map(asdict, self.context.data.train))
        return Cost()


class ProbeNewRows(ProbeTarget):
    """The probe of the new rows: references and own samples. Thresholds are copied from the run."""

    # New rows are often few: with the block of a run, an interruption would lose all of them.
    block_rows = CHUNK

    def __init__(self, context: NewRowsContext):
        super().__init__(context, ADAPTATION)
        self.origin = context.origin

    def inputs(self) -> StageInputs:
        return super().inputs() | {"run": self.origin.key(self.origin.probe)}


class RewriteNewRows(Synthesise):
    """The adapted new rows."""

    def __init__(self, context: NewRowsContext):
        super().__init__(context, ADAPTATION, context.origin.seed)
        self.origin = context.origin

    def inputs(self) -> StageInputs:
        origin = self.origin
        return super().inputs() | {"probe": self.context.key(origin.probe), "run": origin.key(origin.synthesis)}

    def provenance_note(self) -> dict[str, Any]:
        target = self.config.target.path
        names = public_names({"target": target, "mapper": self.origin.initial_mapper or target})
        trained_on = f"{data_name(self.origin.data_path)} (run {self.config.name})"
        return {"data": data_name(self.config.data.path), **names, "mapper trained on": trained_on, "seed": self.seed}
