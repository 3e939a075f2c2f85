"""The main job, top to bottom: data -> probe -> mapper -> synthesise -> train every arm -> evaluate -> report.

Each stage is a plain call through `Run.stage`: skipped when its inputs did not change, redone (and
the reason said) when they did, continued where an interrupted attempt of it left off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dartune import adapt, checked, processes, train_arms
from dartune.arms import ARMS, adaptations, in_order
from dartune.compare import compare
from dartune.config import Config, load_config, missing_paths
from dartune.data.quality import show_rows
from dartune.data.rows import Rows, demonstration, open_rows, write_rows
from dartune.errors import InputError
from dartune.job import Job
from dartune.matrix import cells
from dartune.measured import measured
from dartune.recipe import Recipe
from dartune.report.gather import shown_rewrites
from dartune.report.page import write_report
from dartune.report.results import build_results
from dartune.report.summary import summarise
from dartune.rewards.checker import AnswerChecker
from dartune.roster import prepared
from dartune.run import END_IT, Run
from dartune.tracking import tracking

SHOWN_ROWS = 3


def run(config: Config) -> str:
    """Run or resume every stage of `config`; returns the summary, with the path of the report.

    A config with a matrix is run cell by cell, and its cells are compared at the end.

    Raises:
        InputError: the data, a model or a setting is unusable (everything found is listed).
        MachineError: this machine cannot go on (disk, memory, numbers that are not finite).
    """
    if config.matrix:
        with processes.joined():
            return _all_cells(cells(config))
    with processes.joined(), Run(Path(config.output)) as folder, AnswerChecker() as checker:
        job = started(config, folder, checker)
        with tracking(config, folder.folder, folder.log) as job.tracking:
            return work(job)


def _all_cells(made: Sequence[tuple[str, Config]]) -> str:
    """Every run of a matrix, and how they compare."""
    if missing := [f"{name}: {line}" for name, cell in made for line in missing_paths(cell, Recipe())]:
        raise InputError("the matrix cannot be run", missing)
    summaries = [f"{name}\n\n{run(cell)}" for name, cell in made]
    if len(made) > 1 and processes.is_first():
        summaries.append(compare([Path(cell.output) for _, cell in made]))
    return "\n".join(summaries)


def work(job: Job) -> str:
    """Every stage of a job that was started; returns the summary."""
    config = job.config
    if any(ARMS[arm].rows == "own" for arm in config.arms):
        adapt.probe(job, "dart")
        for seed in config.seeds:
            adapt.sample_own(job, seed)
    for adaptation in adaptations(config.arms):
        adapt.probe(job, adaptation)
        adapt.warm_up(job, adaptation)
        for seed in config.seeds:
            adapt.train_mapper(job, adaptation, seed)
            adapt.synthesise(job, adaptation, seed)
    for seed in config.seeds:
        for arm in in_order(config.arms):
            train_arms.train_arm(job, arm, seed)
            train_arms.evaluate_arm(job, arm, seed)
    return written_report(job) if processes.is_first() else ""


def started(config: Config, folder: Run, checker: AnswerChecker) -> Job:
    """Read, check and split the data; write what the later stages train and test on."""
    data, models = prepared(config)
    folder.note_config(config)
    job = Job(models.config, folder, checker, data, models)

    def write(out: Path) -> None:
        for name, rows in data.parts.items():
            write_rows(out / f"{name}.jsonl", map(asdict, rows))

    kept = folder.stage("data", {"data": data.fingerprint}, write)
    if isinstance(data.train, Rows):  # what is in the run folder need not stay in a temporary file
        job.data = replace(data, train=open_rows(kept / "train.jsonl", demonstration))
    return job


def written_report(job: Job) -> str:
    """`report/results.json` and the page, from what the stages wrote; returns the summary table."""
    results = build_results(**measured(job))
    return summarise(results, write_report(job.run.folder / "report", results))


def check(config: Config, *, every: bool = False) -> str:
    """What `dartune check` says: data and models are read, nothing is written.

    Args:
        every: findings name all their rows, not only the first ones.

    Raises:
        InputError: everything that keeps `config` from running, at once; its notes are what else was found.
    """
    if config.matrix:
        return "\n".join(f"{name}\n{check(cell, every=every)}\n" for name, cell in cells(config))
    return checked.check(config, every=every)


def show(subject: Config | Path, what: str) -> str:
    """Rendered rows of a recipe's data, or rewrites of a run folder, for a person to read."""
    if what == "rewrites":
        if not isinstance(subject, Path):
            raise InputError("show rewrites needs a run folder, such as runs/lab")
        return shown_rewrites(subject)
    config = load_config(subject / "config.resolved.yaml") if isinstance(subject, Path) else subject
    data, models = prepared(config)
    return show_rows(data.train, models.renderer, SHOWN_ROWS)


def report(folder: Path) -> str:
    """Make the report of a finished run folder again; returns the summary.

    Raises:
        InputError: a stage is not finished, or the data are no longer those of the run.
    """
    config = load_config(folder / "config.resolved.yaml")
    with Run(folder) as run_folder, AnswerChecker() as checker:
        data, models = prepared(config)
        if run_folder.noted_inputs("data") != {"data": data.fingerprint}:
            raise InputError(f"{config.data.path} is not what this run was made from; {END_IT.format(folder)}")
        return written_report(Job(models.config, run_folder, checker, data, models))
