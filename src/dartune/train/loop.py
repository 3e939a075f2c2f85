"""The training loop: optimizer, schedule, gradient accumulation, checkpoints and exact resume.

Lab pretraining, SFT and reinforcement learning differ only in their `Objective`. All random choices of an objective are
a function of the step number, so the state of a run is its parameters, its optimizer state and the step. A resumed run
equals an uninterrupted one (bit-equal on a CPU in float32).
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

from dartune import distributed
from dartune.config.schema import DEFAULT_EXECUTION, DirectRLSettings, ExecutionConfig, MapperConfig, SFTConfig
from dartune.errors import InputError, MachineError
from dartune.models.activations import recompute_activations
from dartune.models.fsdp import gather_model
from dartune.models.language_model import LanguageModel
from dartune.models.lora import add_lora
from dartune.run import sigterm
from dartune.run.files import append_jsonl, atomic_write_json, read_jsonl, write_jsonl
from dartune.run.progress import call, count_tokens
from dartune.train import checkpoint
from dartune.train.gradient_sync import GradientSync

NOT_FINITE = "not-finite.json"


class Objective(Protocol):
    """The data and the loss of each step."""

    def begin(self, step: int) -> Sequence[Any]:
        """Returns this process's microbatches of the step; depends on `step` and the current parameters only."""
        ...

    def loss(self, model: nn.Module, microbatch: Any) -> torch.Tensor:
        """Returns the loss of a microbatch, a scalar.

        The loss of the step is the sum over the microbatches of all processes. A process with fewer microbatches than
        the others calls this again with its first one, and the metrics must count each microbatch once.
        """
        ...

    def largest_microbatch(self) -> Any:
        """Returns the largest microbatch that can occur; its loss must not change the metrics."""

    def shown(self, microbatch: Any) -> list[dict[str, Any]]:
        """Returns the rows of a microbatch in readable form, as JSON values."""
        ...

    def end(self, step: int) -> dict[str, Any]:
        """Returns the metrics of the step, as JSON values; a reason under "stop" ends the training."""
        ...


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """Settings of one training run.

    The learning rate rises linearly over `warmup_steps`, stays constant, and falls linearly to 0 over the last `decay`
    (a share of the steps).
    """

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
    """Seed of the random numbers that the model itself uses in training (dropout)."""

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of 0-based `step`."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        remaining = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * min(warmup, remaining / self.decay if self.decay else 1.0)


