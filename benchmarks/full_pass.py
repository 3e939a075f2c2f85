"""One full pass of recipes/gsm8k-qwen3-0.6b.yaml on a randomly initialised model of that shape: speed, memory, parts.

    python benchmarks/full_pass.py OUT.json [--shape tiny] [--work FOLDER]

Probe, mapper RL (LoRA on the target's own weights), synthesis, fine-tuning and evaluation are the pipeline's own, at
the recipe's settings but for the few below. Random weights hardly ever end a text, so that every sample has its full
length, and none passes a gate: rewards are all alike, the arm `dart` has no rows to be trained on, and only `sft` is.
What is generated, scored and trained is as much work as with a real model that writes so much; gates have less to read
in text without numbers. OUT.json is written anew after every stage.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from clock import Clock
from random_model import MODELS, save_problems, save_random_model

import dartune.rewards.reward as reward_module
import dartune.train.loop as loop_module
from dartune.config.load import load_config
from dartune.engines.hf import HFEngine
from dartune.pipeline import run
from dartune.rewards.reward import GatedReward
from dartune.run.environment import environment
from dartune.run.files import atomic_write_json
from dartune.run.folder import RunFolder
from dartune.stages.mapper import MapperObjective
from dartune.train.gradient_sync import GradientSync
from dartune.train.sft import SFTObjective

RECIPE = Path(__file__).parents[1] / "recipes" / "gsm8k-qwen3-0.6b.yaml"
ROWS = 96
SETTINGS = {
    "evaluate.suites": "{}",
    "data.dev": "9",
    "data.test": "9",
    "data.limit": "44",
    "arms": "[base, sft, dart]",
    "mapper.steps": "4",
    "mapper.questions_per_step": "12",
    "mapper.max_new_tokens": "256",
    "sft.steps": "20",
    "sft.learning_rates": "[1e-5]",
    "evaluate.max_new_tokens": "256",
}
TINY = {
    "data.limit": "16",
    "mapper.steps": "3",
    "mapper.questions_per_step": "2",
    "mapper.max_new_tokens": "24",
    "sft.steps": "3",
    "evaluate.max_new_tokens": "24",
}


class Steps:
    """Seconds of every step of one kind of training: from drawing its rows to the metrics after the update."""

    def __init__(self, objective: type):
        self.seconds: list[float] = []
        begin, end = objective.begin, objective.end

        def begun(this: Any, step: int) -> Any:
            self._at = time.perf_counter()
            return begin(this, step)

        def ended(this: Any, step: int) -> Any:
            found = end(this, step)
            self.seconds.append(time.perf_counter() - self._at)
            return found

        objective.begin, objective.end = begun, ended

    def told(self) -> dict[str, Any]:
        """The first step is apart: it loads kernels."""
        later = self.seconds[1:] or self.seconds
        each = median(later) if later else 0.0
        return {
            "first_step_seconds": round(self.seconds[0], 3) if self.seconds else None,
            "later_step_seconds": [round(one, 3) for one in later],
            "steps_per_second": round(1 / each, 3) if each else None,
        }


class Recorder:
    """Measures the stages of a run and writes what is known after each."""

    def __init__(self, out: Path, about: dict[str, Any]):
        self.out, self.clock, self.found = out, Clock(), {**about, "stages": {}}
        self.began = time.perf_counter()
        clock = self.clock
        clock.wrap(HFEngine, "generate", "generate")
        clock.wrap(HFEngine, "score", "score")
        clock.wrap(GatedReward, "__call__", "reward")
        clock.wrap(reward_module, "run_gates", "gates")
        for objective in (MapperObjective, SFTObjective):
            clock.wrap(objective, "loss", "forward")
        clock.wrap(loop_module, "check_memory", "rehearsal")
        clock.wrap(GradientSync, "backward", "backward")
        clock.wrap(GradientSync, "step", "optimiser")
        self.steps = {"mapper": Steps(MapperObjective), "sft": Steps(SFTObjective)}
        plain = RunFolder.stage

        def stage(this: RunFolder, name: str, inputs: Any, fn: Any) -> Path:
            return plain(this, name, inputs, partial(self._measured, name, fn))

        RunFolder.stage = stage

    def _measured(self, name: str, fn: Any, out: Path) -> Any:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with self.clock.part(name):
            cost = fn(out)
        row = {"seconds": round(time.perf_counter() - start, 3)}
        if torch.cuda.is_available():
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        row |= {key: getattr(cost, key) for key in ("generated_tokens", "scored_tokens", "trained_tokens") if cost}
        self.found["stages"][name] = row | {"parts": self.clock.under(name)} | rates(row, self.clock.under(name))
        for kind, steps in self.steps.items():
            self.found[kind] = steps.told()
        self.found["seconds_so_far"] = round(time.perf_counter() - self.began, 1)
        atomic_write_json(self.out, self.found)
        print(f"{name}: {row}", flush=True)
        return cost


def rates(row: dict[str, Any], parts: dict[str, dict[str, float]]) -> dict[str, float]:
    """Tokens a second of a stage, over the time spent on that alone."""
    working = {
        "generated": ("generate",),
        "scored": ("reward/score", "score"),
        "trained": ("forward", "backward"),
    }
    found = {}
    for kind, names in working.items():
        seconds = sum(parts[name]["seconds"] for name in names if name in parts)
        if seconds and row.get(f"{kind}_tokens"):
            found[f"{kind}_tokens_per_second"] = round(row[f"{kind}_tokens"] / seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(MODELS), default="qwen3-0.6b")
    parser.add_argument("--work", type=Path, help="folder for model and run; default: a temporary one")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="full-pass-"))
    work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    settings = SETTINGS | (TINY if options.shape == "tiny" else {})
    recorder = Recorder(
        options.out, {"shape": options.shape, "device": name, "environment": environment(), "settings": settings}
    )
    save_random_model(options.shape, work / "model", device)
    save_problems(ROWS, work / "rows.jsonl")
    paths = {"data.path": "rows.jsonl", "target.path": "model", "output": "run"}
    config = load_config(RECIPE, settings | {key: str(work / path) for key, path in paths.items()})
    print(run(config), flush=True)
    found = recorder.found
    found["seconds"] = round(time.perf_counter() - recorder.began, 1)
    atomic_write_json(options.out, found)
    print(f"\n{name}: {found['seconds']} s in all; mapper {found['mapper']['steps_per_second']} steps/s")
    for path, part in sorted(found["stages"]["mapper-s0"]["parts"].items(), key=lambda item: -item[1]["seconds"]):
        print(f"  {path}: {part['seconds']:.2f} s in {part['calls']} calls")
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
