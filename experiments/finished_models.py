"""Models of a finished run, for a second round that starts from them."""

from __future__ import annotations

import json
from pathlib import Path

from dartune.stages.names import mapper_stage, train_stage


def dart_model(run_folder: Path, seed: int) -> Path:
    """The target that `dart` fine-tuned, at the learning rate that was chosen on dev."""
    results = json.loads((run_folder / "report" / "results.json").read_text("utf-8"))
    rate = results["learning_rates"]["dart"][str(seed)]["chosen"]
    return run_folder / "stages" / train_stage("dart", seed, rate) / "model"


def mapper_model(run_folder: Path, seed: int) -> Path:
    """The mapper that wrote the rewrites of `dart`."""
    return run_folder / "stages" / mapper_stage("dart", seed) / "model"
