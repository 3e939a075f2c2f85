"""Results of one cell from several runs of it, each with seeds of its own, as those of one run.

Estimates are averaged, each run weighing as much as it has seeds. So are the distances from estimate to limit, which is
what they would be if the runs erred alike on every question: never narrower than an interval over all seeds at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]
MEANS = ("step_accuracy", "names_accuracy", "announced", "mean_tokens", "truncated")


def merged(earlier: Results, later: Results) -> dict[str, Any]:
    """One cell's collected results, seeds of both; where `later` has all seeds of `earlier`, it takes its place.

    Raises:
        SystemExit: the two share some seeds only, or differ in arms.
    """
    old, new = set(earlier["seeds"]), set(later["seeds"])
    if old <= new:
        return dict(later)
    if new <= old:
        return dict(earlier)
    if old & new or list(earlier["arms"]) != list(later["arms"]):
        raise SystemExit(f"these runs cannot be joined: seeds {sorted(old)} and {sorted(new)}, or other arms")
    weights = len(old) / len(old | new), len(new) / len(old | new)
    parts = (earlier, later)
    return {
        **earlier,
        "seeds": sorted(old | new),
        "learning_rates": {arm: one | later["learning_rates"][arm] for arm, one in earlier["learning_rates"].items()},
        "summaries": _rows(parts, weights, "summaries", ("arm", "name"), _summary),
        "differences": _rows(parts, weights, "differences", ("arm", "against", "measure", "name"), _difference),
        "costs": {arm: _spent(earlier["costs"][arm], later["costs"][arm]) for arm in earlier["costs"]},
        "break_even_rows": _mean([part["break_even_rows"] for part in parts], weights),
        "adapted": {name: earlier["adapted"][name] | later["adapted"][name] for name in earlier["adapted"]},
        **({"hacks": [*earlier["hacks"], *later["hacks"]]} if "hacks" in earlier and "hacks" in later else {}),
    }


def _interval(earlier: Results, later: Results, weights: tuple[float, float]) -> dict[str, float]:
    """{estimate, low, high} of both."""
    centre = _mean([earlier["estimate"], later["estimate"]], weights)
    below, above = (
        _mean([abs(part[side] - part["estimate"]) for part in (earlier, later)], weights) for side in ("low", "high")
    )
    return {"estimate": centre, "low": centre - below, "high": centre + above}


def pooled(cells: Mapping[str, Results]) -> dict[str, dict[str, dict[str, float]]]:
    """arm -> group -> dart - arm over all cells, which weigh the same.

    The cells were asked the same questions, which are hard or easy in all of them, so distances to the limits are
    averaged: more cells are no new questions.
    """
    found: dict[tuple[str, str], list[Results]] = {}
    for cell in cells.values():
        for row in cell["differences"]:
            if row["arm"] == "dart" and row["measure"] == "accuracy":
                found.setdefault((row["against"], row["name"]), []).append(row)
    pairs: dict[str, dict[str, dict[str, float]]] = {}
    for (arm, group), rows in found.items():
        centre = sum(row["estimate"] for row in rows) / len(rows)
        below, above = (sum(abs(row[side] - row["estimate"]) for row in rows) / len(rows) for side in ("low", "high"))
        pairs.setdefault(arm, {})[group] = {"estimate": centre, "low": centre - below, "high": centre + above}
    return pairs


def _rows(parts: tuple, weights: tuple[float, float], section: str, keys: tuple[str, ...], join: Any) -> list[dict]:
    found = {tuple(row[key] for key in keys): row for row in parts[1][section]}
    return [join(row, found[tuple(row[key] for key in keys)], weights) for row in parts[0][section]]


def _summary(earlier: Results, later: Results, weights: tuple[float, float]) -> dict[str, Any]:
    interval = _interval(earlier["accuracy"], later["accuracy"], weights)
    kept = {key: _mean([earlier.get(key), later.get(key)], weights) for key in MEANS}
    limits = {"low": max(0.0, interval["low"]), "high": min(1.0, interval["high"])}
    return {**earlier, **kept, "accuracy": {**interval, **limits}, "by_seed": _by_seed(earlier, later)}


def _difference(earlier: Results, later: Results, weights: tuple[float, float]) -> dict[str, Any]:
    interval = _interval(earlier, later, weights)
    verdict = "higher" if interval["low"] > 0 else "lower" if interval["high"] < 0 else "unclear"
    return {**earlier, **interval, "by_seed": _by_seed(earlier, later), "verdict": verdict}


def _by_seed(earlier: Results, later: Results) -> dict[str, float]:
    both = earlier["by_seed"] | later["by_seed"]
    return {seed: both[seed] for seed in sorted(both, key=int)}


def _spent(earlier: Results, later: Results) -> dict[str, float]:
    """Costs of all seeds together."""
    return {key: (max if key == "peak_memory_mb" else sum)([earlier[key], later[key]]) for key in earlier}


def _mean(values: list[float | None], weights: tuple[float, float]) -> float | None:
    if None in values:
        return None
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
