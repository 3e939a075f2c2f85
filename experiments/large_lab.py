"""The lab at a size that takes a GPU: models of 35M weights on the level `deep`, and how the arms compare there.

    python experiments/large_lab.py all OUT.json [--size smoke] [--work FOLDER]    pretrains, then runs every arm
    python experiments/large_lab.py write                                          fills docs/gpu.md from results/

Target and initial mapper are pretrained side by side, then the arms run in three processes at once that share a GPU:
`dart` and direct RL, the arms that need neither, and `gold` (demonstrations in the target's own dialect). What is
finished is in OUT.json at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comparison import collected
from gpu_tables import fill_document
from large_lab_models import EXPERT, Plan, pretrain

from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.lab.build import Recipe
from dartune.pipeline import run
from dartune.run.environment import environment
from dartune.run.files import atomic_write_json, read_jsonl

ROOT = Path(__file__).parents[1]
TARGET = "backward"
MODELS = (TARGET, "mapper")
ALL = "[base, sft, best_of_k, dart, grpo_tokens]"
PARTS = {
    "main": ("[base, dart]", "[base, dart, grpo_tokens]"),
    "beside": ("[sft, best_of_k]",),
    "gold": ("[sft]",),
}
"""Runs in folders of their own, and their arms, ever more of them; what `beside` has made becomes part of `main`."""
TOLD_EVERY = 15  # seconds


@dataclass(frozen=True, slots=True)
class Size:
    """How the models are pretrained, and what is changed in recipes/lab.yaml."""

    plan: Plan
    settings: dict[str, str]


SIZES = {
    "full": Size(
        Plan(
            Recipe(768, 5, 12, 2048),
            batch=64,
            learning_rate=1.2e-3,
            seconds=100,
            workers=6,
            progress_every=25,
            questions=48,
        ),
        {
            "data.limit": "448",
            "mapper.steps": "20",
            "mapper.questions_per_step": "24",
            "mapper.learning_rate": "1e-4",
            "mapper.max_new_tokens": "160",
            "sft.steps": "120",
            "sft.batch_size": "32",
            "sft.learning_rates": "[1e-4, 3e-4]",
            "direct_rl.learning_rates": "[5e-5, 1.5e-4]",
            "data.test": "96",
            "evaluate.max_new_tokens": "192",
        },
    ),
    "smoke": Size(
        Plan(Recipe(64, 2, 2, 128), batch=8, learning_rate=3e-3, seconds=8, workers=1, progress_every=8, questions=2),
        {
            "data.limit": "12",
            "data.dev": "2",
            "mapper.steps": "2",
            "mapper.questions_per_step": "2",
            "mapper.group_size": "2",
            "mapper.max_new_tokens": "24",
            "reward.own_samples": "1",
            "synthesise.samples": "1",
            "sft.steps": "2",
            "sft.batch_size": "4",
            "sft.learning_rates": "[1e-4]",
            "direct_rl.learning_rates": "[5e-5]",
            "data.test": "2",
            "evaluate.max_new_tokens": "24",
        },
    ),
}


def configured(part: str, size: str, work: Path, arms: str) -> Config:
    """The config of one of PARTS."""
    ours = {
        "output": str(work / part),
        "arms": arms,
        "data.path": f"lab:deep/{TARGET if part == 'gold' else EXPERT}",
        "target.path": str(work / "models" / TARGET),
        "mapper.path": str(work / "models" / "mapper"),
    }
    return load_config(ROOT / "recipes" / "lab.yaml", ours | SIZES[size].settings)


def start(size: str, work: Path, verb: str, name: str, attention: str = "sdpa") -> subprocess.Popen:
    """This program once more, for one model or one part."""
    words = [verb, "--name", name, "--size", size, "--work", str(work), "--attention", attention]
    # The processes that draw examples are forked, which threads of a tokenizer do not survive.
    return subprocess.Popen([sys.executable, __file__, *words], env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})


def wait(processes: dict[str, subprocess.Popen], told) -> list[str]:
    """Wait for all, telling now and then what is there; returns the names of those that failed."""
    last = time.monotonic()
    while any(process.poll() is None for process in processes.values()):
        time.sleep(0.5)
        if time.monotonic() - last > TOLD_EVERY:
            told()
            last = time.monotonic()
    told()
    return [name for name, process in processes.items() if process.returncode]


def everything(size: str, work: Path, out: Path) -> None:
    """Pretrain, run, collect; `out` has what is there so far."""
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def told() -> None:
        seconds["all"] = round(time.monotonic() - began, 1)
        atomic_write_json(out, gathered(size, work, seconds))

    failed = wait({name: start(size, work, "model", name) for name in MODELS}, told)
    if failed:  # once more, by plain products: fused attention is what a launch failure is suspected of
        print(f"pretraining failed and is repeated: {', '.join(failed)}", flush=True)
        failed = wait({name: start(size, work, "model", name, "eager") for name in failed}, told)
    seconds["pretraining"] = round(time.monotonic() - began, 1)
    if failed:
        sys.exit(f"pretraining failed: {', '.join(failed)}")
    failed = wait({name: start(size, work, "part", name) for name in PARTS}, told)
    if "main" not in failed and "beside" not in failed:
        print(joined(size, work), flush=True)
    told()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def joined(size: str, work: Path) -> str:
    """The report of all arms: stages that `beside` has done count as done in `main`."""
    for stage in (work / "beside" / "stages").iterdir():
        if not (work / "main" / "stages" / stage.name).exists():
            shutil.copytree(stage, work / "main" / "stages" / stage.name)
    return run(configured("main", size, work, ALL))


def gathered(size: str, work: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Everything that has been measured so far."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    progress = {name: work / "models" / f"{name}.jsonl" for name in MODELS}
    parts = {part: work / part for part in PARTS}
    return {
        "size": size,
        "device": device,
        "environment": environment(),
        "seconds": seconds,
        "plan": asdict(SIZES[size].plan),
        "settings": SIZES[size].settings,
        "models": {name: read_jsonl(path) for name, path in progress.items() if path.exists()},
        "results": {
            part: collected(folder, detailed=False)
            for part, folder in parts.items()
            if (folder / "report" / "results.json").exists()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["all", "write", "model", "part"])
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--work", type=Path, help="folder for models and runs; default: a temporary one")
    parser.add_argument("--name", help="of a model or a part, where only that is made")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="in pretraining")
    options = parser.parse_args()
    if options.verb == "write":
        fill_document()
    elif options.verb == "model":
        pretrain(options.name, SIZES[options.size].plan, options.work / "models", options.attention)
    elif options.verb == "part":
        for arms in PARTS[options.name]:
            print(run(configured(options.name, options.size, options.work, arms)), flush=True)
    elif options.out is None:
        parser.error("all needs a file to write to")
    else:
        everything(options.size, options.work or Path(tempfile.mkdtemp(prefix="large-lab-")), options.out)


if __name__ == "__main__":
    main()
