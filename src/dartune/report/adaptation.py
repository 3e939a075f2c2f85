"""Numbers on mappers and on the data they made: rates before, during and after training, provenance, quality."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    rows: Sequence[Mapping[str, Any]], input_rows: int | None, quality: Mapping[str, Any] | None
) -> dict[str, Any]:
    provenance = Counter(row["provenance"] for row in rows)
    total = len(rows) if input_rows is None else input_rows
    gates = defaultdict(list)
    for row in rows:
        for gate, passed in (row.get("gates") or {}).items():
            gates[gate].append(float(passed))
    written = [row for row in rows if row["provenance"] in ADAPTED]
    trained = [row for row in rows if row["provenance"] in VIEWS["success_only"].provenances]
    return {
        "provenance": {source: provenance.pop(source, 0) for source in PROVENANCES} | dict(provenance),
        "accounting": {
            "input": total,
            "adapted": sum(row["provenance"] in ADAPTED for row in rows),
            "original": sum(row["provenance"] in ("natural", "original") for row in rows),
            "dropped": sum(row["provenance"] == "dropped" for row in rows),
            "unaccounted": total - len(rows),
        },
        "reasons": dict(Counter(row["reason"] for row in rows if row.get("reason")).most_common()),
        "gates": {gate: sum(passed) / len(passed) for gate, passed in gates.items()},
        "hacks": _rates(written, "hacks"),
        "hacks_refused": _rates(rows, "hacks_refused"),
        "skeletons": len({skeleton(row["solution"]) for row in written}) / max(1, len(written)),
        "alignment_before": mean_known(row.get("alignment_before") for row in rows),
        "alignment_after": mean_known(row.get("alignment_after") for row in trained),
        "quality": quality,
    }


def _rates(rows: Sequence[Mapping[str, Any]], field: str) -> dict[str, float]:
    """Share of rows whose list `field` has each name, most frequent first."""
    counts = Counter(name for row in rows for name in set(row.get(field) or []))
    return {name: count / len(rows) for name, count in counts.most_common()}
