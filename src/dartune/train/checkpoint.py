"""Checkpoints of the training loop: trainable parameters and optimizer state as safetensors.

A checkpoint is written to a temporary folder and renamed. `COMPLETE.json` holds the checksum of every file. An
unfinished, truncated or altered checkpoint is skipped with a warning, and the previous one is used.
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

from dartune import distributed
from dartune.models.fsdp import full_tensor, shard_like
from dartune.run.files import atomic_write_json, read_json, sync, writing
from dartune.train.gradient_sync import GradientSync

logger = logging.getLogger(__name__)

# Two, so that one is left if the last is damaged.
KEEP = 2
COMPLETE_FILE = "COMPLETE.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the trainable parameters by name; a tied weight appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def save(folder: Path, model: nn.Module, updates: GradientSync, step: int) -> None:
    """Saves the checkpoint of `step` atomically and deletes all but the last two; every process must call this."""
    _write(folder, _gathered(_parameters(model).items()), _gathered(updates.state()), step)


def _gathered(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Returns the unsharded tensors on the CPU of the first process, and an empty dict on the others.

    Tensors are gathered one by one, so a process never holds more than one unsharded tensor on its device.
    """
    gathered = {}
    for name, tensor in tensors:
        value = full_tensor(tensor.detach())
        if distributed.is_main():
            gathered[name] = value.cpu().contiguous()
    return gathered


@distributed.main_only
def _write(folder: Path, parameters: dict[str, torch.Tensor], states: dict[str, torch.Tensor], step: int) -> None:
    checkpoint = folder / f"step-{step:06d}"
    draft = folder / f".draft-{step:06d}"
    for leftover in folder.glob(".draft-*"):  # of a crash
        shutil.rmtree(leftover, ignore_errors=True)
    with writing(checkpoint):
        draft.mkdir(parents=True)
        save_file(parameters, draft / "parameters.safetensors")
        save_file(states, draft / "optimizers.safetensors")
        files = sorted(draft.glob("*.safetensors"))
        for path in files:
            sync(path)
        checksums = {path.name: _sha256(path) for path in files}
        atomic_write_json(draft / COMPLETE_FILE, {"step": step, "sha256": checksums})
        shutil.rmtree(checkpoint, ignore_errors=True)
        os.replace(draft, checkpoint)
        sync(folder)
    for old in list(_newest_first(folder))[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _newest_first(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True))


def _complete_step(checkpoint: Path) -> int | None:
    """Returns the step of a checkpoint; None if a file is missing or does not match its checksum."""
    mark = read_json(checkpoint / COMPLETE_FILE)
    if mark is None:
        return None
    try:
        checksums = mark["sha256"]
        complete = bool(checksums) and all(_sha256(checkpoint / name) == value for name, value in checksums.items())
    except (OSError, KeyError):
        return None
    return mark["step"] if complete else None


def latest(folder: Path, max_step: float = float("inf")) -> tuple[Path, int] | None:
    """Returns the last complete checkpoint of `folder` and its step, at most `max_step`; None without one."""
    for checkpoint in _newest_first(folder):
        step = _complete_step(checkpoint)
        if step is None:
            logger.warning("%s is incomplete or damaged and is passed over", checkpoint)
        elif step > max_step:
            logger.warning("%s is skipped, because metrics.jsonl is damaged after step %d", checkpoint, max_step)
        else:
            return checkpoint, step
    return None


def restore(folder: Path, model: nn.Module, updates: GradientSync, max_step: float = float("inf")) -> int:
    """Loads the last complete checkpoint into `model` and its optimizers, and returns its step; 0 without one."""
    last = latest(folder, max_step)
    if last is None:
        return 0
    checkpoint, step = last
    saved = load_file(checkpoint / "parameters.safetensors")
    with torch.no_grad():
        for name, parameter in _parameters(model).items():
            parameter.copy_(shard_like(saved[name], parameter))
    updates.load(load_file(checkpoint / "optimizers.safetensors"))
    return step
