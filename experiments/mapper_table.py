"""The tables of docs/experiments.md about one run of mapper training, from the metrics and samples that it kept.

python experiments/mapper_table.py runs/svamp-prefix/stages/mapper-s0
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pages import table
from scipy.stats import spearmanr

from dartune.run.files import read_jsonl

STEPS_A_LINE = 10
SHOWN_SAMPLES = 10
TRENDS = ("reward", "gate_pass", "alignment_after")

Metrics = Sequence[dict[str, Any]]


def by_steps(metrics: Metrics) -> str:
    """Means over every ten steps."""
    rows = []
    for low in range(0, len(metrics), STEPS_A_LINE):
        part = metrics[low : low + STEPS_A_LINE]
        figures = {key: mean(row[key] for row in part) for key in (*TRENDS, "alignment_before", "length")}
        rows.append(
            [
                f"{low + 1}-{low + len(part)}",
                f"{figures['reward']:.2f}",
                f"{100 * figures['gate_pass']:.0f}",
                f"{figures['alignment_after']:.2f}",
                f"{figures['alignment_before']:.2f}",
                f"{figures['length']:.0f}",
            ]
        )
    return table(["steps", "reward", "gates passed, %", "alignment of rewrites", "of demonstrations", "tokens"], rows)


def trends(metrics: Metrics) -> str:
    """Rank correlations with the step, gates that fail at first and at last, tokens."""
    lines = []
    for key in TRENDS:
        found = spearmanr(range(len(metrics)), [row[key] for row in metrics])
        lines.append(f"{key}: rank correlation with the step {found.statistic:+.2f}, p = {found.pvalue:.1g}")
    for name, part in (("first", metrics[:STEPS_A_LINE]), ("last", metrics[-STEPS_A_LINE:])):
        failing = {gate: 100 * mean(1 - row["gates"][gate] for row in part) for gate in part[0]["gates"]}
        worst = sorted(failing.items(), key=lambda item: -item[1])[:4]
        lines.append(f"{name} steps fail: {', '.join(f'{gate} {share:.0f}%' for gate, share in worst)}")
    for key in ("generated_tokens", "scored_tokens"):
        lines.append(f"{key}: {sum(row[key] for row in metrics):,}")
    return "\n".join(lines)


def samples(kept: Metrics) -> str:
    """The last rewrites that the run kept, unselected."""
    lines = []
    for row in kept[-SHOWN_SAMPLES:]:
        refused = f" (refused by {', '.join(f'`{gate}`' for gate in row['failed'])})" if row["failed"] else ""
        mark = "" if row["failed"] else "\\+ "
        lines.append(f"* {mark}`{row['source']}`: {' / '.join(row['rewrite'].splitlines())}{refused}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", type=Path, help="folder of a mapper's stage")
    folder = parser.parse_args().stage
    metrics = read_jsonl(folder / "metrics.jsonl")
    print(by_steps(metrics), trends(metrics), samples(read_jsonl(folder / "samples.jsonl")), sep="\n\n")


if __name__ == "__main__":
    main()
