"""The trained mapper of a run on rows that the run did not have: as good as in the run's synthesis?

python experiments/adapt_unseen.py run       a lab run per expert, then `dartune adapt` on as many unseen rows of the
                                             expert; continues where it was interrupted
python experiments/adapt_unseen.py collect   results/adapt-unseen.json, from the runs
python experiments/adapt_unseen.py write     the measured part of docs/sharing.md, from results/adapt-unseen.json

Run from the repository root. Each expert takes about five minutes on one CPU core. Prediction before the first run: no
interval of a difference leaves out 0, because the mapper was trained on 480 questions only, and on each of them once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill, table

from dartune.config.load import load_config
from dartune.data.adapted_dataset import ADAPTED, VIEWS
from dartune.data.row_store import open_rows, write_rows
from dartune.lab import source as lab
from dartune.lab.dialects import EXPERTS
from dartune.lab.suites import demonstration_problems, write_demonstrations
from dartune.pipeline import run
from dartune.report.stats import Z95
from dartune.run.files import atomic_write_json
from dartune.trained_mapper.adapt import adapt
from dartune.trained_mapper.source_run import SourceRun, open_source_run
from dartune.trained_mapper.summary import sampled_and_passed

ROOT = Path(__file__).parents[1]
RUNS, RESULTS, PAGE = ROOT / "runs" / "adapt", ROOT / "results" / "adapt-unseen.json", ROOT / "docs" / "sharing.md"
ROWS, DEV, TEST = 1000, 16, 8
# Fine-tuning and test questions are not read here; they are as short as a run allows.
SETTINGS = {"arms": "[base, dart]", "sft.steps": "2", "sft.learning_rates": "[6e-4]", "data.limit": str(ROWS)}
SIZES = {"data.dev": str(DEV), "data.test": str(TEST)}
MEASURES = {
    "rewritten": "rows that were rewritten, %",
    "passed": "rewrites that pass the gates, %",
    "before": "mean alignment before",
    "after": "mean alignment after",
    "steps": "adapted rows that are right in every step, %",
}
"""measure -> its name in the table."""


def write_unseen(expert: str) -> Path:
    """The next rows of the expert after the training and development rows of its run; no question is repeated."""
    path = RUNS / f"{expert}-unseen.jsonl"
    problems = demonstration_problems(2 * ROWS + DEV, lab.DATA_SEED, TEST)[ROWS + DEV :]
    rows = (asdict(row) for row in write_demonstrations(problems, expert))
    write_rows(path, ({name: row[name] for name in ("question", "solution", "answer")} for row in rows))
    return path


def measured(source: SourceRun, folder: Path) -> dict[str, list[float]]:
    """measure -> a value per row that has it, for the adapted rows in the stages of a folder."""
    config, values = source.config.synthesise, {name: [] for name in MEASURES}
    rows = open_rows(folder / "stages" / source.synthesis / "rows.jsonl")
    probed = open_rows(folder / "stages" / source.probe / "probe.jsonl")
    for row, probe in zip(rows, probed, strict=True):
        sampled, passed = sampled_and_passed(row, probe, config.samples, config.ladder)
        values["rewritten"].append(100.0 * (row["provenance"] == "rewrite"))
        values["passed"].append(100.0 * passed / sampled)
        if row["provenance"] in VIEWS["success_only"].provenances:
            values["before"].append(row["alignment_before"])
            values["after"].append(row["alignment_after"])
        if row["provenance"] in ADAPTED:
            values["steps"].append(100.0 * bool(lab.judge(row["question"], row["solution"])["steps_correct"]))
    return values


def compared(new: Sequence[float], old: Sequence[float]) -> dict[str, float]:
    """Both means, and their difference with the half width of its 95% interval: the rows are the random part."""
    variance = sum(float(np.var(values, ddof=1)) / len(values) for values in (new, old))
    means = float(np.mean(new)), float(np.mean(old))
    numbers = {"unseen": means[0], "run": means[1], "difference": means[0] - means[1], "half": Z95 * sqrt(variance)}
    return {name: round(value, 4) for name, value in numbers.items()}


def parts(results: dict[str, Any]) -> dict[str, str]:
    """The measured part of the page."""
    rows = []
    for expert, measures in results.items():
        for name, label in MEASURES.items():
            one = measures[name]
            difference, half = one["difference"], one["half"]
            digits = 1 if label.endswith("%") else 2
            figures = [f"{one[side]:.{digits}f}" for side in ("unseen", "run")]
            interval = f"{difference:+.{digits}f} [{difference - half:+.{digits}f}, {difference + half:+.{digits}f}]"
            rows.append([f"`{expert}`", label, *figures, interval])
    return {"adapt-unseen": table(["expert", "measure", "unseen rows", "the run", "difference"], rows)}


def main(verb: str) -> None:
    if verb == "write":
        fill(PAGE, parts(json.loads(RESULTS.read_text("utf-8"))))
        return
    results = {}
    for expert in EXPERTS:
        folder, output = RUNS / expert, RUNS / f"{expert}-adapted"
        data = str(write_unseen(expert))
        if verb == "run":
            changes = SETTINGS | SIZES | {"data.path": f"lab:{expert}", "output": str(folder)}
            print(run(load_config(ROOT / "recipes" / "lab.yaml", changes)))
            print(adapt(folder, data, output))
        source = open_source_run(folder, {"data": data})
        new, old = measured(source, output), measured(source, folder)
        results[expert] = {name: compared(new[name], old[name]) for name in MEASURES}
    if verb == "collect":
        atomic_write_json(RESULTS, results)
    print(parts(results)["adapt-unseen"])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("run", "collect", "write"):
        sys.exit(__doc__)
    main(sys.argv[1])
