"""What did not work: everything in the results that speaks against the adapted data, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dartune.report.summary import counted, pairs, percent, points

SHOWN_HACK = 0.005
MAIN = "dart"


def shortfalls(results: Mapping[str, Any]) -> list[str]:
    """Sentences on arms that beat dart, on rows left unadapted, hacks left in, and grids that were too narrow."""
    return [*_better_arms(results), *_unadapted(results), *_mappers(results), *_edges(results)]


def _better_arms(results: Mapping[str, Any]) -> Iterator[str]:
    for arm, against in pairs(results):
        lost = [
            f"{row['name']} {points(-row['estimate'])} [{points(-row['high'])}, {points(-row['low'])}]"
            for row in results["differences"]
            if (row["arm"], row["against"], row["level"], row["measure"]) == (MAIN, against, "group", "accuracy")
            and row["verdict"] == "lower"
        ]
        if arm == MAIN and lost:
            yield f"{against} is better than {MAIN}, points: {', '.join(lost)}."


def _unadapted(results: Mapping[str, Any]) -> Iterator[str]:
    for name, by_seed in results["adapted"].items():
        for seed, data in by_seed.items():
            account = data["accounting"]
            left = account["original"] + account["dropped"]
            why = next((reason for reason in data["reasons"] if "none" in reason or "no verified" in reason), None)
            if left:
                most = f"; most often: {why}" if why else ""
                yield f"{name}, seed {seed}: {left:,} of {account['input']:,} rows without an adapted solution{most}."
            for hack, share in data["hacks"].items():
                if share >= SHOWN_HACK:
                    yield f"{name}, seed {seed}: {percent(share)}% of the adapted solutions commit {hack}."


def _mappers(results: Mapping[str, Any]) -> Iterator[str]:
    for name, by_seed in results["mapper"].items():
        for seed, mapper in by_seed.items():
            first, last = (mapper["phases"].get(phase, {}).get("reward") for phase in ("before", "after"))
            if first is not None and last is not None and last <= first:
                yield f"Mapper of {name}, seed {seed}: training did not raise the reward ({first:.2f} to {last:.2f})."


def _edges(results: Mapping[str, Any]) -> Iterator[str]:
    """Grids at whose end the best learning rate was: a wider grid may find a better one."""
    for arm, by_seed in results["learning_rates"].items():
        for end, pick in (("largest", max), ("smallest", min)):
            at_end = [
                seed
                for seed, choice in by_seed.items()
                if len(choice["dev"]) > 1 and choice["chosen"] == pick(map(float, choice["dev"]))
            ]
            if at_end:
                where = f"{counted(len(at_end), 'seed')} of {len(by_seed)}"
                yield f"Learning rate of {arm}: the {end} tried was best on dev ({where}); try {_beyond[end]} ones."


_beyond = {"largest": "larger", "smallest": "smaller"}
