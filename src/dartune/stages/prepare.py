"""Reads and checks data and models together, before anything is computed; and the stage that writes the split data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.answers.task_families import TASKS, same_answer
from dartune.config import arm_config
from dartune.config.arms import ARMS
from dartune.config.schema import Config
from dartune.data.records import Demonstration
from dartune.data.row_store import Rows, demonstration_from_dict, open_rows, write_rows
from dartune.errors import InputError
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.lab import source as lab
from dartune.models.model_files import file_problems
from dartune.rewards.reward import load_reward_parts, run_own_gate
from dartune.run.cost import Cost
from dartune.run.folder import RunFolder
from dartune.run.redaction import printable
from dartune.stages import data as run_data
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.length_limits import too_long
from dartune.train import trackers

if TYPE_CHECKING:
    from dartune.stages.models import RunModels

logger = logging.getLogger(__name__)

MODELS_NOT_LOADED = "The models were not loaded, because the data cannot be used; only their files were checked."


@dataclass
class Examination:
    """Data and models as far as they can be used, and all problems that prevent a run from starting.

    `data` and `models` are None if they cannot be used. The models are loaded only if the data can be used.
    """

    config: Config
    sources: run_data.Sources
    data: run_data.Data | None = None
    models: RunModels | None = None
    problems: list[str] = field(default_factory=list)

    def error(self, notes: Sequence[str] = ()) -> InputError:
        """All problems as an error, with `notes` and whether the models were checked."""
        error = InputError("this run cannot start", self.problems)
        error.add_note("\n".join([*notes, *([MODELS_NOT_LOADED] if self.data is None else [])]))
        return error


def examine(config: Config, *, every: bool = False, load_models: bool = True) -> Examination:
    """Check data and models together; one problem does not hide another.

    Args:
        every: messages name all rows, not only the first ones with the same problem.
        load_models: load the models if the data can be used; otherwise only their files are checked.
    """
    if "wrong_target" in config.arms and not config.target.other:
        other = lab.other_target(config.target.path)
        config = config.model_copy(update={"target": config.target.model_copy(update={"other": other})})
    problems = arm_config.problems(config, in_lab=lab.is_lab(config.data.path) and lab.is_lab(config.target.path))
    problems += trackers.problems(config.trackers)
    # An arm that cannot be imported is a problem already, and must not hide the others.
    config = config.model_copy(update={"arms": tuple(arm for arm in config.arms if arm in ARMS)})
    examination = Examination(config, run_data.Sources(), problems=problems)
    _examine_data(examination, every)
    problems += _reward_problems(config, examination.sources.rows)
    try:
        if examination.data is None or not load_models:
            problems += file_problems(run_data.model_paths(config).values())
        else:
            problems += _examine_models(examination, examination.data, every)
    except InputError as error:
        problems += error.problems or [error.message]
    # A file that is both data and suite has every problem twice.
    examination.problems = list(dict.fromkeys(problems))
    return examination


def _examine_models(examination: Examination, data: run_data.Data, every: bool) -> list[str]:
    """Load the models and check that the rows fit into their contexts.

    Raises:
        InputError: a model cannot be used.
    """
    # Imported here because it loads torch, which takes seconds; problems of the data are reported without it.
    from dartune.stages.models import RunModels

    models = RunModels(examination.config)
    models.check()
    examination.models = models
    contexts = models.contexts[models.target_path], models.contexts[models.mapper_path]
    return too_long(models.config, data, models.renderer, *contexts, every=every)


def _reward_problems(config: Config, rows: Sequence[Demonstration]) -> list[str]:
    """Problems of the reward's parts; the user-defined gates and task family are tried on the first row."""
    parts, problems = load_reward_parts(config.reward)
    trials = []
    for row in rows[:1]:
        item = GateInput(row.question, row.solution, row.solution, row.answer, family=row.task)
        for name, gate in parts["own_gates"].items():
            trials.append(partial(run_own_gate, name, gate, item, GateThresholds()))
        if row.answer:
            trials.append(partial(same_answer, TASKS[row.task], row.answer, row.answer))
    for trial in trials:
        try:
            trial()
        except InputError as error:
            problems.append(error.message)
    return problems


def _examine_data(examination: Examination, every: bool) -> None:
    """Read and split the data."""
    problems = examination.problems
    try:
        examination.sources = run_data.read(examination.config)
        unusable = examination.sources.problems(every=every)
        problems += unusable
        if not unusable:
            examination.data = run_data.divided(examination.config, examination.sources)
    except InputError as error:
        problems += error.problems or [error.message]
    data, rows = examination.data, examination.sources.rows
    trained = data.train if data else rows
    if (
        len(rows)
        and any(ARMS[arm].budget for arm in examination.config.arms)
        and all(row.answer is None for row in trained)
    ):
        problems.append("arms: direct RL rewards right answers, and no training row has an answer; remove its arms")
    if data and all(row.answer is None for suite in data.suites.values() for row in suite):
        problems.append(
            "no test question has an answer to compare with: give some rows an `answer` (or one stated in the "
            "solution), or evaluate.suites a file of questions with answers"
        )


def prepare_run(config: Config) -> tuple[run_data.Data, RunModels]:
    """Data and models of a run that can start; warnings are logged.

    Raises:
        InputError: all problems that prevent the run from starting.
    """
    examination = examine(config)
    for line in examination.sources.warnings() if distributed.is_main() else ():
        logger.warning("%s", printable(line))
    if examination.problems or examination.data is None or examination.models is None:
        raise examination.error(examination.sources.selections)
    return examination.data, examination.models


def start(config: Config, folder: RunFolder, checker: AnswerChecker) -> StageContext:
    """Read and check data and models, and note the config in the run folder.

    Raises:
        InputError: all problems that prevent the run from starting.
    """
    with folder.progress(None, "data and models"):
        data, models = prepare_run(config)
        _settle_computing(folder, models)
    folder.note_config(config.resolved_yaml())
    if config.data.where:
        folder.log(data.notes[0])  # the first note is the number of rows that are kept
    return StageContext(models.config, folder, checker, data, models)


def _settle_computing(folder: RunFolder, models: RunModels) -> None:
    """Compute with the CPU threads that the run was started with, so that a resumed run gives the same numbers.

    A new run takes the number that is fastest for its target, as does one that has fewer threads than it was started
    with. OMP_NUM_THREADS is followed.
    """
    from dartune.models.threads import use_threads  # loads torch

    model = models.target_engine.model
    threads = use_threads(model, folder.computing.get("threads"))
    dtype = str(vars(model).get("compute_dtype", model.dtype)).removeprefix("torch.")
    if distributed.is_main():
        folder.note_computing({"device": str(model.device), "dtype": dtype, "threads": threads})


class WriteData(Stage):
    """The split data, as the later stages train and test on them."""

    def __init__(self, context: StageContext):
        super().__init__(context, "data")

    def inputs(self) -> StageInputs:
        return {"data": self.context.data.fingerprint}

    def run(self, folder: Path) -> Cost:
        for name, rows in self.context.data.parts.items():
            write_rows(folder / f"{name}.jsonl", map(asdict, rows))
        return Cost()

    def completed(self, folder: Path) -> None:
        data = self.context.data
        if isinstance(data.train, Rows):  # rows in a temporary file: read them from the run folder from now on
            self.context.data = replace(data, train=open_rows(folder / "train.jsonl", demonstration_from_dict))
