"""The measured parts of docs/results.md and README.md: tables from results/comparison.json, nothing typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from comparison_reading import in_short, under_the_headline
from pages import table
from scipy.stats import ttest_1samp

from dartune.report.summary import difference_of, summary_of
from dartune.run.number_format import percent, points_interval

Results = Mapping[str, Any]
OOD, RETENTION = "out of distribution", "retention"
SHOWN = (OOD, RETENTION)
ALL_ARMS_CELL = "backward-values"
SHOWN_RATE = 0.001
READ = ("headline", "below-the-headline", "in-short")
"""Parts that draw on several studies."""


def parts(found: Mapping[str, Mapping[str, Results]]) -> dict[str, str]:
    """Every measured part of the documents, by name; one that has not been run says so."""
    makers = {
        "headline": lambda: _headline(found["matrix"], found["pooled"]),
        "below-the-headline": lambda: under_the_headline(found),
        "in-short": lambda: in_short(found),
        "matrix": lambda: _matrix(found["matrix"], found["pooled"]),
        "content_logprob": lambda: _present_score(found["content_logprob"], found["matrix"]),
        "seeds": lambda: _from_seed_to_seed(found["matrix"]),
        "costs": lambda: _costs(found["matrix"]),
        "alternatives": lambda: _all_arms(found["alternatives"][ALL_ARMS_CELL]),
        "second_round": lambda: _all_arms(found["second_round"][ALL_ARMS_CELL]),
        "favourable": lambda: _favourable(found["favourable"]),
        "arms": lambda: _all_arms(found["arms"][ALL_ARMS_CELL]),
        "tokens": lambda: _tokens(found["tokens"]),
        "distance": lambda: _distance(found["distance"] | _of_target(found["matrix"], "backward")),
        "rows": lambda: _against_best_of_k("rows", found["rows"] | _default("1000", found)),
        "samples": lambda: _against_best_of_k("samples a row", found["samples"] | _default("4", found)),
        "start": lambda: _against_best_of_k("initial mapper", _default("as shipped", found) | found["start"]),
        "known": lambda: _known(_default("0", found) | found["known"]),
    }
    made = {name: make() for name, make in makers.items() if name in READ or _needed(name) in found}
    for name, results in found["matrix"].items():
        if "rows" in results:
            made[name] = "\n\n".join([_by_seed(results), _data(results, name), _hacks(results), _rows(results)])
    return {name: made.get(name, "Not measured yet.") for name in [*makers, *made]}


def _needed(part: str) -> str:
    return "matrix" if part in ("costs", "seeds") else part


def _default(name: str, found: Mapping[str, Mapping[str, Results]]) -> dict[str, Results]:
    """The cell that the dials depart from, of one seed like theirs, under the name it has among them."""
    return {name: found["arms"][ALL_ARMS_CELL]}


def _of_target(cells: Mapping[str, Results], target: str) -> dict[str, Results]:
    """expert -> results, of one target."""
    return {name.removeprefix(f"{target}-"): cell for name, cell in cells.items() if name.startswith(f"{target}-")}


def _headline(cells: Mapping[str, Results], pooled: Mapping[str, Results]) -> str:
    gaps = [("sft", OOD), ("sft", RETENTION), ("best_of_k", OOD), ("grpo_tokens", OOD)]
    header = ["target, expert", *(f"`dart - {against}`, {group}" for against, group in gaps)]
    rows = [[_title(name), *(_gap(cell, *gap) for gap in gaps)] for name, cell in cells.items()]
    return table(header, [*rows, ["all", *(points_interval(pooled[arm][group]) for arm, group in gaps)]])


def _matrix(cells: Mapping[str, Results], pooled: Mapping[str, Results]) -> str:
    arms = list(next(iter(cells.values()))["arms"])
    blocks = []
    for group in SHOWN:
        rows = [[_title(name), *(_accuracy(cell, arm, group) for arm in arms)] for name, cell in cells.items()]
        blocks.append(table([f"{group}, accuracy %", *arms], rows))
    for group in SHOWN:
        rivals = [arm for arm in arms if arm != "dart"]
        rows = [[_title(name), *(_gap(cell, arm, group) for arm in rivals)] for name, cell in cells.items()]
        rows.append(["all", *(points_interval(pooled[arm][group]) for arm in rivals)])
        blocks.append(table([f"{group}, points", *(f"dart - {arm}" for arm in rivals)], rows))
    seeds = {name: len(cell["seeds"]) for name, cell in cells.items()}
    counts = ", ".join(f"{_title(name)} {count}" for name, count in seeds.items())
    told = f"{next(iter(seeds.values()))} each" if len(set(seeds.values())) == 1 else counts
    return "\n\n".join([*blocks, f"Seeds: {told}."])


def _from_seed_to_seed(cells: Mapping[str, Results]) -> str:
    """Gaps with what seeds alone would have changed: Student's t over the seeds' own estimates."""
    rivals = [arm for arm in next(iter(cells.values()))["arms"] if arm not in ("base", "dart")]
    rows = []
    for name, cell in cells.items():
        told = []
        for arm in rivals:
            values = list(difference_of(cell, "dart", arm, OOD)["by_seed"].values())
            low, high = ttest_1samp(values, 0.0).confidence_interval(0.95)
            interval = points_interval({"estimate": mean(values), "low": low, "high": high})
            told.append(f"{interval}, {100 * min(values):+.1f} to {100 * max(values):+.1f}")
        rows.append([_title(name), *told])
    return table([f"{OOD}, points", *(f"dart - {arm}" for arm in rivals)], rows)


def _present_score(cells: Mapping[str, Results], former: Mapping[str, Results]) -> str:
    """The default score beside the former one, over the same seeds; `sft`, which has no score, from the former runs."""
    compared = (("sft", OOD), ("best_of_k", OOD), ("sft", RETENTION))
    columns: list[list[float]] = []
    rows = []
    for name, cell in cells.items():
        seeds = [str(seed) for seed in cell["seeds"]]
        figures = []
        for arm, group in compared:
            for dart in (cell, former[name]):
                rival = cell if arm in cell["arms"] and dart is cell else former[name]
                ours, theirs = (
                    summary_of(results, one, group)["by_seed"] for results, one in ((dart, "dart"), (rival, arm))
                )
                figures.append(mean(ours[seed] - theirs[seed] for seed in seeds))
        columns.append(figures)
        rows.append([_title(name), ", ".join(seeds), *(f"{100 * figure:+.1f}" for figure in figures)])
    rows.append(["all", "", *(f"{100 * mean(column):+.1f}" for column in zip(*columns, strict=True))])
    header = [f"`dart - {arm}`, {group}: {score}" for arm, group in compared for score in ("now", "former score")]
    return table(["target, expert", "seeds", *header], rows)


def _costs(cells: Mapping[str, Results]) -> str:
    """Per arm, mean over cells and seeds, every learning rate of its grid counted."""
    rows = []
    for arm in next(iter(cells.values()))["arms"]:
        if arm != "base":
            rows.append([f"`{arm}`", *(_cost(cells.values(), arm, *unit) for unit in UNITS.values())])
    even = [cell["break_even_rows"] for cell in cells.values() if cell["break_even_rows"]]
    note = f"From {min(even):,.0f} to {max(even):,.0f} rows on, by cell, the mapper's training costs fewer operations "
    note += "than the rewrites that best of K tries in its place."
    return table(["arm, one seed", *UNITS], rows) + (f"\n\n{note}" if even else "")


UNITS = {
    "operations, 1e12": ("flops", 1e12, 1),
    "generated, M tokens": ("generated_tokens", 1e6, 2),
    "scored, M tokens": ("scored_tokens", 1e6, 2),
    "trained, M tokens": ("trained_tokens", 1e6, 2),
}


SHOWN_COSTS = list(UNITS)[:2]


def _cost(cells: Iterable[Results], arm: str, kind: str, unit: float, digits: int) -> str:
    return f"{mean(cell['costs'][arm][kind] / len(cell['seeds']) for cell in cells) / unit:.{digits}f}"


def _all_arms(results: Results) -> str:
    """Best out of distribution first."""

    def reached(arm: str) -> float:
        return summary_of(results, arm, OOD)["accuracy"]["estimate"]

    rows = []
    for arm in sorted(results["arms"], key=reached, reverse=True):
        cells = [cell for group in SHOWN for cell in (_accuracy(results, arm, group), _gap(results, arm, group))]
        costs = (_cost([results], arm, *UNITS[name]) for name in SHOWN_COSTS)
        rows.append([f"`{arm}`", *cells, *costs])
    header = ["arm", OOD, "dart - arm", RETENTION, "dart - arm", *SHOWN_COSTS]
    return table(header, rows) + f"\n\n{_seeds(results)}"


def _favourable(cells: Mapping[str, Results]) -> str:
    """One row per case; its name begins with the alternative that it should favour."""
    rows = []
    for name, cell in cells.items():
        rival = name.split(",")[0]
        accuracies = [_accuracy(cell, arm, group) for group in SHOWN for arm in ("base", "sft", "dart", rival)]
        gaps = [_gap(cell, rival, group) for group in SHOWN]
        rows.append([name, *accuracies[:4], gaps[0], *accuracies[4:], gaps[1]])
    arms = ("base", "sft", "dart", "alternative", "dart - alternative")
    return table(["case", *(f"{arm}, {OOD}" for arm in arms), *(f"{arm}, {RETENTION}" for arm in arms)], rows)


def _tokens(cells: Mapping[str, Results]) -> str:
    rows = []
    for name, cell in cells.items():
        told = [_cost([cell], arm, *UNITS["generated, M tokens"]) for arm in ("dart", "grpo_3x_tokens")]
        shown = [_accuracy(cell, arm, OOD) for arm in ("base", "dart", "grpo_3x_tokens")]
        rows.append([_title(name), *told, *shown, *(_gap(cell, "grpo_3x_tokens", group) for group in SHOWN)])
    header = ["target, expert", "dart, M tokens generated", "grpo_3x_tokens", f"base, {OOD}", "dart", "grpo_3x_tokens"]
    return table([*header, "gap", f"gap, {RETENTION}"], rows)


def _distance(cells: Mapping[str, Results]) -> str:
    """Nearest expert first."""

    def distance(cell: Results) -> float:
        return -mean(data["alignment_before"] for data in cell["adapted"]["dart"].values())

    rows = []
    for name, cell in sorted(cells.items(), key=lambda item: distance(item[1])):
        arms = [_accuracy(cell, arm, group) for group in SHOWN for arm in ("sft", "dart")]
        gaps = [_gap(cell, "sft", group) for group in SHOWN]
        rows.append([f"`{name}`", f"{distance(cell):.2f}", *arms[:2], gaps[0], *arms[2:], gaps[1]])
    header = ["expert", "distance, nats a token", f"sft, {OOD}", "dart", "dart - sft", f"sft, {RETENTION}", "dart"]
    return table([*header, "dart - sft"], rows)


def _against_best_of_k(dial: str, cells: Mapping[str, Results]) -> str:
    rows = []
    for name, cell in sorted(cells.items(), key=lambda item: int(item[0]) if item[0].isdigit() else 0):
        adapted = ["/".join(f"{_share_adapted(cell, arm):.0f}" for arm in ("dart", "best_of_k"))]
        shown = [_accuracy(cell, arm, OOD) for arm in ("dart", "best_of_k")]
        even = f"{cell['break_even_rows']:,.0f}" if cell["break_even_rows"] else "never"
        rows.append([name, *adapted, *shown, _gap(cell, "best_of_k", OOD), _gap(cell, "best_of_k", RETENTION), even])
    header = [dial, "rows adapted, %: dart/best_of_k", f"dart, {OOD}", "best_of_k", "gap", f"gap, {RETENTION}"]
    return table([*header, "break-even, rows"], rows)


def _share_adapted(cell: Results, adaptation: str) -> float:
    counts = [data["provenance"] for data in cell["adapted"][adaptation].values()]
    return mean(100 * (1 - (row["original"] + row["dropped"]) / sum(row.values())) for row in counts)


def _known(cells: Mapping[str, Results]) -> str:
    rows = []
    for name, cell in sorted(cells.items(), key=lambda item: int(item[0])):
        arms = [_accuracy(cell, arm, OOD) for arm in ("base", "sft", "dart", "grpo_tokens")]
        rows.append([name, *arms, *(_gap(cell, "grpo_tokens", group) for group in SHOWN)])
    header = ["rows taught beforehand", f"base, {OOD}", "sft", "dart", "grpo_tokens", "dart - grpo_tokens"]
    return table([*header, f"the same, {RETENTION}"], rows)


def _by_seed(results: Results) -> str:
    told = []
    for group in SHOWN:
        values = difference_of(results, "dart", "sft", group)["by_seed"].values()
        told.append(f"{group} {', '.join(f'{100 * value:+.1f}' for value in values)}")
    rates = ", ".join(
        f"{arm} {' '.join(str(choice['chosen']) for choice in by_seed.values())}"
        for arm, by_seed in results["learning_rates"].items()
    )
    return f"By seed, dart - sft: {'; '.join(told)}. Learning rates chosen on dev: {rates}."


def _data(results: Results, cell: str) -> str:
    header = ["adapted data, seed", "rewrite / own / original", "right in every step, %", "names right, %"]
    header += ["in the native dialect, %", "mean alignment before, after"]
    rows = []
    for seed, data in results["adapted"]["dart"].items():
        quality, counts = data["quality"], data["provenance"]
        shares = (quality["step_correct"], quality["names_correct"], quality["dialects"].get(cell.split("-")[0], 0.0))
        told = " / ".join(str(counts[name]) for name in ("rewrite", "own", "original"))
        rows.append(
            [seed, told, *map(percent, shares), f"{data['alignment_before']:.2f}, {data['alignment_after']:.2f}"]
        )
    return table(header, rows)


def _hacks(results: Results) -> str:
    """Every hack that was seen: in training, among the tries of synthesis, in the adapted data."""
    made = list(results["adapted"]["dart"].values())
    rows = []
    for name in results["hacks"][0]["before"]:
        first, last = (mean(seed[phase].get(name, 0.0) for seed in results["hacks"]) for phase in ("before", "after"))
        tried, kept = (mean(data[key].get(name, 0.0) for data in made) for key in ("hacks_refused", "hacks"))
        if max(first, last, tried, kept) >= SHOWN_RATE:
            rows.append([f"`{name}`", *map(percent, (first, last, tried, kept))])
    header = ["hack, %", "training, first steps", "training, last steps", "rows with such a try", "adapted data"]
    return table(header, rows)


def _rows(results: Results) -> str:
    lines = [f"The first {len(results['rows'])} rows of the adapted data, seed 0, as they come:\n"]
    for row in results["rows"]:
        lines.append(f"* {row['question']}\n  - expert: `{row['source_solution']}`")
        lines.append(f"  - {row['provenance']}: `{row['solution']}`")
    return "\n".join(lines)


def _seeds(results: Results) -> str:
    seeds: Sequence[int] = results["seeds"]
    return f"Seeds: {', '.join(map(str, seeds))}."


def _title(cell: str) -> str:
    target, expert = cell.split("-")
    return f"`{target}`, `{expert}`"


def _accuracy(results: Results, arm: str, group: str) -> str:
    return percent(summary_of(results, arm, group)["accuracy"]["estimate"])


def _gap(results: Results, against: str, group: str) -> str:
    """dart - against; nothing where one of the two was not run."""
    found = difference_of(results, "dart", against, group) if against != "dart" else None
    return points_interval(found) if found else ""
