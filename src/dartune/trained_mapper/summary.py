"""What became of new rows, beside the rows of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from dartune.data.adapted_dataset import PROVENANCES, VIEWS
from dartune.data.row_store import open_rows
from dartune.data.run_records import AdaptedRow, ProbeRow
from dartune.errors import counted
from dartune.run.number_format import decimals, percent_of
from dartune.trained_mapper.new_rows import Overlap
from dartune.trained_mapper.source_run import SourceRun

SAMPLED = ("rewrite", "guided")
"""Fallbacks that are sampled for every row and checked by all gates."""


@dataclass(frozen=True)
class Outcome:
    """Figures of adapted rows.

    Args:
        counts: rows by provenance.
        sampled, passed: rewrites that were sampled, and those among them that passed the gates.
        before, after: mean alignment (nats per token by default) of the rows to train on, with the demonstration's
            solution and with their own; None if there are no such rows.
    """

    counts: Counter[str]
    sampled: int
    passed: int
    before: float | None
    after: float | None

    @property
    def rows(self) -> int:
        return sum(self.counts.values())


def outcome(rows: Iterable[AdaptedRow], probed: Iterable[ProbeRow], samples: int, fallbacks: Sequence[str]) -> Outcome:
    """Count what rows became.

    Args:
        probed: the probe's row of each row.
        samples, fallbacks: `synthesise.samples` and `synthesise.ladder` of the run.
    """
    counts: Counter[str] = Counter()
    sampled = passed = 0
    before, after = [], []
    for row, probe in zip(rows, probed, strict=True):
        counts[row["provenance"]] += 1
        row_sampled, row_passed = sampled_and_passed(row, probe, samples, fallbacks)
        sampled, passed = sampled + row_sampled, passed + row_passed
        if row["provenance"] in VIEWS["success_only"].provenances and row["alignment_after"] is not None:
            before.append(row["alignment_before"])
            after.append(row["alignment_after"])
    mean_before, mean_after = (fmean(values) if values else None for values in (before, after))
    return Outcome(counts, sampled, passed, mean_before, mean_after)


def sampled_and_passed(row: AdaptedRow, probe: ProbeRow, samples: int, fallbacks: Sequence[str]) -> tuple[int, int]:
    """How many rewrites of a row were sampled, and how many of them passed the gates; own samples are left out."""
    tried = _tried(row, fallbacks)
    sampled = samples * sum(name in SAMPLED for name in tried)
    return sampled, row["accepted"] - ("own" in tried) * len(probe["own"])


def _tried(row: AdaptedRow, fallbacks: Sequence[str]) -> Sequence[str]:
    """The fallbacks whose candidates `accepted` counts: those up to the one that was taken."""
    # With a runner-up, no candidate was worth more than the original when the row was adapted.
    taken = row["provenance"] if row["runner_up"] is None else "original"
    taken = "original" if taken == "natural" else taken
    return fallbacks[: fallbacks.index(taken) + 1] if taken in fallbacks else fallbacks


def stage_outcome(run: SourceRun, folder: Path) -> Outcome:
    """The figures of the adapted rows in the stages of a folder."""
    rows = open_rows(folder / "stages" / run.synthesis / "rows.jsonl")
    probed = open_rows(folder / "stages" / run.probe / "probe.jsonl")
    return outcome(rows, probed, run.config.synthesise.samples, run.config.synthesise.ladder)


def summary(run: SourceRun, output: Path, shared: Overlap) -> str:
    """The summary of `dartune adapt`: what the rows became, beside the same figures of the run's rows."""
    new, old = (stage_outcome(run, folder) for folder in (output, run.folder))
    counts = ", ".join(f"{new.counts[name]} {name}" for name in PROVENANCES if new.counts[name])
    untrained = [] if run.config.mapper.steps else ["mapper.steps is 0: this is the initial mapper, without training."]
    lines = [f"{counted(new.rows, 'row')} = {counts}", *untrained, ""]
    lines += [f"{'':<42}{'these rows':>12}{'the run':>12}"]
    figures = {
        "rows that were rewritten": [percent_of(each.counts["rewrite"], each.rows) for each in (new, old)],
        "rewrites that pass the gates": [percent_of(each.passed, each.sampled) for each in (new, old)],
        "mean alignment before, rows to train on": [decimals(each.before, 2) for each in (new, old)],
        "mean alignment after, rows to train on": [decimals(each.after, 2) for each in (new, old)],
    }
    lines += [f"{name:<42}{new_value:>12}{old_value:>12}" for name, (new_value, old_value) in figures.items()]
    adapted = output / "stages" / run.synthesis / "adapted"
    return "\n".join([*lines, "", *shared.lines(), f"The adapted data set: {adapted}"])
