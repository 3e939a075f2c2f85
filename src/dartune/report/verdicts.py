"""The negative findings of a run as sentences, for the report's section "What did not work"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dartune.errors import counted
from dartune.report.summary import pairs
from dartune.run.number_format import decimals, percent, points, thousands

MIN_HACK_SHARE = 0.005
"""Smallest share of adapted solutions with a hack that is reported."""
MAIN = "dart"
WIDER = {"largest": "larger", "smallest": "smaller"}


def shortfalls(results: Mapping[str, Any]) -> list[str]:
    """Arms that beat dart, unadapted rows, remaining hacks, mappers that did not improve, and too narrow grids."""
    return [
        *_better_arms(results),
        *_data_problems(results),
        *_failed_mappers(results),
        *_narrow_grids(results),
    ]


def _better_arms(results: Mapping[str, Any]) -> Iterator[str]:
    for arm, against in pairs(results):
        losses = [
            f"{row['name']} {points(-row['estimate'])} [{points(-row['high'])}, {points(-row['low'])}]"
            for row in results["differences"]
            if (row["arm"], row["against"], row["level"], row["measure"]) == (MAIN, against, "group", "accuracy")
            and row["verdict"] == "lower"
        ]
        if arm == MAIN and losses:
            yield f"{against} is better than {MAIN}, points: {', '.join(losses)}."


def _data_problems(results: Mapping[str, Any]) -> Iterator[str]:
    for name, by_seed in results["adapted"].items():
        for seed, data in by_seed.items():
            accounting = data["accounting"]
            unadapted = accounting["original"] + accounting["dropped"]
            # Reasons are sorted by frequency, so the first one that matches is the most frequent.
            reason = next((text for text in data["reasons"] if "none" in text or "no verified" in text), None)
            if unadapted:
                detail = f"; most frequent reason: {reason}" if reason else ""
                total = f"{thousands(unadapted)} of {thousands(accounting['input'])}"
                yield f"{name}, seed {seed}: {total} rows have no adapted solution{detail}."
            for hack, share in data["hacks"].items():
                if share >= MIN_HACK_SHARE:
                    yield f"{name}, seed {seed}: {percent(share)}% of the adapted solutions commit {hack}."


def _failed_mappers(results: Mapping[str, Any]) -> Iterator[str]:
    for name, by_seed in results["mapper"].items():
        for seed, mapper in by_seed.items():
            first, last = (mapper["phases"].get(phase, {}).get("reward") for phase in ("before", "after"))
            if first is not None and last is not None and last <= first:
                rewards = f"{decimals(first, 2)} to {decimals(last, 2)}"
                yield f"Mapper of {name}, seed {seed}: training did not raise the reward ({rewards})."


def _narrow_grids(results: Mapping[str, Any]) -> Iterator[str]:
    """Arms whose best learning rate is the smallest or largest of the grid: a wider grid may contain a better one."""
    for arm, by_seed in results["learning_rates"].items():
        for end, pick in (("largest", max), ("smallest", min)):
            at_end = [
                seed
                for seed, choice in by_seed.items()
                if len(choice["dev"]) > 1 and choice["chosen"] == pick(map(float, choice["dev"]))
            ]
            if at_end:
                seeds = f"{counted(len(at_end), 'seed')} of {len(by_seed)}"
                yield f"Learning rate of {arm}: the {end} value tried was best on dev ({seeds}); try {WIDER[end]} ones."
