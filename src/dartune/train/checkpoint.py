"""Checkpoints of the training loop: parameters and optimiser state as safetensors, completed by a mark.

A checkpoint is written beside its place and renamed, with a checksum of every file in
`COMPLETE.json`; one that is cut, altered or unmarked is passed over for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dartune import processes
from dartune.models.sharding import spread_like
from dartune.run import atomic_write_json
from dartune.train.updates import Updates, whole

KEEP = 2
MARK = "COMPLETE.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters by name, each tied weight once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: nn.Module, updates: Updates, step: int) -> None:
    """Write the checkpoint of `step` atomically and drop all but the last two; every process must call this."""
    parameters = {name: whole(p) for name, p in _parameters(model).items()}
    _write(folder, parameters, updates.state(), step)


@processes.first_only
def _write(folder: Path, parameters: dict[str, torch.Tensor], states: dict[str, torch.Tensor], step: int) -> None:
    place = folder / f"step-{step:06d}"
    draft = folder / f".draft-{step:06d}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(parameters, draft / "parameters.safetensors")
    save_file(states, draft / "optimizers.safetensors")
    sums = {path.name: _sha256(path) for path in sorted(draft.glob("*.safetensors"))}
    atomic_write_json(draft / MARK, {"step": step, "sha256": sums})
    shutil.rmtree(place, ignore_errors=True)
    os.replace(draft, place)
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def is_complete(place: Path) -> bool:
    """Whether every file of the checkpoint is there and has the checksum its mark states."""
    try:
        sums = json.loads((place / MARK).read_text())["sha256"]
        return bool(sums) and all(_sha256(place / name) == value for name, value in sums.items())
    except (OSError, ValueError, KeyError):
        return False


def latest(folder: Path) -> Path | None:
    """The last complete checkpoint of `folder`."""
    return next((place for place in sorted(folder.glob("step-*"), reverse=True) if is_complete(place)), None)


def restore(folder: Path, model: nn.Module, updates: Updates) -> int:
    """Load the last complete checkpoint into `model` and its optimisers; returns its step, 0 without one."""
    place = latest(folder)
    if place is None:
        return 0
    saved = load_file(place / "parameters.safetensors")
    with torch.no_grad():
        for name, parameter in _parameters(model).items():
            parameter.copy_(spread_like(saved[name], parameter))
    updates.load(load_file(place / "optimizers.safetensors"))
    return int(json.loads((place / MARK).read_text())["step"])
