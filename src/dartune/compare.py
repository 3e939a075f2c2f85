"""`dartune compare`: finished runs side by side, what differs between them, and the gaps they agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dartune.errors import InputError
from dartune.finished import Finished
from dartune.report import stats
from dartune.report.adaptation import main_part, mean_known
from dartune.report.results import read_results
from dartune.report.summary import percent, points_interval, summary_of, tables
from dartune.run import changes

IGNORED = ("output", "name")
SHOWN_CHANGES = 8


def finished(folders: Sequence[Path]) -> list[Finished]:
    """The runs in `folders`; a folder of runs stands for all of them.

    Raises:
        InputError: a folder has no finished run, or there are fewer than two; all are named.
    """
    places, problems = [], []
    for folder in folders:
        inside = sorted(path.parent.parent for path in folder.glob("*/report/results.json"))
        own = folder / "report" / "results.json"
        places += [folder] if own.exists() else inside
        if not own.exists() and not inside:
            problems.append(f"{folder}: no finished run here (report/results.json is missing)")
    if not problems and len(places) < 2:
        problems.append("give at least two runs, or a folder of them")
    if problems:
        raise InputError("these runs cannot be compared", problems)
    names = [place.name for place in places]
    names = names if len(set(names)) == len(names) else [str(place) for place in places]
    return [
        Finished(name, place, read_results(place / "report" / "results.json"))
        for name, place in zip(names, places, strict=True)
    ]


def compare(folders: Sequence[Path], width: int = 100) -> str:
    """Accuracy of every run and arm, gaps per run and over all runs, and how far each expert is from its target.

    Raises:
        InputError: runs are missing, were not asked the same questions (which, and how many), or have no verdict in
            common.
    """
    runs = finished(folders)
    _same_questions(runs)
    groups = [group for group in runs[0].results["groups"] if all(group in run.results["groups"] for run in runs)]
    blocks = ["\n".join(["What differs from the first run:", *_differences(runs)])]
    accuracy = [["accuracy %", *groups]]
    for run in runs:
        for arm in run.results["arms"]:
            shares = (summary_of(run.results, arm, group)["accuracy"]["estimate"] for group in groups)
            accuracy.append([f"{run.name}: {arm}", *map(percent, shares)])
    blocks += tables(accuracy, width)
    for against in shared_rivals(runs):
        gaps = [[f"dart - {against}, points", *groups]]
        gaps += [[run.name, *(points_interval(gap([run], against, group)) for group in groups)] for run in runs]
        gaps.append(["all runs", *(points_interval(gap(runs, against, group)) for group in groups)])
        blocks += tables(gaps, width)
    if distance := _distances(runs):
        blocks += tables(distance, width)
    return "\n\n".join(blocks) + "\n"


def _same_questions(runs: Sequence[Finished]) -> None:
    """Paired differences need the same questions; the first run's are what the others are held to."""
    problems = []
    asked = {suite: set(next(iter(seeds.values()))) for suite, seeds in next(iter(runs[0].asked.values())).items()}
    for run in runs[1:]:
        for arm, suites in run.asked.items():
            for suite, seeds in suites.items():
                for seed, answers in seeds.items():
                    if suite in asked and (other := asked[suite] ^ set(answers)):
                        problems.append(f"{run.name}, {arm}, {suite}, seed {seed}: {len(other)} questions differ")
    if problems:
        raise InputError(f"these runs were not asked what {runs[0].name} was", problems)


def _differences(runs: Sequence[Finished]) -> list[str]:
    first = _settings(runs[0])
    lines = []
    for run in runs[1:]:
        found = changes(first, _settings(run))
        more = f" and {len(found) - SHOWN_CHANGES} more" if len(found) > SHOWN_CHANGES else ""
        lines.append(f"  {run.name}: {', '.join(found[:SHOWN_CHANGES]) or 'nothing'}{more}")
    return lines


def _settings(run: Finished) -> dict[str, Any]:
    return json.loads(json.dumps({key: value for key, value in run.results["config"].items() if key not in IGNORED}))


def shared_rivals(runs: Sequence[Finished]) -> list[str]:
    """Arms that every run has beside `dart`."""
    shared = [arm for arm in runs[0].results["arms"] if all(arm in run.results["arms"] for run in runs)]
    return [arm for arm in shared if arm != "dart"] if "dart" in shared else []


def gap(runs: Sequence[Finished], against: str, group: str) -> dict[str, float]:
    """dart - against over a group's suites: every run and every suite weighs the same, questions are resampled.

    All runs ask the same questions, which are hard or easy in all of them: a question is one unit, however many
    runs it was asked in.
    """
    names = [suite["name"] for suite in runs[0].results["suites"] if suite["group"] == group]
    shared = [name for name in names if all(name in run.records["dart"] for run in runs)]
    suites = [strata for suite in shared if (strata := _over_runs(runs, against, suite))]
    if not suites:
        raise InputError(f"no question of the group {group} has a verdict in all of these runs")
    interval = stats.difference_interval(stats.pool(suites))
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _over_runs(runs: Sequence[Finished], against: str, suite: str) -> stats.Strata:
    """dart - against on the questions of a suite that have a verdict in all runs, averaged over seeds, then runs."""
    by_run = []
    for run in runs:
        gaps = stats.subtract(run.records["dart"][suite], run.records[against][suite])
        by_run.append({key: mean_known(gap.get(key) for gap in gaps.values()) for gap in gaps.values() for key in gap})
    common = set.intersection(*map(set, by_run))
    if not common:
        return []
    return stats.strata_of({i: {key: gap[key] for key in common} for i, gap in enumerate(by_run)})


def _distances(runs: Sequence[Finished]) -> list[list[str]]:
    """How natural the demonstrations were to the target before, and the adapted data after (-: nothing was adapted):
    nats a source token."""
    rows = [["alignment of the data", "demonstrations", "adapted"]]
    for run in runs:
        data = list(main_part(run.results["adapted"]).values())
        if any(one["alignment_before"] is not None for one in data):
            known = (mean_known(one[f"alignment_{when}"] for one in data) for when in ("before", "after"))
            rows.append([run.name, *("-" if value is None else f"{value:.2f}" for value in known)])
    return rows if len(rows) > 1 else []
