"""How the gradients of all processes become a step of the optimiser: by accelerate (DDP) or FSDP2.

The loop hands over one microbatch's loss after the other and then asks for the step; checkpoints hold the same tensors,
by the same names, whichever of the two wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dartune import processes
from dartune.models.sharding import full, shard, spread_like
from dartune.models.shared_prefix import device_of, sequence_logprobs


class Updates:
    """One process, DDP (by accelerate) or FSDP2: one training run's way of stepping.

    `model` is what losses are computed with; its weights are the trained model's.
    """

    def __init__(self, model: nn.Module, build: Callable[[nn.Module], Any], sharding: str, max_norm: float):
        """`build` makes the optimisers of a model; `sharding` is `ddp` or `fsdp2`, without effect in one process."""
        self.apart: list[nn.Parameter] = []
        if sharding == "fsdp2" and processes.count() > 1:
            self.model = shard(model)
        elif processes.count() > 1:
            self.apart = _unreached(model)
            self.model = _copied(model, self.apart)
        else:
            self.model = model
        self.optimizers: Sequence[torch.optim.Optimizer] = build(model)
        self.max_norm = max_norm

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """What a microbatch's forward and `backward` happen in; with the step's `last` one its gradient is complete.

        That is the sum over all microbatches of all processes.
        """
        # DDP decides in the forward whether the backward that follows sends gradients round. FSDP2 always sends them:
        # kept whole until the last microbatch, they would take the memory that spreading them saves.
        later = None if last else getattr(self.model, "no_sync", None)
        return later() if later else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a microbatch's gradient, within `accumulating`."""
        # Gradients are averaged over the processes, and are to be summed.
        (loss * processes.count()).backward()

    def step(self, learning_rate: float) -> float:
        """Scale the gradient down to the largest norm, step unless it is not finite, forget it; returns its norm."""
        self._sum_apart()
        norm = float(full(nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _sum_apart(self) -> None:
        """Sum by hand the gradients that DDP leaves alone, where there are any."""
        if not self.apart:
            return
        reached = processes.everyones([weight.grad is not None for weight in self.apart])
        for weight, anywhere in zip(self.apart, map(any, zip(*reached, strict=True)), strict=True):
            if anywhere:
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                torch.distributed.all_reduce(weight.grad)
                weight.grad /= processes.count()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Everything the optimisers know, by `<optimiser>.<weight>.<name>`, spread or not; every process must ask."""
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    yield f"{number}.{index}.{key}", torch.as_tensor(value)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `state` said, whole."""
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self.optimizers]
        trained = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self.optimizers]
        for name, tensor in state.items():
            number, index, key = name.split(".", 2)
            # What is as large as its weight is spread as its weight is; step counts are not.
            owner = trained[int(number)][int(index)]
            kept = spread_like(tensor, owner) if tensor.shape == owner.shape else tensor
            states[int(number)].setdefault(int(index), {})[key] = kept
        for optimizer, found in zip(self.optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": found, "param_groups": groups})


def _copied(model: nn.Module, apart: Sequence[nn.Parameter]) -> nn.Module:
    """The model as DDP trains it, where it is and in the dtypes it has, whatever accelerate's launcher was told.

    Args:
        apart: weights that DDP is to leave alone.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    left = {id(weight) for weight in apart}
    names = [name for name, weight in model.named_parameters() if id(weight) in left]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    # Buffers are the same everywhere, and sending them round would ask for as many forwards in every process.
    plain = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=device_of(model).type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        device_placement=False,
        kwargs_handlers=[plain],
    )
    return accelerator.prepare(model)


def _unreached(model: nn.Module) -> list[nn.Parameter]:
    """Weights to be trained that text does not reach (a vision tower's): DDP would wait for their gradients."""
    training = model.training
    model.train()
    sequence_logprobs(model, [((0,), (0,))])[0].sum().backward()
    found = [p for p in model.parameters() if p.requires_grad and p.grad is None]
    model.train(training)
    model.zero_grad()
    return found
