"""`dartune compare`: accuracies and differences of several finished runs, per run and pooled over runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dartune.errors import InputError
from dartune.report import stats
from dartune.report.adaptation import first_adaptation, mean_of_known
from dartune.report.finished_run import FinishedRun
from dartune.report.results import read_results
from dartune.report.summary import summary_of, tables
from dartune.run.folder import changes
from dartune.run.number_format import decimals, percent, points_interval

IGNORED_SETTINGS = ("output", "name")
SHOWN_CHANGES = 8


def load_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Load the finished runs in `folders`; a folder that contains run folders stands for all of them.

    Raises:
        InputError: a folder contains no finished run (all such folders are listed), or there are fewer than two runs.
    """
    run_folders, problems = [], []
    for folder in folders:
        inside = sorted(path.parent.parent for path in folder.glob("*/report/results.json"))
        own = folder / "report" / "results.json"
        run_folders += [folder] if own.exists() else inside
        if not own.exists() and not inside:
            problems.append(f"{folder}: no finished run (report/results.json is missing)")
    if not problems and len(run_folders) < 2:
        problems.append("give at least two run folders, or a folder that contains them")
    if problems:
        raise InputError("these runs cannot be compared", problems)
    names = [folder.name for folder in run_folders]
    names = names if len(set(names)) == len(names) else [str(folder) for folder in run_folders]
    return [
        FinishedRun(name, folder, read_results(folder / "report" / "results.json"))
        for name, folder in zip(names, run_folders, strict=True)
    ]


def compare(folders: Sequence[Path], width: int = 100) -> str:
    """Return the comparison as text: settings that differ, accuracies, differences of dart, alignment of the data.

    Raises:
        InputError: a run is missing, the runs answered different questions, or no question has a verdict in all runs.
    """
    runs = load_runs(folders)
    _check_same_questions(runs)
    groups = [group for group in runs[0].results["groups"] if all(group in run.results["groups"] for run in runs)]
    blocks = ["\n".join(["Settings that differ from the first run:", *_setting_changes(runs)])]
    accuracy = [["accuracy %", *groups]]
    for run in runs:
        for arm in run.results["arms"]:
            accuracies = (summary_of(run.results, arm, group)["accuracy"]["estimate"] for group in groups)
            accuracy.append([f"{run.name}: {arm}", *map(percent, accuracies)])
    blocks += tables(accuracy, width)
    for against in shared_baselines(runs):
        rows = [[f"dart - {against}, points", *groups]]
        for label, members in (*((run.name, [run]) for run in runs), ("all runs", runs)):
            intervals = (pooled_difference(members, against, group) for group in groups)
            rows.append([label, *map(points_interval, intervals)])
        blocks += tables(rows, width)
    if alignment := _alignment_rows(runs):
        blocks += tables(alignment, width)
    return "\n\n".join(blocks) + "\n"


def _check_same_questions(runs: Sequence[FinishedRun]) -> None:
    """Check that all runs answered the questions of the first run; paired differences need the same questions."""
    problems = []
    expected = {
        suite: set(next(iter(seeds.values()))) for suite, seeds in next(iter(runs[0].outcomes.values())).items()
    }
    for run in runs[1:]:
        for arm, suites in run.outcomes.items():
            for suite, seeds in suites.items():
                for seed, answers in seeds.items():
                    if suite in expected and (differing := expected[suite] ^ set(answers)):
                        problems.append(f"{run.name}, {arm}, {suite}, seed {seed}: {len(differing)} questions differ")
    if problems:
        raise InputError(f"these runs did not answer the same questions as {runs[0].name}", problems)


def _setting_changes(runs: Sequence[FinishedRun]) -> list[str]:
    """One line per run after the first: its settings that differ from the first run's."""
    first = _settings(runs[0])
    lines = []
    for run in runs[1:]:
        changed = changes(first, _settings(run))
        more = f" and {len(changed) - SHOWN_CHANGES} more" if len(changed) > SHOWN_CHANGES else ""
        lines.append(f"  {run.name}: {', '.join(changed[:SHOWN_CHANGES]) or 'none'}{more}")
    return lines


def _settings(run: FinishedRun) -> dict[str, Any]:
    settings = run.comparable_settings
    return json.loads(json.dumps({key: value for key, value in settings.items() if key not in IGNORED_SETTINGS}))


def shared_baselines(runs: Sequence[FinishedRun]) -> list[str]:
    """Arms other than `dart` that every run has; empty if some run lacks `dart`."""
    shared = [arm for arm in runs[0].results["arms"] if all(arm in run.results["arms"] for run in runs)]
    return [arm for arm in shared if arm != "dart"] if "dart" in shared else []


def pooled_difference(runs: Sequence[FinishedRun], against: str, group: str) -> dict[str, float]:
    """Return the paired difference dart - against over a group's suites, with its 95% interval.

    Every run and every suite has the same weight. Outcomes of the same question in several runs are correlated, so a
    question is one unit of resampling, averaged over the runs.
    """
    names = [suite["name"] for suite in runs[0].results["suites"] if suite["group"] == group]
    shared = [name for name in names if all(name in run.graded_outcomes["dart"] for run in runs)]
    suites = [strata for suite in shared if (strata := _mean_over_runs(runs, against, suite))]
    if not suites:
        raise InputError(f"no question of the group {group} has a verdict in all runs")
    interval = stats.difference_interval(stats.pool(suites))
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _mean_over_runs(runs: Sequence[FinishedRun], against: str, suite: str) -> stats.Strata:
    """Difference dart - against per question, averaged over seeds, then over runs.

    Only questions that have a verdict in all runs count; the result is empty if there are none.
    """
    by_run = []
    for run in runs:
        gaps = stats.subtract(run.graded_outcomes["dart"][suite], run.graded_outcomes[against][suite])
        by_run.append(
            {key: mean_of_known(gap.get(key) for gap in gaps.values()) for gap in gaps.values() for key in gap}
        )
    common = set.intersection(*map(set, by_run))
    if not common:
        return []
    return stats.strata_of({i: {key: gap[key] for key in common} for i, gap in enumerate(by_run)})


def _alignment_rows(runs: Sequence[FinishedRun]) -> list[list[str]]:
    """Table of the mean alignment of demonstrations and adapted data, in nats per source token.

    A dash means that nothing was adapted. Empty if no run has measured alignments.
    """
    rows = [["alignment of the data", "demonstrations", "adapted"]]
    for run in runs:
        data = list(first_adaptation(run.results["adapted"]).values())
        if any(summary["alignment_before"] is not None for summary in data):
            means = (mean_of_known(summary[f"alignment_{when}"] for summary in data) for when in ("before", "after"))
            rows.append([run.name, *(decimals(mean, 2) for mean in means)])
    return rows if len(rows) > 1 else []
