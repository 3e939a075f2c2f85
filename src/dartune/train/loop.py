"""The one training loop: optimiser, schedule, accumulation, checkpoints, exact resume.

Lab pretraining, SFT and reinforcement learning differ only in their `Objective`. Everything an
objective draws is a function of the step number, so the whole state of a run is its parameters,
its optimiser state and the step: a resumed run continues as if it had never stopped (bit-equal
on a CPU in float32).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dartune import processes, stopping
from dartune.config import LOCAL, Adapter, ExecutionConfig
from dartune.errors import InputError, MachineError
from dartune.models.adapter import add_lora
from dartune.models.sharding import gathered
from dartune.run import append_jsonl, atomic_write_json, read_jsonl, write_jsonl
from dartune.train import checkpoint
from dartune.train.updates import Updates

NOT_FINITE = "not-finite.json"


class Objective(Protocol):
    """What a step trains on and by which loss."""

    def begin(self, step: int) -> Sequence[Any]:
        """This process's microbatches of the step; a function of `step` and the current parameters only."""

    def loss(self, model: nn.Module, microbatch: Any) -> torch.Tensor:
        """Scalar; summed over the microbatches of all processes it is the step's loss.

        An idle process asks for the loss of its first microbatch again; the metrics must count each only once.
        """

    def heaviest(self) -> Any:
        """The largest microbatch that a step can come to; its loss must not count anywhere."""

    def shown(self, microbatch: Any) -> list[dict[str, Any]]:
        """The rows of a microbatch for a person to read, JSON-friendly."""

    def end(self, step: int) -> dict[str, Any]:
        """The step's metrics, JSON-friendly; with a reason under "stop" the step is the last."""


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Settings of one training run; over the last `decay` of it (a share of its steps) the learning rate falls to 0."""

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    decay: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    checkpoint_every: int = 50
    sharding: str = "ddp"
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 0
    """Sets what the model itself draws in training (dropout)."""

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * min(warm, left / self.decay if self.decay else 1.0)


def build_optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon on the hidden matrices and AdamW on the rest."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise MachineError("the model has no trainable parameter")
    hidden = [p for name, p in trainable if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    if config.optimizer != "muon" or not hidden:
        hidden = []
    inside = {id(p) for p in hidden}
    rest = [p for _, p in trainable if id(p) not in inside]
    adam = partial(torch.optim.AdamW, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    # One kernel instead of a dozen passes over all weights; on a CPU there is nothing to gain.
    optimizers: list[torch.optim.Optimizer] = [adam(rest, fused=rest[0].is_cuda)]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def shuffled_rows(n: int, per_step: int, step: int, seed: int) -> list[int]:
    """Row numbers of a step: every row once an epoch, a new order each; a function of `step` alone."""
    rows: list[int] = []
    position = step * per_step
    while len(rows) < per_step:
        epoch, offset = divmod(position, n)
        order = list(range(n))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        taken = order[offset : offset + per_step - len(rows)]
        rows += taken
        position += len(taken)
    return rows


def train(
    model: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place and return the metrics of every step, resumed ones included.

    `folder` holds `metrics.jsonl` and `checkpoints/`; where it holds the complete checkpoint of an
    earlier, interrupted call, training continues from it. SIGTERM is heeded after a step and its checkpoint.

    Raises:
        MachineError: the loss or the gradient is not finite (the checkpoint before it is kept, and its batch written).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOT_FINITE).unlink(missing_ok=True)
    build = partial(build_optimizers, config=config)
    stepping = Updates(model, build, config.sharding, config.max_grad_norm)
    metrics_path = folder / "metrics.jsonl"
    earlier = processes.agreed(_earlier(metrics_path))
    start = processes.agreed(checkpoint.restore(folder / "checkpoints", model, stepping, len(earlier)))
    history = earlier[:start]
    if metrics_path.exists():
        write_jsonl(metrics_path, history)
    stopped = bool(history) and "stop" in history[-1]
    if next(model.parameters()).device.type != "cpu":
        rehearse(stepping.model, objective)
    for step in range(start, start if stopped else config.steps):
        with stopping.after_this():
            row = {"step": step + 1, "learning_rate": config.learning_rate_at(step)}
            # Whether to stop may hang on a clock; all processes go by the first one's.
            row = processes.agreed(row | _one_step(stepping, objective, config, step, folder))
            append_jsonl(metrics_path, row)
            history.append(row)
            asked = processes.agreed(stopping.asked())
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps or "stop" in row or asked:
                checkpoint.save(folder / "checkpoints", model, stepping, step + 1)
        if on_step:
            on_step(step + 1, row)
        if asked:
            raise stopping.Stopped
        if "stop" in row:
            break
    model.eval()
    return history


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The metrics of the first steps, as far as the file is whole."""
    rows = read_jsonl(path, damaged=True) if path.exists() else []
    return [row for step, row in enumerate(rows, start=1) if row.get("step") == step]


