"""What the comparison says in sentences: the reading is ours, every figure in it is taken from the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from dartune.report.summary import difference_of, summary_of
from dartune.run.number_format import points_interval

Results = Mapping[str, Any]
Cells = Mapping[str, Results]
OOD, RETENTION = "out of distribution", "retention"


def in_short(found: Mapping[str, Cells]) -> str:
    """The section of docs/results.md that a reader in a hurry reads."""
    sections = (_adapting, _best_of_k, _direct_rl, _gold, _parts, _distance)
    return "\n".join([_seeds(found["matrix"]), "", *(f"* {section(found)}" for section in sections)])


def under_the_headline(found: Mapping[str, Cells]) -> str:
    """What README.md says below its table."""
    right = [data["quality"]["step_correct"] for cell in found["matrix"].values() for data in _adapted(cell)]
    return f"{_seeds(found['matrix'])} {_span(right, '{:.0f}')}% of the adapted rows are right in every step."


def _seeds(cells: Cells) -> str:
    counts = {len(cell["seeds"]) for cell in cells.values()}
    many = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    gaps = [_by_seed(cell, "sft", OOD) for cell in cells.values()]
    apart = max(max(values) - min(values) for values in gaps)
    return (
        f"**{many} seed{'s' * (counts != {1})} of each cell.** The intervals say what other questions would have "
        f"given, not what "
        f"other seeds would: within a cell, dart - sft out of distribution differs by up to {100 * apart:.0f} "
        f"points from seed to seed. {_signs(cells)}"
    )


def _signs(cells: Cells) -> str:
    """How often dart is ahead, seed by seed."""
    told = []
    for arm in ("sft", "best_of_k", "grpo_tokens"):
        values = [value for cell in cells.values() for value in _by_seed(cell, arm, OOD)]
        told.append(f"`{arm}` in {sum(value > 0 for value in values)}")
    return f"Of {len(values)} pairs of cell and seed, dart is ahead of {', of '.join(told)}."


def _adapting(found: Mapping[str, Cells]) -> str:
    cells = found["matrix"].values()
    lost = [-_estimate(cell, "base", RETENTION) for cell in cells]
    return (
        f"Raw demonstrations destroy these targets: of their old skills {_accuracies(cells, 'sft', RETENTION)}% "
        f"are left, and they know "
        f"{_accuracies(cells, 'sft', OOD)}% of the new (before: {_accuracies(cells, 'base', OOD)}%). The same "
        f"questions, rewritten, teach the new "
        f"({_accuracies(cells, 'dart', OOD)}%) and leave the old: dart - sft is {_gaps(cells, 'sft', OOD)} points "
        f"out of distribution "
        f"and {_gaps(cells, 'sft', RETENTION)} in retention. Against the untouched target {_span(lost)} points of "
        f"retention are lost."
    )


def _best_of_k(found: Mapping[str, Cells]) -> str:
    cells, rows, samples = found["matrix"].values(), found["rows"], found["samples"]
    told = [
        f"As many rewrites of the untrained mapper (`best_of_k`) get most of the way: training the mapper adds "
        f"{_gaps(cells, 'best_of_k', OOD)} points out of distribution "
        f"({_interval(found['pooled']['best_of_k'][OOD])} over all), and "
        f"{_gaps(cells, 'best_of_k', RETENTION)} in retention, where `best_of_k` takes rewrites in foreign "
        f"dialects for want of others. "
        f"It pays with many rows and few tries a row: "
        f"{_interval(difference_of(rows['100'], 'dart', 'best_of_k', OOD))} at 100 rows, "
        f"{_interval(difference_of(rows['3000'], 'dart', 'best_of_k', OOD))} at 3,000; "
        f"{_interval(difference_of(samples['1'], 'dart', 'best_of_k', OOD))} at one rewrite a row, "
        f"{_interval(difference_of(samples['16'], 'dart', 'best_of_k', OOD))} at 16."
    ]
    for name, cell in found.get("start", {}).items():
        told.append(f"Mapper start `{name}`: {_interval(difference_of(cell, 'dart', 'best_of_k', OOD))}.")
    return " ".join(told)


def _direct_rl(found: Mapping[str, Cells]) -> str:
    cells, arms = found["matrix"].values(), found["arms"]["backward-values"]
    tripled = [_estimate(cell, "grpo_3x_tokens", OOD) for cell in found["tokens"].values()]
    told = [
        f"Direct RL on the target, with as many generated tokens at each of three learning rates, reaches "
        f"{_accuracies(cells, 'grpo_tokens', OOD)}% out of distribution: dart - grpo is "
        f"{_gaps(cells, 'grpo_tokens', OOD)} points. "
        f"With three times the tokens at its best rate, {_span(tripled, '{:+.0f}')}. As many seconds give it "
        f"{_percent(arms, 'grpo_seconds', OOD)}% and leave {_percent(arms, 'grpo_seconds', RETENTION)}% of the "
        f"old. On top of dart it adds "
        f"{_interval(_negated(difference_of(arms, 'dart', 'dart_then_grpo', OOD)))}."
    ]
    known = found["known"].values()
    best = max(known, key=lambda cell: _accuracy(cell, "base", OOD))
    told.append(
        f"The more of the new a target knows beforehand, the closer it comes: "
        f"{_interval(difference_of(best, 'dart', 'grpo_tokens', OOD))} "
        f"where {_percent(best, 'base', OOD)}% is known."
    )
    return " ".join(told)


def _gold(found: Mapping[str, Cells]) -> str:
    cells = found["matrix"].values()
    above = sum(_estimate(cell, "gold", OOD) > 0 for cell in cells)
    return (
        f"`gold`, the same questions solved in the target's own dialect, is no strict ceiling: dart is above it in "
        f"{above} of {len(cells)} cells "
        f"({_gaps(cells, 'gold', OOD)} points). What is missing are the rows without a rewrite and those with a "
        f"step that the lab's checker "
        "calls wrong (tables below)."
    )


def _parts(found: Mapping[str, Cells]) -> str:
    arms = found["arms"]["backward-values"]

    def of(name: str) -> str:
        return f"`{name}` {-100 * _estimate(arms, name, OOD):+.0f}"

    return (
        f"What helps, in points of dart out of distribution: alignment ({of('no_alignment')}), the anti-cheating "
        f"gates "
        f"({of('no_anticheating')}, though this initial mapper hardly cheats), the right target "
        f"({of('wrong_target')}, and "
        f"{100 * _estimate(arms, 'wrong_target', RETENTION):.0f} points of old skills), leaving out the unnatural "
        f"originals "
        f"({of('dart_keep_original')}). What does not: selecting the half of the tokens with the most gain "
        f"({of('dart_selected')}), several rewrites "
        f"a row ({of('dart_augmented')}), other losses on raw data ({of('sft_dft')}, {of('sft_asft')}), dft on "
        f"adapted data "
        f"({of('dart_dft')}). One seed."
    )


def _distance(found: Mapping[str, Cells]) -> str:
    native, bare = found["distance"]["backward"], found["distance"]["bare"]
    kept = mean(data["provenance"]["original"] + data["provenance"].get("natural", 0) for data in _adapted(native))
    left = mean(data["provenance"]["original"] + data["provenance"]["dropped"] for data in _adapted(bare))
    return (
        f"Where the expert writes as the target does, adapting changes nothing that can be told "
        f"({_interval(difference_of(native, 'dart', 'sft', OOD))}): {kept:.0f} of 1,000 demonstrations stay as "
        f"they are. At the other end, bare "
        f"answers, the gain shrinks to {_interval(difference_of(bare, 'dart', 'sft', OOD))}: {left:.0f} rows find "
        f"no rewrite."
    )


def _adapted(cell: Results) -> list[Mapping[str, Any]]:
    return list(cell["adapted"]["dart"].values())


def _accuracy(cell: Results, arm: str, group: str) -> float:
    return 100 * summary_of(cell, arm, group)["accuracy"]["estimate"]


def _percent(cell: Results, arm: str, group: str) -> str:
    return f"{_accuracy(cell, arm, group):.0f}"


def _estimate(cell: Results, against: str, group: str) -> float:
    """dart - against."""
    return difference_of(cell, "dart", against, group)["estimate"]


def _by_seed(cell: Results, against: str, group: str) -> list[float]:
    return list(difference_of(cell, "dart", against, group)["by_seed"].values())


def _negated(row: Mapping[str, float]) -> dict[str, float]:
    return {"estimate": -row["estimate"], "low": -row["high"], "high": -row["low"]}


def _interval(row: Mapping[str, float]) -> str:
    return points_interval(row)


def _accuracies(cells: Iterable[Results], arm: str, group: str) -> str:
    return _span([_accuracy(cell, arm, group) / 100 for cell in cells], "{:.0f}")


def _gaps(cells: Iterable[Results], against: str, group: str) -> str:
    return _span([_estimate(cell, against, group) for cell in cells], "{:+.0f}")


def _span(shares: Iterable[float], form: str = "{:.1f}") -> str:
    """`7 to 14`, in percent or points."""
    values = sorted(shares)
    ends = [form.format(100 * value) for value in (values[0], values[-1])]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
