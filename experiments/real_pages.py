"""The measured parts of docs/real-models.md: tables from results/real-models.json, nothing typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pages import fill, table
from scipy.stats import bootstrap

from dartune.report.stats import Interval, Outcomes, difference_interval, pool, strata_of, subtract
from dartune.run.number_format import MISSING, decimals, points_interval

DOCUMENT = Path(__file__).parents[1] / "docs" / "real-models.md"
AGAIN = "-again"
"""End of the names of second rounds."""
IN_DISTRIBUTION = ("in_distribution",)
OUT = ("ood_svamp", "ood_addsub", "ood_multiarith", "ood_larger")
GOALS = (
    ("base", "out"), ("sft", "out"), ("sft", "nll_rise"), ("best_of_k", "out"), ("sft_stm", "out"),
    ("sft_matched", "nll_rise"),
)  # fmt: skip
"""(arm, measure) pairs whose difference from `dart` the document states first."""
SHARES = ("correct", "calculated")
"""Measures that are shares of the questions."""
Cell = Mapping[str, Any]


def write(results: Path) -> None:
    """Fill the document's measured parts."""
    fill(DOCUMENT, parts(json.loads(results.read_text("utf-8"))))


def parts(cells: Mapping[str, Cell]) -> dict[str, str]:
    """Part name -> Markdown."""
    again = {name: cell for name, cell in cells.items() if name.endswith(AGAIN)}
    cells = {name: cell for name, cell in cells.items() if name not in again}
    return {
        "summary": summary(cells),
        "again": "\n\n".join(f"**{name}**\n\n{accuracies(cell)}\n\n{differences(cell)}" for name, cell in again.items())
        or "Not measured yet.",
        "accuracy": "\n\n".join(f"**{name}**{seeds(cell)}\n\n{accuracies(cell)}" for name, cell in cells.items()),
        "differences": "\n\n".join(f"**{name}**\n\n{differences(cell)}" for name, cell in cells.items()),
        "mapper": mapper(cells),
        "costs": "\n\n".join(f"**{name}**\n\n{costs(cell)}" for name, cell in cells.items()),
        "rewrites": "\n\n".join(f"**{name}**\n\n{rewrites(cell)}" for name, cell in cells.items()),
    }


def seeds(cell: Cell) -> str:
    return f", seed {cell['seeds'][0]}" if len(cell["seeds"]) == 1 else f", seeds {', '.join(map(str, cell['seeds']))}"


def outcomes(cell: Cell, arm: str, measure: str, suite: str = "") -> Outcomes:
    """Seed -> question -> outcome. `correct`, `calculated` and `answer_logprob` are of a suite, other measures not."""
    by_seed = {}
    for seed, found in cell["outcomes"][arm].items():
        values = found[measure][suite] if suite else found[measure]
        by_seed[int(seed)] = {f"{i:05d}": float(value or 0) for i, value in enumerate(values)}
    if len(by_seed) == 1 and len(cell["seeds"]) > 1:  # the untouched target is the same with every seed
        by_seed = {seed: next(iter(by_seed.values())) for seed in cell["seeds"]}
    return by_seed


def average(cell: Cell, arm: str, measure: str, suites: Sequence[str] = ("",)) -> float:
    """Mean over seeds and questions; every suite has the same weight."""
    return mean(
        mean(mean(answers.values()) for answers in outcomes(cell, arm, measure, suite).values()) for suite in suites
    )


