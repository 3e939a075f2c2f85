"""The main job: data -> probe -> train mapper -> synthesise -> train each arm -> evaluate -> report.

`planned_stages` is the job in call order. Each stage is an object in `stages/`; the run folder skips a stage whose
inputs did not change, continues one that was interrupted, and redoes the rest, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.arms import ADAPTATIONS, ARMS, adaptations, with_dependencies
from dartune.config.load import missing_paths
from dartune.config.matrix import combinations, matrix_error
from dartune.config.recipe import Recipe
from dartune.config.schema import Config
from dartune.report.build import write_run_report
from dartune.report.compare_runs import compare
from dartune.run.folder import RunFolder
from dartune.stages.base import Stage
from dartune.stages.context import StageContext
from dartune.stages.names import evaluation_stage
from dartune.stages.prepare import WriteData, examine, start
from dartune.train.trackers import tracking


def run(config: Config) -> str:
    """Run or resume every stage of `config`; returns the summary, with the path of the report.

    A config with a matrix is run cell by cell, and its cells are compared at the end.

    Raises:
        InputError: the data, a model or a setting is unusable (everything found is listed).
        MachineError: this machine cannot go on (disk, memory, numbers that are not finite).
    """
    if config.matrix:
        with distributed.process_group():
            return _run_matrix(combinations(config))
    with distributed.process_group(), RunFolder(Path(config.output)) as folder, AnswerChecker() as checker:
        context = start(config, folder, checker)
        with tracking(
            config.trackers, config.name, config.model_dump(mode="json"), folder.folder, folder.log
        ) as context.trackers:
            log_estimate(context)
            execute(context)
            if not distributed.is_main():
                return ""
            with folder.progress(None, "report"):
                return write_run_report(context)


def log_estimate(context: StageContext) -> None:
    """Log what the stages that have not finished will cost."""
    from dartune.planning.estimate import Planner  # loads torch

    for line in Planner(context).log_lines() if unfinished(context) else ():
        context.log(line)


def unfinished(context: StageContext) -> bool:
    """Whether an evaluation is left; with all of them there is nothing to estimate."""
    names = {evaluation_stage(arm, seed) for arm in context.config.arms for seed in context.config.seeds}
    return not names <= set(context.run_folder.finished_stages())


def execute(context: StageContext) -> None:
    """Bring every stage of the run up to date, each once."""
    seen: set[str] = set()
    for stage in planned_stages(context):
        if stage.name not in seen:
            seen.add(stage.name)
            context.execute(stage)


def planned_stages(context: StageContext) -> Iterator[Stage]:
    """The stages of a run in order; a stage may only be made when those before it have been executed."""
    # Imported here because they load torch: `run` reports problems of the data without it.
    from dartune.stages.arm_stages import arm_stages
    from dartune.stages.mapper import TrainMapper
    from dartune.stages.probe import ProbeTarget
    from dartune.stages.synthesise import Synthesise
    from dartune.stages.warmup import WarmUp

    config = context.config
    arms = with_dependencies(config.arms)
    yield WriteData(context)
    if any(ARMS[arm].needs_probe for arm in arms):
        yield ProbeTarget(context, "dart")
    if config.mapper.format_steps and any(ARMS[arm].rows == "greedy" for arm in arms):
        yield WarmUp(context, "dart")
    for adaptation in adaptations(arms):
        yield ProbeTarget(context, adaptation)
        if config.mapper.format_steps:
            yield WarmUp(context, adaptation)
        for seed in config.seeds:
            if ADAPTATIONS[adaptation].trained:
                yield TrainMapper(context, adaptation, seed)
            yield Synthesise(context, adaptation, seed)
    for seed in config.seeds:
        for arm in arms:
            yield from arm_stages(context, arm, seed)


def _run_matrix(runs: Sequence[tuple[str, Config]]) -> str:
    """Every run of a matrix, and how they compare. Data and files of all cells are checked before the first run."""
    if error := matrix_error({name: _cell_problems(cell) for name, cell in runs}):
        raise error
    summaries = [f"{name}\n\n{run(cell)}" for name, cell in runs]
    if len(runs) > 1 and distributed.is_main():
        summaries.append(compare([Path(cell.output) for _, cell in runs]))
    return "\n".join(summaries)


def _cell_problems(cell: Config) -> list[str]:
    """Problems of a cell that are found without loading its models."""
    return missing_paths(cell, Recipe()) or examine(cell, load_models=False).problems
