"""Checkpoints of the training loop: parameters and optimiser state as safetensors, completed by a mark.

A checkpoint is written beside its place and renamed, with a checksum of every file in
`COMPLETE.json`; one that is cut, altered or unmarked is passed over, and told, for the one before it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dartune import processes
from dartune.files import atomic_write_json, read_json, sync, writing
from dartune.models.sharding import full, spread_like
from dartune.train.updates import Updates

logger = logging.getLogger(__name__)

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
    _write(folder, _gathered(_parameters(model).items()), _gathered(updates.state()), step)


def _gathered(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Whole tensors in the first process's memory; the others help to gather one after the other, and keep nothing."""
    found = {}
    for name, tensor in tensors:
        value = full(tensor.detach())
        if processes.is_first():
            found[name] = value.cpu().contiguous()
    return found


@processes.first_only
def _write(folder: Path, parameters: dict[str, torch.Tensor], states: dict[str, torch.Tensor], step: int) -> None:
    place = folder / f"step-{step:06d}"
    draft = folder / f".draft-{step:06d}"
    for left in folder.glob(".draft-*"):  # by a crash
        shutil.rmtree(left, ignore_errors=True)
    with writing(place):
        draft.mkdir(parents=True)
        save_file(parameters, draft / "parameters.safetensors")
        save_file(states, draft / "optimizers.safetensors")
        files = sorted(draft.glob("*.safetensors"))
        for path in files:
            sync(path)
        atomic_write_json(draft / MARK, {"step": step, "sha256": {path.name: _sha256(path) for path in files}})
        shutil.rmtree(place, ignore_errors=True)
        os.replace(draft, place)
        sync(folder)
    for old in list(_newest_first(folder))[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _newest_first(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("step-*"), key=lambda place: int(place.name.removeprefix("step-")), reverse=True))


def _step(place: Path) -> int | None:
    """The step of a checkpoint whose files are all there, with the checksums its mark states; None for another."""
    mark = read_json(place / MARK)
    try:
        sums = mark["sha256"] if mark else {}
        complete = bool(sums) and all(_sha256(place / name) == value for name, value in sums.items())
    except (OSError, KeyError):
        return None
    return mark["step"] if complete else None


def latest(folder: Path, most: float = float("inf")) -> tuple[Path, int] | None:
    """The last complete checkpoint of `folder`, of step `most` at the latest, and its step."""
    for place in _newest_first(folder):
        step = _step(place)
        if step is None:
            logger.warning("%s is incomplete or damaged and is passed over", place)
        elif step > most:
            logger.warning("%s is passed over, for metrics.jsonl is damaged after step %d", place, most)
        else:
            return place, step
    return None


def restore(folder: Path, model: nn.Module, updates: Updates, most: float = float("inf")) -> int:
    """Load the last complete checkpoint into `model` and its optimisers; returns its step, 0 without one."""
    found = latest(folder, most)
    if found is None:
        return 0
    place, step = found
    saved = load_file(place / "parameters.safetensors")
    with torch.no_grad():
        for name, parameter in _parameters(model).items():
            parameter.copy_(spread_like(saved[name], parameter))
    updates.load(load_file(place / "optimizers.safetensors"))
    return step
