"""How often `dartune diagnose` recommends the arm that the full comparison found best.

    python experiments/diagnoses.py run [--real FOLDER]   diagnose every cell; continues where it was interrupted
    python experiments/diagnoses.py write                 the measured parts of docs/diagnosis.md

The lab's cells are those of comparison.py, the real ones those of real_models.py below FOLDER (its `--folder`). A
recommendation is right if its arm is at most three points out of distribution below the best arm that was run in the
cell. The thresholds of the rules are judged on cells that they were not fitted to: for every cell they are fitted to
the others. Often several thresholds fit the others equally well; all of them count then.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import comparison
from pages import fill, table
from real_pages import AGAIN, OUT, average

from dartune.config.load import RECORD, load_config
from dartune.diagnosis.command import diagnose
from dartune.diagnosis.findings import Findings
from dartune.diagnosis.recommend import OPTIONS, Thresholds, recommend
from dartune.report.summary import summary_of
from dartune.run.files import atomic_write_json, read_json

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT = ROOT / "results" / "diagnoses.json", ROOT / "docs" / "diagnosis.md"
RUNS = ROOT / "runs" / "diagnoses"
ROWS = 64
TOLERANCE = 0.03
"""Accuracy, as a share. Differences below it are within the intervals of most cells."""
STUDIES = ("matrix", "distance", "rows", "known", "start")
ARM = {"leave": "sft", "low_rate": "sft_low_lr", "mask": "sft_stm", "best_of_k": "best_of_k", "mapper": "dart",
       "direct_rl": "grpo_tokens"}  # fmt: skip
GRID = {
    "few_rows": (50, 200, 500),
    "saturated": (0.5, 0.7, 0.8, 0.9, 0.95),
    "few_gainful": (0.1, 0.25, 0.5, 0.75),
    "few_accepted": (0.05, 0.1, 0.3, 0.5),
    "solved": (0.3, 0.5, 0.7, 0.9),
    "many_masked": (0.2, 0.4, 0.6),
}
"""Values that the thresholds are fitted over."""


def run(real: Path | None, cells: list[str]) -> None:
    """Diagnose the cells that have no diagnosis yet; `cells` are their names, all if empty."""
    for study in STUDIES:
        names = [name for name in comparison.cells_of(study) if not cells or f"lab-{study}-{name}" in cells]
        if names:
            comparison.prepare(study)
            configs = comparison.configured(study)
        for name in names:
            _diagnose(f"lab-{study}-{name}", configs[name])
    if real:
        for folder in sorted((real / "cells").iterdir()):
            name = folder.name
            if not name.endswith(AGAIN) and (not cells or f"real-{name}" in cells):
                _diagnose(f"real-{name}", load_config(folder / RECORD))


def _diagnose(name: str, config: Any) -> None:
    found = read_json(RESULTS) or {}
    if name in found:
        return
    output = RUNS / comparison.folder_name(name)
    print(diagnose(config.model_copy(update={"output": str(output)}), ROWS, []), flush=True)
    record = json.loads((output / "diagnosis" / "diagnosis.json").read_text("utf-8"))
    fields = Findings.__dataclass_fields__
    kept = {key: value for key, value in record.items() if key in fields and not key.startswith("least_natural")}
    atomic_write_json(RESULTS, (read_json(RESULTS) or {}) | {name: kept})


def accuracies() -> dict[str, dict[str, float]]:
    """cell -> arm -> accuracy out of distribution, of the comparisons that were run."""
    lab = json.loads((ROOT / "results" / "comparison.json").read_text("utf-8"))
    found = {
        f"lab-{study}-{name}": {arm: _accuracy(cell, arm) for arm in cell["arms"]}
        for study in STUDIES
        for name, cell in lab.get(study, {}).items()
    }
    real = json.loads((ROOT / "results" / "real-models.json").read_text("utf-8"))
    return found | {
        f"real-{name}": {arm: average(cell, arm, "correct", OUT) for arm in cell["outcomes"]}
        for name, cell in real.items()
    }


def _accuracy(cell: Mapping[str, Any], arm: str) -> float:
    return summary_of(cell, arm, "out of distribution")["accuracy"]["estimate"]


def findings_of(record: Mapping[str, Any]) -> Findings:
    return Findings(**record, least_natural_tokens=[], least_natural_rows=[])


def regret(option: str, measured: Mapping[str, float]) -> float | None:
    """How far the recommended arm is below the best arm of a cell, as a share; None if it was not run there.

    The target without fine-tuning counts among the arms only if the recommendation is to change nothing.
    """
    arm = ARM.get(option)
    if arm not in measured:
        return None
    return max(measured[name] for name in {*ARM.values()} if name in measured) - measured[arm]


def fitted(cells: Mapping[str, tuple[Findings, Mapping[str, float]]]) -> list[Thresholds]:
    """All thresholds of the grid with the least mean regret on `cells`.

    A recommendation whose arm was not run in a cell counts as a regret of 1.
    """

    def loss(thresholds: Thresholds) -> float:
        regrets = [regret(recommend(found, thresholds).option, measured) for found, measured in cells.values()]
        return round(mean(1.0 if value is None else value for value in regrets), 9)

    losses = [(loss(thresholds), thresholds) for thresholds in _grid()]
    least = min(value for value, _ in losses)
    return [thresholds for value, thresholds in losses if value == least]


def _grid() -> list[Thresholds]:
    return [replace(Thresholds(), **dict(zip(GRID, values, strict=True))) for values in product(*GRID.values())]


def left_out(name: str, cells: Mapping[str, tuple[Findings, Mapping[str, float]]]) -> list[float | None]:
    """Regret in a cell with each of the thresholds that fit the other cells best; which of them is not known there."""
    found, measured = cells[name]
    others = {other: cell for other, cell in cells.items() if other != name}
    return [regret(recommend(found, thresholds).option, measured) for thresholds in fitted(others)]


def parts(records: Mapping[str, Mapping[str, Any]], measured: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """The measured parts of the document."""
    cells = {name: (findings_of(records[name]), measured[name]) for name in records if name in measured}
    rows, own, others = [], [], []
    for name, (found, arms) in cells.items():
        option = recommend(found).option
        own.append(regret(option, arms))
        others.append(_share_right(left_out(name, cells)))
        best = max((arm for arm in arms if arm in ARM.values()), key=arms.__getitem__)
        shown = [f"`{best}` {100 * arms[best]:.1f}%", _points(own[-1]), f"{100 * others[-1]:.0f}%"]
        rows.append([name, OPTIONS[option].title, *shown])
    always = {
        arm: sum((value := regret(option, arms)) is not None and value <= TOLERANCE for _, arms in cells.values())
        for option, arm in ARM.items()
    }
    steady = max(always, key=always.__getitem__)
    right = sum(value is not None and value <= TOLERANCE for value in own)
    summary = (
        f"Right (at most {100 * TOLERANCE:.0f} points below the best arm of the cell): {right} of {len(own)} cells "
        "with the thresholds of the program, which were set with most of these cells in view; "
        f"{sum(others):.1f} with thresholds fitted to the other cells, on average over all that fit these equally "
        f"well. Always recommending `{steady}` would be right in {always[steady]}. In {own.count(None)} cells the "
        "recommended arm was not run, which counts as wrong."
    )
    header = ["cell", "recommendation", "best arm out of distribution", "points below it", "right when left out"]
    return {"validation": f"{summary}\n\n{table(header, rows)}", "figures": _figures(cells)}


def _share_right(regrets: list[float | None]) -> float:
    return mean(value is not None and value <= TOLERANCE for value in regrets)


def _points(value: float | None) -> str:
    return "not run" if value is None else f"{100 * value:.1f}"


def _figures(cells: Mapping[str, tuple[Findings, Mapping[str, float]]]) -> str:
    header = ["cell", "rows", "can gain, %", "pass@1, %", "pass@8, %", "accepted, %", "rows accepted, %",
              "best of 8: gain, %", "masked, %"]  # fmt: skip
    rows = []
    for name, (found, _) in cells.items():
        shares = (
            found.gainful,
            found.pass_at_1,
            found.pass_at_k,
            found.accepted,
            found.rows_accepted,
            found.gain_of_best,
            found.masked,
        )
        shown = ("-" if share is None else f"{100 * share:.0f}" for share in shares)
        rows.append([name, str(found.total_rows), *shown])
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "write"))
    parser.add_argument("--real", type=Path, help="folder of the comparison on real models")
    parser.add_argument("--cells", nargs="+", default=[], help="names of cells (default: all)")
    arguments = parser.parse_args()
    if arguments.action == "run":
        run(arguments.real, arguments.cells)
    else:
        fill(DOCUMENT, parts(json.loads(RESULTS.read_text("utf-8")), accuracies()))


if __name__ == "__main__":
    main()
