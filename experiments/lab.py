"""The main result on the lab: both targets, three seeds, the measured parts of docs/results.md and README.md.

python experiments/lab.py run [TARGET ...]   both targets, or those named; continues where it was interrupted
python experiments/lab.py collect            results/lab.json, and the README's picture, from the run folders
python experiments/lab.py write              the measured parts of the documents, from results/lab.json

Run from the repository root. A target takes about 12 minutes on one CPU core; two processes may share the work.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from pages import fill, table

from dartune.config import Config, load_config
from dartune.pipeline import run
from dartune.report.summary import difference_of, pairs, percent, points_interval, summary_of
from dartune.run import atomic_write_json, read_jsonl

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT, README = ROOT / "results" / "lab.json", ROOT / "docs" / "results.md", ROOT / "README.md"
TARGETS = ("backward", "recall")
KEPT = ("arms", "seeds", "groups", "summaries", "differences", "learning_rates", "adapted", "costs")
SHOWN_ROWS = 10
SHOWN_RATE = 0.001


def configured(target: str) -> Config:
    changes = {"target.path": f"lab:{target}", "output": str(ROOT / "runs" / f"lab-{target}"), "seeds": "[0, 1, 2]"}
    return load_config(ROOT / "recipes" / "lab.yaml", changes)


def collect() -> None:
    found = {}
    for target in TARGETS:
        folder = Path(configured(target).output)
        results = json.loads((folder / "report" / "results.json").read_text("utf-8"))
        kept = {key: results[key] for key in KEPT}
        kept["summaries"] = [row for row in results["summaries"] if row["level"] == "group"]
        kept["differences"] = [row for row in results["differences"] if row["level"] == "group"]
        kept["hacks"] = [seed["phases"] for seed in results["mapper"]["dart"].values()]
        kept["hacks"] = [{phase: row["hacks"] for phase, row in phases.items()} for phases in kept["hacks"]]
        rows = read_jsonl(folder / "stages" / "synthesise-s0" / "rows.jsonl")[:SHOWN_ROWS]
        kept["rows"] = [
            {key: row[key] for key in ("question", "source_solution", "solution", "provenance")} for row in rows
        ]
        found[target] = kept
    RESULTS.parent.mkdir(exist_ok=True)
    atomic_write_json(RESULTS, found)
    picture = Path(configured(TARGETS[0]).output) / "report" / "accuracy.svg"
    shutil.copy(picture, ROOT / "docs" / "images" / "accuracy.svg")


def parts(found: dict[str, Any]) -> dict[str, str]:
    """Every measured part of the documents, by name."""
    made = {"headline": _headline(found)}
    for target, results in found.items():
        made[target] = "\n\n".join(
            [_accuracy(results), _by_seed(results), _data(results, target), _hacks(results), _rows(results)]
        )
    return made


def _headline(found: dict[str, Any]) -> str:
    columns = [("dart", "sft", "out of distribution"), ("dart", "sft", "retention"), ("dart", "base", "retention")]
    header = ["", "out of distribution, `dart - sft`", "old skills, `dart - sft`", "old skills, `dart - untouched`"]
    rows = [
        [f"target `{target}`", *(points_interval(difference_of(results, *column)) for column in columns)]
        for target, results in found.items()
    ]
    return table(header, rows)


def _accuracy(results: dict[str, Any]) -> str:
    groups = results["groups"]
    rows = [
        [arm, *(percent(summary_of(results, arm, group)["accuracy"]["estimate"]) for group in groups)]
        for arm in results["arms"]
    ]
    for arm, against in pairs(results):
        gaps = (difference_of(results, arm, against, group) for group in groups)
        rows.append([f"{arm} - {against}", *map(points_interval, gaps)])
    steps = (percent(summary_of(results, "dart", group)["step_accuracy"]) for group in groups)
    return table(["accuracy, %", *groups], [*rows, ["dart, right in every step", *steps]])


def _by_seed(results: dict[str, Any]) -> str:
    told = []
    for group in ("out of distribution", "retention"):
        values = difference_of(results, "dart", "sft", group)["by_seed"].values()
        told.append(f"{group} {', '.join(f'{100 * value:+.1f}' for value in values)}")
    rates = ", ".join(
        f"{arm} {' '.join(str(choice['chosen']) for choice in by_seed.values())}"
        for arm, by_seed in results["learning_rates"].items()
    )
    return f"By seed, dart - sft: {'; '.join(told)}. Learning rates chosen on dev: {rates}."


def _data(results: dict[str, Any], target: str) -> str:
    header = ["adapted data, seed", "rewrite / own / original", "right in every step, %", "names right, %"]
    header += ["in the native dialect, %", "mean alignment before, after"]
    rows = []
    for seed, data in results["adapted"]["dart"].items():
        quality, counts = data["quality"], data["provenance"]
        shares = (quality["step_correct"], quality["names_correct"], quality["dialects"].get(target, 0.0))
        rows.append(
            [
                seed,
                " / ".join(str(counts[name]) for name in ("rewrite", "own", "original")),
                *map(percent, shares),
                f"{data['alignment_before']:.2f}, {data['alignment_after']:.2f}",
            ]
        )
    return table(header, rows)


def _hacks(results: dict[str, Any]) -> str:
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


def _rows(results: dict[str, Any]) -> str:
    lines = [f"The first {SHOWN_ROWS} rows of the adapted data, seed 0, as they come:\n"]
    for row in results["rows"]:
        lines.append(f"* {row['question']}\n  - expert: `{row['source_solution']}`")
        lines.append(f"  - {row['provenance']}: `{row['solution']}`")
    return "\n".join(lines)


def main(words: list[str]) -> None:
    verb, *names = words or ["run"]
    if verb == "run" and set(names) <= set(TARGETS):
        for target in names or TARGETS:
            print(run(configured(target)))
    elif verb == "collect" and not names:
        collect()
    elif verb == "write" and not names:
        measured = parts(json.loads(RESULTS.read_text("utf-8")))
        fill(DOCUMENT, measured)
        fill(README, measured)
    else:
        sys.exit(f"{__doc__}\ntargets: {', '.join(TARGETS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