def rehearse(model: nn.Module, objective: Objective) -> None:
    """A forward and backward of the largest microbatch, thrown away: what does not fit fails now, not after hours."""
    model.train()
    objective.loss(model, objective.heaviest()).backward()
    model.zero_grad()


def train_as_set(
    model: nn.Module,
    objective: Callable[[nn.Module], Objective],
    config: Adapter,
    folder: Path,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    checkpoint_every: int,
    decay: float = 1.0,
    weight_decay: float = 0.0,
    execution: ExecutionConfig = LOCAL,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """`train` by the settings of a config's section, fully or by LoRA; returns the model with its adapter still on.

    Args:
        objective: makes the objective, given the model that is trained (LoRA-wrapped or not).
        checkpoint_every: steps between checkpoints where `execution` says none.
    """
    torch.manual_seed(seed)
    if config.adapter == "lora":
        model = add_lora(model, config.lora_rank)
    if execution.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    settings = LoopConfig(
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=config.warmup_steps,
        decay=decay,
        weight_decay=weight_decay,
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=execution.checkpoint_every or checkpoint_every,
        sharding="ddp" if config.adapter == "lora" else execution.sharding,  # an adapter is small
        seed=seed,
    )
    history = train(model, objective(model), settings, folder, on_step=on_step)
    if execution.gradient_checkpointing:
        model.activation_checkpointing_disable()
    return gathered(model), history


def _one_step(stepping: Updates, objective: Objective, config: LoopConfig, step: int, folder: Path) -> dict[str, Any]:
    microbatches = objective.begin(step)
    stepping.model.train()
    # Dropout too is a function of the step; each process has rows of its own, and drops in its own way.
    torch.manual_seed(random.Random(f"{config.seed}-{step}-{processes.rank()}").getrandbits(63))
    losses: list[torch.Tensor] = []  # asked for their values last, which waits for the device
    # All processes go through as many microbatches.
    counts = processes.everyones(len(microbatches))
    most = max(counts)
    if most and not min(counts):
        raise InputError(
            f"a step has fewer rows than there are processes ({processes.count()}): raise batch_size or "
            "questions_per_step, or start fewer processes"
        )
    for number in range(most):
        idle = number >= len(microbatches)
        with stepping.accumulating(last=number + 1 == most):
            loss = objective.loss(stepping.model, microbatches[0 if idle else number]) * (0 if idle else 1)
            losses.append(loss.detach())
            stepping.backward(loss)
    values = [loss.item() for loss in losses]
    total = processes.totals({"loss": sum(values)})["loss"]
    norm = stepping.step(config.learning_rate_at(step)) if most else 0.0
    if not math.isfinite(total) or not math.isfinite(norm):
        path = folder / NOT_FINITE
        _write_batch(path, objective, microbatches, values)
        raise MachineError(
            f"step {step + 1}: the loss is {total} and the gradient norm {norm}; its batch is in {path}: "
            "look at its rows, or lower the learning rate"
        )
    return {"loss": total, "grad_norm": norm, **objective.end(step)}


def _write_batch(path: Path, objective: Objective, microbatches: Sequence[Any], losses: Sequence[float]) -> None:
    """Every process's microbatches with their losses, for a person to read."""
    parts = zip(losses, microbatches, strict=False)  # idle passes are left out
    shown = [{"loss": str(loss), "rows": objective.shown(microbatch)} for loss, microbatch in parts]
    atomic_write_json(path, {"microbatches": [part for parts in processes.everyones(shown) for part in parts]})
