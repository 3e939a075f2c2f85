"""The comparison on real language models: published models, word problems, and experts that write in unnatural styles.

    python experiments/real_models.py fetch         the models                 [--models smollm2 gemma3]
    python experiments/real_models.py warm-up       gemma3-warm                --data DATA
    python experiments/real_models.py mapper-start  <model>-mapper             --data DATA
    python experiments/real_models.py task-start    <model>-task, -task-mapper --data DATA [--target novice]
    python experiments/real_models.py run           cells of the comparison    --data DATA [--experts prefix]
    python experiments/real_models.py collect       results/real-models.json   from the cells that are there
    python experiments/real_models.py write         docs/real-models.md        from results/real-models.json

DATA is a folder with the published files that real_tasks.py names. A cell is a target and an expert; `run` continues a
cell where it was interrupted, stage by stage. `run --larger` is the comparison of Qwen3-0.6B and Qwen3-1.7B on GSM8K
and MATH, for GPUs (real-models-larger.yaml).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import real_starts
from real_cells import CORE_ARMS, cell_config, collect, run_cell
from real_pages import write
from real_tasks import EXPERTS, TARGETS
from real_tasks import write as write_tasks
from real_weights import MODELS, fetch

from dartune.config.load import load_config
from dartune.pipeline import run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "runs" / "real-models"
"""Default place of models and runs; `runs/` is ignored by git."""
LARGER = Path(__file__).parent / "real-models-larger.yaml"
RESULTS = ROOT / "results" / "real-models.json"
ACTIONS = ("fetch", "warm-up", "mapper-start", "task-start", "run", "collect", "write")
NEED_DATA = ("warm-up", "mapper-start", "task-start", "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"default {FOLDER.relative_to(ROOT)}")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--target", choices=TARGETS, default="task", help="how much the target has learned already")
    parser.add_argument("--data", type=Path, help="folder with the published files")
    parser.add_argument("--experts", nargs="+", choices=EXPERTS, default=list(EXPERTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arms", nargs="+", default=list(CORE_ARMS), help="default: all eleven of the comparison")
    parser.add_argument(
        "--again", action="store_true", help="second round of finished cells: adapt for their dart models"
    )
    parser.add_argument("--larger", action="store_true", help="larger models and data sets, for GPUs")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"default {RESULTS.relative_to(ROOT)}")
    arguments = parser.parse_args()
    action, folder = arguments.action, arguments.folder
    if action == "run" and arguments.larger:
        print(run(load_config(LARGER)))
        return
    if action in NEED_DATA and arguments.data is None:
        parser.error(f"{action} needs --data")
    if action == "warm-up":
        real_starts.warm_up(folder, arguments.data)
    elif action == "collect":
        collect(folder, arguments.results)
    elif action == "write":
        write(arguments.results)
    elif action == "run":
        write_tasks(arguments.data, folder / "tasks")
        for expert in arguments.experts:
            for model in arguments.models:
                target = f"{model}-{arguments.target}"
                config = cell_config(folder, target, expert, arguments.seeds, arguments.arms, arguments.again)
                run_cell(config, folder, target)
    else:
        for model in arguments.models:
            if action == "fetch":
                fetch(model, folder)
            elif action == "mapper-start":
                real_starts.mapper_start(model, folder, arguments.data)
            else:
                real_starts.task_start(model, arguments.target, folder, arguments.data)


if __name__ == "__main__":
    main()
