"""The page that shows what `rewards.py` measured: Markdown from results/rewards.json, nothing typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
from pages import table
from scipy.stats import bootstrap, spearmanr

Row = dict[str, Any]
MAIN = ("default", "no anti-cheating", "no alignment", "correct-answer constant", "fixed failure", "vargrad")
OOD, RETENTION = "out of distribution", "retention"
SHOWN_RATE = 0.005
RESAMPLES = 4000

INTRODUCTION = """\
# Which parts of the reward matter

Made by `python experiments/rewards.py run`, `collect`, `write` from `results/rewards.json`; the interpretation is
in [rewards](rewards.md) and [experiments](experiments.md).

The lab's recipe, expert `values`, target `backward`, but an initial mapper pretrained for a quarter of the steps
(`dartune lab build --only mapper --steps 1500 --output FOLDER`): it gets half of its rewrites wrong, so
hacks are easy. Targets are trained on the rows that stayed originals as well (`dart_keep_original`).
Variants change the reward or one dial, nothing else; every target is fine-tuned
with learning rate 6e-4. Accuracies in %, 128 questions a suite; base is the untouched target. Where a cell has three
figures they are mean, lowest and highest of three seeds; elsewhere one seed.
"""


def page(rows: Sequence[Row]) -> str:
    """The whole page; every variant is a group of rows, one per seed."""
    parts = [
        INTRODUCTION,
        "## Variants of the reward\n\n" + _main_table(rows),
        "## What the target gains, suite by suite\n\n" + _gain_table(rows),
        "## Hacks by name\n\n" + _hack_table(rows),
        "## Two optimisers\n\n" + _optimiser_table(rows),
        "## Dials\n\n" + _dial_table(rows),
        "## Does alignment predict what the target gains?\n\n" + _correlations(rows),
        "## Three rewrites of each\n\nThe first three of seed 0, unselected.\n\n" + _rewrites(rows),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _of(rows: Sequence[Row], variant: str) -> list[Row]:
    return [row for row in rows if row["variant"] == variant]


def _variants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def _spread(rows: Sequence[Row], value: Callable[[Row], float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean, and where there are several seeds the lowest and the highest."""
    values = [scale * value(row) for row in rows]
    told = f"{mean(values):.{digits}f}"
    return told if len(values) == 1 else f"{told} ({min(values):.{digits}f}, {max(values):.{digits}f})"


def _rewritten(row: Row) -> float:
    counts = row["adapted"]["provenance"]
    return counts["rewrite"] / sum(counts.values())


def _quality(key: str) -> Callable[[Row], float]:
    return lambda row: row["adapted"]["quality"][key]


def _accuracy(group: str) -> Callable[[Row], float]:
    return lambda row: row["accuracy"][group]


OUTCOMES: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("rows rewritten", _rewritten),
    ("right in every step", _quality("step_correct")),
    ("names right", _quality("names_correct")),
    (OOD, _accuracy(OOD)),
    (RETENTION, _accuracy(RETENTION)),
)


def _main_table(rows: Sequence[Row]) -> str:
    base = rows[0]["base"]
    header = ["reward", "reward, first and last steps", "gates passed, first and last", *(name for name, _ in OUTCOMES)]
    lines = [["base", "", "", "", "", "", f"{100 * base[OOD]:.1f}", f"{100 * base[RETENTION]:.1f}"]]
    for variant in MAIN:
        own = _of(rows, variant)
        reward = [mean(row["reward"][phase] for row in own) for phase in ("before", "after")]
        passed = [100 * mean(row["gate_pass"][phase] for row in own) for phase in ("before", "after")]
        edges = [f"{reward[0]:.2f}, {reward[1]:.2f}", f"{passed[0]:.0f}, {passed[1]:.0f}"]
        lines.append([variant, *edges, *(_spread(own, value) for _, value in OUTCOMES)])
    return table(header, lines)


def _gain_table(rows: Sequence[Row]) -> str:
    """Accuracy less the untouched target's, per suite: points, mean of the seeds."""
    suites = list(rows[0]["suites"])
    lines = []
    for variant in MAIN:
        own = _of(rows, variant)
        gains = (mean(row["suites"][suite] - row["base_suites"][suite] for row in own) for suite in suites)
        lines.append([variant, *(f"{100 * gain:+.1f}" for gain in gains)])
    base = ["untouched, accuracy", *(f"{100 * rows[0]['base_suites'][suite]:.1f}" for suite in suites)]
    return table(["points gained", *(suite.replace("_", " ") for suite in suites)], [*lines, base])


