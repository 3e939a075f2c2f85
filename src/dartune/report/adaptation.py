"""Numbers on mappers and on the data they made: rates before, during and after training, provenance, quality."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dartune.data.adapted import ADAPTED, PROVENANCES, VIEWS
from dartune.rewards.text import skeleton

SHARES = ("hacks", "dialects")
EDGE_STEPS = 5  # mapper steps averaged at either end for "before" and "after"


def main_part(by_name: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the results' `mapper` or `adapted`: that of the first adaptation, which is dart's if dart was run."""
    return next(iter(by_name.values()), {})


def mean_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def mapper_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The curve as it is, and the mean of every metric before, during and after training."""
    # A dialect or a hack that a step never saw is absent from its row: its share there is 0, not unknown.
    for part in SHARES:
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
    """Mean of every numeric field, through nested dicts; absent and null values are left out."""
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
    """Everything the report says of an adapted data set, in one pass over its rows."""
    found = {name: Counter() for name in ("provenance", "reasons", "hacks", "hacks_refused", "passed", "judged")}
    before, after, ways = array("d"), array("d"), array("q")
    for row in rows:
        source, gates = row["provenance"], row.get("gates") or {}
        found["provenance"][source] += 1
        found["reasons"].update([row["reason"]] if row.get("reason") else [])
        found["judged"].update(gates.keys())  # of a mapping the values would be added
        found["passed"].update(gate for gate, passed in gates.items() if passed)
        found["hacks_refused"].update(set(row.get("hacks_refused") or []))
        if source in ADAPTED:
            found["hacks"].update(set(row.get("hacks") or []))
            ways.append(hash(skeleton(row["solution"])))
        before.extend(_known(row.get("alignment_before")))
        if source in VIEWS["success_only"].provenances:
            after.extend(_known(row.get("alignment_after")))
    provenance, rows_out = found["provenance"], found["provenance"].total()
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
        "reasons": dict(found["reasons"].most_common()),
        "gates": {gate: found["passed"][gate] / count for gate, count in found["judged"].items()},
        "hacks": {name: count / len(ways) for name, count in found["hacks"].most_common()},
        "hacks_refused": {name: count / rows_out for name, count in found["hacks_refused"].most_common()},
        "skeletons": len(np.unique(np.asarray(ways))) / max(1, len(ways)),
        "alignment_before": sum(before) / len(before) if before else None,
        "alignment_after": sum(after) / len(after) if after else None,
        "quality": quality,
    }


def _known(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)
