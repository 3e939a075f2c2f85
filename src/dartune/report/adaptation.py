"""Summaries of mapper training (metrics before, during and after) and of adapted data sets (counts and shares)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dartune.data.adapted_dataset import ADAPTED, PROVENANCES, VIEWS
from dartune.text.features import skeleton

SPARSE_METRICS = ("hacks", "dialects")
"""Metrics whose rows list only what occurred in the step."""
EDGE_STEPS = 5
"""Mapper steps averaged at the beginning ("before") and at the end ("after") of training."""


def first_adaptation(by_name: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The entry of the first adaptation in the results' `mapper` or `adapted`; it is `dart` if that arm was run."""
    return next(iter(by_name.values()), {})


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    measured = [value for value in values if value is not None]
    return sum(measured) / len(measured) if measured else None


def mapper_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of every step, and their means before, during and after training."""
    # A hack or dialect that did not occur in a step is absent from its row. Its share there is 0, not missing.
    for part in SPARSE_METRICS:
        zeros = dict.fromkeys((key for row in rows for key in row.get(part) or {}), 0.0)
        rows = [{**row, part: zeros | dict(row.get(part) or {})} if zeros else row for row in rows]
    edge = max(1, min(EDGE_STEPS, len(rows) // 3))
    phases = {"before": rows[:edge], "during": rows[edge:-edge], "after": rows[-edge:]}
    return {
        "steps": list(rows),
        "edge_steps": edge,
        "phases": {phase: _average(part) for phase, part in phases.items() if part},
    }


def _average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of every numeric field, recursively through nested dicts; missing and null values are left out."""
    average: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row if key != "step"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values and all(isinstance(value, Mapping) for value in values):
            average[key] = _average(values)
        elif values and all(isinstance(value, (int, float)) for value in values):
            average[key] = sum(values) / len(values)
    return average


def adapted_summary(
    rows: Iterable[Mapping[str, Any]], input_rows: int | None, quality: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the summary of an adapted data set, computed in one pass over its rows.

    The rows may be read from disk one by one, so only counters and compact arrays are kept in memory.

    Args:
        rows: rows of the data set, dropped ones included.
        input_rows: number of demonstrations that went into synthesis; None if unknown.
        quality: measurements to include as they are.
    """
    counts = {name: Counter() for name in ("provenance", "reasons", "hacks", "hacks_refused", "passed", "checked")}
    before, after, skeleton_hashes = array("d"), array("d"), array("q")
    for row in rows:
        source, gates = row["provenance"], row.get("gates") or {}
        counts["provenance"][source] += 1
        counts["reasons"].update([row["reason"]] if row.get("reason") else [])
        counts["checked"].update(gates.keys())  # given a mapping, `update` would add its values
        counts["passed"].update(gate for gate, passed in gates.items() if passed)
        counts["hacks_refused"].update(set(row.get("hacks_refused") or []))
        if source in ADAPTED:
            counts["hacks"].update(set(row.get("hacks") or []))
            skeleton_hashes.append(hash(skeleton(row["solution"])))
        before.extend(_as_tuple(row.get("alignment_before")))
        if source in VIEWS["success_only"].provenances:
            after.extend(_as_tuple(row.get("alignment_after")))
    provenance, rows_out = counts["provenance"], counts["provenance"].total()
    total = rows_out if input_rows is None else input_rows
    return {
        "provenance": {source: provenance[source] for source in PROVENANCES} | dict(provenance),
        "accounting": {
            "input": total,
            "adapted": sum(provenance[source] for source in ADAPTED),
            "original": provenance["natural"] + provenance["original"],
            "dropped": provenance["dropped"],
            "unaccounted": total - rows_out,
        },
        "reasons": dict(counts["reasons"].most_common()),
        "gates": {gate: counts["passed"][gate] / count for gate, count in counts["checked"].items()},
        "hacks": {name: count / len(skeleton_hashes) for name, count in counts["hacks"].most_common()},
        "hacks_refused": {name: count / rows_out for name, count in counts["hacks_refused"].most_common()},
        "skeletons": len(np.unique(np.asarray(skeleton_hashes))) / max(1, len(skeleton_hashes)),
        "alignment_before": sum(before) / len(before) if before else None,
        "alignment_after": sum(after) / len(after) if after else None,
        "quality": quality,
    }


def _as_tuple(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)