def build_optimizers(model: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """Returns AdamW, or Muon for the hidden weight matrices and AdamW for all other parameters.

    Raises:
        MachineError: the model has no trainable parameter, or torch is too old for Muon.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise MachineError("the model has no trainable parameter")
    hidden = [p for name, p in trainable if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    if config.optimizer != "muon" or not hidden:
        hidden = []
    hidden_ids = {id(p) for p in hidden}
    other = [p for _, p in trainable if id(p) not in hidden_ids]
    adamw = partial(torch.optim.AdamW, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    # Fused: one kernel instead of a dozen passes over all weights. On a CPU it is not faster.
    optimizers: list[torch.optim.Optimizer] = [adamw(other, fused=other[0].is_cuda)]
    if hidden:
        if not hasattr(torch.optim, "Muon"):
            raise MachineError(f"optimizer muon needs torch 2.9 or newer; torch {torch.__version__} is installed")
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
    """Returns the row indices of a step; each epoch holds every row once, in a new order.

    The result depends on the arguments only, so a resumed run needs no state of a data loader.

    Args:
        n: number of rows.
        per_step: rows per step; a step may continue into the next epoch.
        step: 0-based step.
        seed: seed of the order.
    """
    rows: list[int] = []
    position = step * per_step
    while len(rows) < per_step:
        epoch, offset = divmod(position, n)
        order = list(range(n))
        random.Random(f"{seed}-{epoch}").shuffle(order)
        chunk = order[offset : offset + per_step - len(rows)]
        rows += chunk
        position += len(chunk)
    return rows


def train(
    model: nn.Module,
    objective: Objective,
    config: LoopConfig,
    folder: Path,
    *,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Trains `model` in place and returns the metrics of every step, including those before a resume.

    On SIGTERM the current step is finished and saved before the process stops.

    Args:
        model: the model to train.
        objective: the data and the loss of each step.
        config: the settings.
        folder: holds `metrics.jsonl` and `checkpoints/`. If it has a complete checkpoint of an interrupted call,
            training continues from it.
        on_step: called with the number of finished steps and the metrics of the last one.

    Raises:
        MachineError: the loss or the gradient is not finite. The last checkpoint is kept, and the batch is written to
            `not-finite.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOT_FINITE).unlink(missing_ok=True)
    build = partial(build_optimizers, config=config)
    updates = GradientSync(model, build, config.sharding, config.max_grad_norm)
    metrics_path = folder / "metrics.jsonl"
    saved_metrics = distributed.broadcast(_intact_metrics(metrics_path))
    # Not a later checkpoint than the metrics reach: the history would have a gap.
    start = distributed.broadcast(checkpoint.restore(folder / "checkpoints", model, updates, len(saved_metrics)))
    history = saved_metrics[:start]
    if metrics_path.exists():
        write_jsonl(metrics_path, history)
    stopped = bool(history) and "stop" in history[-1]
    if next(model.parameters()).device.type != "cpu":
        check_memory(updates.model, objective)
    for step in range(start, start if stopped else config.steps):
        with sigterm.delay_sigterm():
            row = {"step": step + 1, "learning_rate": config.learning_rate_at(step)}
            # An objective may stop by elapsed time, which differs between processes, so the first one decides for all.
            row = distributed.broadcast(row | _run_step(updates, objective, config, step, folder))
            append_jsonl(metrics_path, row)
            history.append(row)
            sigterm_received = distributed.broadcast(sigterm.sigterm_received())
            last = step + 1 == config.steps or "stop" in row or sigterm_received
            if last or (step + 1) % config.checkpoint_every == 0:
                checkpoint.save(folder / "checkpoints", model, updates, step + 1)
        if on_step:
            on_step(step + 1, row)
        if sigterm_received:
            raise sigterm.Stopped
        if "stop" in row:
            break
    model.eval()
    return history


def _intact_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the metrics of the first steps, up to the first damaged or missing line."""
    rows = read_jsonl(path, damaged=True) if path.exists() else []
    return [row for step, row in enumerate(rows, start=1) if row.get("step") == step]


def check_memory(model: nn.Module, objective: Objective) -> None:
    """Runs a forward and backward of the largest microbatch and discards the gradient.

    A run that does not fit in memory then fails at its start, not after hours.
    """
    model.train()
    objective.loss(model, objective.largest_microbatch()).backward()
    model.zero_grad()


def train_from_config(
    model: LanguageModel,
    objective: Callable[[nn.Module], Objective],
    config: MapperConfig | SFTConfig | DirectRLSettings,
    folder: Path,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    checkpoint_every: int,
    decay: float = 1.0,
    weight_decay: float = 0.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Runs `train` with the settings of a config section, on all weights or with LoRA.

    Args:
        model: the model to train.
        objective: builds the objective for the model that is trained (with or without LoRA).
        config: the config section.
        folder: as in `train`.
        seed: seed of the LoRA initialisation and of dropout.
        steps: number of steps.
        learning_rate: the learning rate after warm-up.
        checkpoint_every: steps between checkpoints if `execution` does not set them.
        decay: as in `LoopConfig`.
        weight_decay: weight decay of the optimizers.
        execution: how the training is executed: sharding, microbatches, checkpoints.
        on_step: as in `train`.

    Returns:
        The trained model, unsharded, with its adapter still attached, and the metrics of every step.
    """
    torch.manual_seed(seed)
    if config.lora_rank is not None:
        model = add_lora(model, config.lora_rank)
    if execution.gradient_checkpointing:
        recompute_activations(model)
    settings = LoopConfig(
        steps=steps,
        learning_rate=learning_rate,
        warmup_steps=config.warmup_steps,
        decay=decay,
        weight_decay=weight_decay,
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=execution.checkpoint_every or checkpoint_every,
        # An adapter is small, so sharding its weights would save little memory.
        sharding="ddp" if config.lora_rank is not None else execution.sharding,
        seed=seed,
    )
    history = train(model, objective(model), settings, folder, on_step=on_step)
    if execution.gradient_checkpointing:
        recompute_activations(model, on=False)
    return gather_model(model), history


def _run_step(
    updates: GradientSync, objective: Objective, config: LoopConfig, step: int, folder: Path
) -> dict[str, Any]:
    """Runs one optimizer step and returns its metrics."""
    microbatches = objective.begin(step)
    updates.model.train()
    # Dropout must depend on the step only, so that a resumed run repeats it. Each process has its own rows and its own
    # dropout.
    torch.manual_seed(random.Random(f"{config.seed}-{step}-{distributed.rank()}").getrandbits(63))
    losses: list[torch.Tensor] = []  # read after the last microbatch, because reading a value waits for the device
    # All processes must run the same number of microbatches, because each one synchronises gradients.
    counts = distributed.all_gather(len(microbatches))
    passes = max(counts)
    if passes and not min(counts):
        raise InputError(
            f"a step has fewer rows than there are processes ({distributed.world_size()}): raise batch_size or "
            "questions_per_step, or start fewer processes"
        )
    with call("training", passes, shared=False) as running:
        for number in range(passes):
            idle = number >= len(microbatches)
            with updates.accumulating(last=number + 1 == passes):
                loss = objective.loss(updates.model, microbatches[0 if idle else number]) * (0 if idle else 1)
                losses.append(loss.detach())
                updates.backward(loss)
            running.add(1, 0)
        values = [loss.item() for loss in losses]
        total = distributed.all_reduce({"loss": sum(values)})["loss"]
        norm = updates.step(config.learning_rate_at(step)) if passes else 0.0
    if not math.isfinite(total) or not math.isfinite(norm):
        path = folder / NOT_FINITE
        _write_batch(path, objective, microbatches, values)
        raise MachineError(
            f"step {step + 1}: the loss is {total} and the gradient norm {norm}; the batch is in {path}: "
            "check its rows, or lower the learning rate"
        )
    metrics = objective.end(step)
    count_tokens("training", metrics.get("trained_tokens", 0))
    return {"loss": total, "grad_norm": norm, **metrics}


def _write_batch(path: Path, objective: Objective, microbatches: Sequence[Any], losses: Sequence[float]) -> None:
    """Writes the microbatches of all processes with their losses, in readable form."""
    pairs = zip(losses, microbatches, strict=False)  # without the repeated microbatches of an idle process
    # As text, because JSON has no NaN and no infinity.
    entries = [{"loss": str(loss), "rows": objective.shown(microbatch)} for loss, microbatch in pairs]
    gathered_entries = [entry for rank_entries in distributed.all_gather(entries) for entry in rank_entries]
    atomic_write_json(path, {"microbatches": gathered_entries})