def _hack_table(rows: Sequence[Row]) -> str:
    """Per variant and hack: share of rewrites in the first and last steps, and of the adapted solutions."""
    lines = []
    for variant in MAIN:
        own = _of(rows, variant)
        names = own[0]["hacks"]["before"]
        for name in names:
            first, last = (mean(row["hacks"][phase].get(name, 0.0) for row in own) for phase in ("before", "after"))
            kept = mean(row["adapted"]["hacks"].get(name, 0.0) for row in own)
            if max(first, last, kept) >= SHOWN_RATE:
                lines.append([variant, f"`{name}`", *(f"{100 * share:.1f}" for share in (first, last, kept))])
    note = f"Hacks below {100 * SHOWN_RATE:.1f}% everywhere are left out. Means of three seeds, %.\n\n"
    return note + table(["reward", "hack", "first steps", "last steps", "adapted solutions"], lines)


def _optimiser_table(rows: Sequence[Row]) -> str:
    header = ["optimiser", "distinct skeletons per 100 rewrites", "mapper entropy, last steps, nats"]
    header += [f"{what}@8, {group}" for group in (OOD, RETENTION) for what in ("avg", "pass")]

    def over(field: str, prefix: str) -> Callable[[Row], float]:
        return lambda row: mean(value for suite, value in row[field].items() if suite.startswith(prefix))

    lines = []
    for name, variant in (("grpo", "default"), ("vargrad", "vargrad")):
        own = _of(rows, variant)
        cells = [_spread(own, lambda row: row["adapted"]["skeletons"])]
        cells.append(_spread(own, lambda row: row["entropy"]["after"], 1.0, 3))
        cells += [
            _spread(own, over(f"{what}_at_k", part)) for part in ("ood_", "retention") for what in ("avg", "pass")
        ]
        lines.append([name, *cells])
    return table(header, lines)


def _dial_table(rows: Sequence[Row]) -> str:
    header = ["dial", "gates passed, last steps", *(name for name, _ in OUTCOMES)]
    dials = ["default", *(name for name in _variants(rows) if name not in MAIN)]
    lines = []
    for variant in dials:
        own = _of(rows, variant)
        passed = _spread(own, lambda row: row["gate_pass"]["after"], digits=0)
        lines.append([variant, passed, *(_spread(own, value) for _, value in OUTCOMES)])
    return table(header, lines)


def _correlations(rows: Sequence[Row]) -> str:
    """Spearman's rank correlation over all seeds of all variants; intervals: 95% bootstrap over the runs."""
    rows = list({json.dumps(row["suites"] | row["alignment"]): row for row in rows}.values())  # a dial may do nothing
    scores: dict[str, Callable[[Row], float]] = {
        f"`{name}`": (lambda row, name=name: row["alignment"][name]) for name in rows[0]["alignment"]
    }
    scores["rows rewritten"] = _rewritten
    scores["right in every step (needs a checker)"] = lambda row: row["adapted"]["quality"]["step_correct"]
    lines = []
    for name, value in scores.items():
        cells = [_rank_correlation([value(r) for r in rows], [r["accuracy"][group] for r in rows]) for group in GAINS]
        lines.append([name, *cells])
    note = (
        f"{len(rows)} different mapper runs. The score's mean over the rows that a target was trained on, against that "
        "target's accuracy: Spearman's rank correlation and its 95% interval (bootstrap over the runs).\n\n"
    )
    return note + table(["of the adapted rows", *GAINS], lines)


GAINS = (OOD, RETENTION)


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> str:
    pair = (np.asarray(one), np.asarray(other))
    found = bootstrap(
        pair,
        lambda a, b: spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return f"{spearmanr(*pair).statistic:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _rewrites(rows: Sequence[Row]) -> str:
    lines = []
    for variant in MAIN:
        lines.append(f"**{variant}**\n")
        for shown in next(row for row in _of(rows, variant) if row["seed"] == 0)["rewrites"]:
            lines.append(f"* {shown['question']}\n  - expert: `{shown['source_solution']}`")
            lines.append(f"  - rewrite: `{shown['solution']}`")
        lines.append("")
    return "\n".join(lines)
