"""What the stages that train an arm share: its start, keeping its model, the choice of its learning rate, its cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartune.config.arm_config import learning_rates
from dartune.config.arms import ARMS
from dartune.engines.meter import Meter
from dartune.run.cost import Cost
from dartune.run.files import atomic_write_json, write_jsonl
from dartune.stages.names import adaptation_stages, train_stage

if TYPE_CHECKING:
    from dartune.stages.context import StageContext


def start_of(context: StageContext, arm: str, seed: int) -> tuple[str, str]:
    """Path of the model that an arm starts from, and what identifies it."""
    start = ARMS[arm].start
    if start is None:
        return context.models.target_path, context.models.target_fingerprint
    stage = train_stage(start, seed, chosen_learning_rate(context, start, seed)[0])
    return str(context.folder(stage) / "model"), context.key(stage)


def keep_model(context: StageContext, model: Any, folder: Path) -> Cost:
    """Dev accuracy of a trained model, and the model itself, in the stage's folder; what measuring cost."""
    from dartune.stages.evaluate import accuracy, evaluate

    engine = context.models.engine(model)
    meter = Meter(engine)
    limit = context.config.evaluate.max_new_tokens
    with context.progress(len(context.data.dev), f"{folder.name}, dev questions") as progress:
        renderer, checker = context.models.renderer, context.checker
        dev = evaluate({"dev": context.data.dev}, engine, renderer, checker, limit, progress=progress)
    write_jsonl(folder / "dev.jsonl", dev)
    atomic_write_json(folder / "dev.json", {"accuracy": accuracy(dev), "n": len(dev)})
    context.models.keep(model, folder)
    return meter.cost()


def chosen_learning_rate(context: StageContext, arm: str, seed: int) -> tuple[float, dict[str, float]]:
    """The learning rate of best dev accuracy (the smaller one of equals), and every rate's accuracy."""
    dev = {}
    for rate in sorted(learning_rates(context.config, arm)):
        folder = context.folder(train_stage(arm, seed, rate))
        dev[rate] = json.loads((folder / "dev.json").read_text())["accuracy"]
    best = max(dev, key=lambda rate: (dev[rate], -rate))
    return best, {f"{rate:g}": value for rate, value in dev.items()}


def dart_cost(context: StageContext, seed: int) -> Cost:
    """What making the data of `dart` and fine-tuning on it (once) took."""
    best = chosen_learning_rate(context, "dart", seed)[0]
    stages = [*adaptation_stages(context.config, "dart", seed), train_stage("dart", seed, best)]
    total = sum((context.run_folder.cost(stage) for stage in stages), Cost())
    return replace(total, peak_memory_mb=0.0)