def difference(cell: Cell, against: str, measure: str, suites: Sequence[str] = ("",)) -> Interval:
    """`dart` minus another arm, paired by question, with a 95% interval.

    Accuracies have the interval of dartune's reports. Log-probabilities are not bounded by 1, as that interval assumes;
    theirs is the percentile bootstrap over the questions of each suite, seeds averaged.
    """
    gaps = [subtract(outcomes(cell, "dart", measure, s), outcomes(cell, against, measure, s)) for s in suites]
    if measure in SHARES:
        return difference_interval(pool([strata_of(gap) for gap in gaps]))
    samples = [np.mean([list(by_question.values()) for by_question in gap.values()], axis=0) for gap in gaps]

    def pooled(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([part.mean(axis=axis) for part in parts], axis=0)

    found = bootstrap(samples, pooled, method="percentile", n_resamples=4000, rng=0).confidence_interval
    return Interval(float(pooled(*samples)), float(found.low), float(found.high))


def shown(interval: Interval, digits: int = 2) -> str:
    return f"{interval.estimate:+.{digits}f} [{interval.low:+.{digits}f}, {interval.high:+.{digits}f}]"


def points(interval: Interval) -> str:
    return points_interval({"estimate": interval.estimate, "low": interval.low, "high": interval.high})


def summary(cells: Mapping[str, Cell]) -> str:
    """The goals of the comparison, cell by cell."""
    header = ["cell", *(f"`dart - {arm}`, {_named(measure)}" for arm, measure in GOALS)]
    return table(header, [[name, *(_goal(cell, *goal) for goal in GOALS)] for name, cell in cells.items()])


def _named(measure: str) -> str:
    return {"out": "out of distribution, points", "nll_rise": "rise of NLL on unrelated text (less is better)"}[measure]


def _goal(cell: Cell, arm: str, measure: str) -> str:
    if arm not in cell["outcomes"]:
        return "not run"
    if measure == "out":
        return points(difference(cell, arm, "correct", OUT))
    return shown(difference(cell, arm, measure))


def accuracies(cell: Cell) -> str:
    header = ["arm", "in distribution, %", "out of distribution, %", *OUT, "right calculation, in, %", "out, %",
              "log p(answer), out", "NLL rise", "KL", "counting", "boolean"]  # fmt: skip
    rows = [
        [
            f"`{arm}`",
            *(f"{100 * average(cell, arm, 'correct', suites):.1f}" for suites in (IN_DISTRIBUTION, OUT)),
            *(f"{100 * average(cell, arm, 'correct', (suite,)):.0f}" for suite in OUT),
            *(_calculated(cell, arm, suites) for suites in (IN_DISTRIBUTION, OUT)),
            f"{average(cell, arm, 'answer_logprob', OUT):.2f}",
            *(f"{average(cell, arm, measure):.3f}" for measure in ("nll_rise", "kl")),
            *(f"{average(cell, arm, measure):.2f}" for measure in ("counting", "boolean")),
        ]
        for arm in cell["outcomes"]
    ]
    return table(header, rows)


def _has_calculations(cell: Cell) -> bool:
    """Whether right calculations were counted; in the first cell they were not."""
    return all("calculated" in found for by_seed in cell["outcomes"].values() for found in by_seed.values())


def _calculated(cell: Cell, arm: str, suites: Sequence[str]) -> str:
    return f"{100 * average(cell, arm, 'calculated', suites):.1f}" if _has_calculations(cell) else MISSING


def differences(cell: Cell) -> str:
    header = ["dart minus", "in distribution, points", "out of distribution, points", "right calculation, out, points",
              "log p(answer), out, nats", "NLL rise, nats", "KL, nats"]  # fmt: skip
    rows = [
        [
            f"`{arm}`",
            points(difference(cell, arm, "correct", IN_DISTRIBUTION)),
            points(difference(cell, arm, "correct", OUT)),
            points(difference(cell, arm, "calculated", OUT)) if _has_calculations(cell) else MISSING,
            shown(difference(cell, arm, "answer_logprob", OUT)),
            shown(difference(cell, arm, "nll_rise"), 3),
            shown(difference(cell, arm, "kl"), 3),
        ]
        for arm in cell["outcomes"]
        if arm != "dart"
    ]
    return table(header, rows)


def mapper(cells: Mapping[str, Cell]) -> str:
    """What reinforcement learning changed: means of the first and the last five steps."""
    rows = []
    for name, cell in cells.items():
        steps = cell["mapper"]
        changes = [f"{_mean(steps[:5], key)} -> {_mean(steps[-5:], key)}" for key in steps[0]]
        counts = [", ".join(f"{key} {n}" for key, n in cell[what].items()) or "none" for what in _COUNTED]
        rows.append([name, str(len(steps)), *changes, *counts])
    header = ["cell", "steps", "reward", "gates passed", "alignment, nats", "rows", "hacks refused", "hacks accepted"]
    return table(header, rows)


def _mean(steps: Sequence[Mapping[str, float]], key: str) -> str:
    return decimals(mean(step[key] for step in steps), 2)


_COUNTED = ("provenance", "hacks_refused", "hacks_accepted")


def costs(cell: Cell) -> str:
    header = ["arm", "minutes", "of these preparing", "generated tokens", "scored", "trained", "operations, 1e15"]
    rows = []
    for arm, cost in cell["costs"].items():
        total = cost["total"]
        minutes = (total["seconds"] / 60, cost["prepare"]["seconds"] / 60)
        tokens = (total[f"{kind}_tokens"] for kind in ("generated", "scored", "trained"))
        shown_tokens = [f"{count:,}" for count in tokens]
        rows.append([f"`{arm}`", *(f"{m:.1f}" for m in minutes), *shown_tokens, f"{total['flops'] / 1e15:.2f}"])
    return table(header, rows)


def rewrites(cell: Cell) -> str:
    header = ["question", "demonstration", "adapted", "from", "alignment"]
    rows = [
        [
            *(_inline(row[name]) for name in ("question", "source_solution", "solution")),
            row["provenance"],
            f"{decimals(row['alignment_before'], 2)} -> {decimals(row['alignment_after'], 2)}",
        ]
        for row in cell["rewrites"]
    ]
    return table(header, rows)


def _inline(text: str) -> str:
    return " / ".join(text.split("\n")).replace("|", "\\|")
