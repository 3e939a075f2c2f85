"""Use dartune from Python: run a recipe, read its results, and score solutions without a run.

    python examples/as_a_library.py --steps 10

The settings are those of the command line: a recipe, and overrides `key -> value` as text.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import load_dataset

from dartune import load_config, load_target, pipeline, score
from dartune.report import read_results

RECIPE = Path(__file__).parents[1] / "recipes" / "lab.yaml"
SHORT = {
    "data.limit": "120",
    "synthesise.samples": "2",
    "sft.steps": "40",
    "sft.learning_rates": "6e-4",
    "data.test": "16",
}


def main(steps: int, output: Path) -> None:
    """Run a short form of the lab's recipe, then print results from its run folder `output`."""
    config = load_config(RECIPE, SHORT | {"output": str(output), "mapper.steps": str(steps)})
    pipeline.run(config)  # returns the summary that the command line prints

    results = read_results(output / "report" / "results.json")
    for gap in results["differences"]:
        if (gap["arm"], gap["against"], gap["level"]) == ("dart", "sft", "group") and gap["measure"] == "accuracy":
            print(f"dart - sft, {gap['name']}: {gap['estimate']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]")

    rows = load_dataset(str(output / "stages" / "synthesise-s0" / "adapted"), split="train")
    print(f"{len(rows)} rows to train on, columns {', '.join(rows.column_names)}")

    target = load_target(config.target.path)  # loaded once for all scores
    for row in rows.select(range(3)):
        before = score(row["question"], row["source_solution"], target)
        after = score(row["question"], row["solution"], target)
        print(f"alignment {before:.2f} -> {after:.2f}, in the data set {row['alignment_after']:.2f}: {row['solution']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/as-a-library"))
    arguments = parser.parse_args()
    main(arguments.steps, arguments.output)
