"""Gradient synchronisation and optimizer steps in one process, with DDP (through accelerate) or with FSDP2.

The loop calls `backward` for each microbatch and then `step`. The optimizer state has the same names and unsharded
shapes in every mode, so a checkpoint of one mode can be loaded in another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dartune import distributed
from dartune.engines.logprobs import sequence_logprobs
from dartune.models.device import device_of
from dartune.models.fsdp import full_tensor, shard, shard_like


class GradientSync:
    """The gradient synchronisation and the optimizers of one training run.

    `model` is the module to compute losses with: the trained model, or its DDP wrapper. The weights are shared.
    """

    def __init__(self, model: nn.Module, build: Callable[[nn.Module], Any], sharding: str, max_norm: float):
        """Wraps or shards the model and builds its optimizers.

        Args:
            model: the model to train.
            build: builds the optimizers of a model.
            sharding: `ddp` or `fsdp2`; has no effect in a single process.
            max_norm: largest norm of the gradient; a larger gradient is scaled down.
        """
        self.outside_ddp: list[nn.Parameter] = []
        if sharding == "fsdp2" and distributed.world_size() > 1:
            self.model = shard(model)
        elif distributed.world_size() > 1:
            self.outside_ddp = _parameters_without_gradient(model)
            self.model = _wrap_ddp(model, self.outside_ddp)
        else:
            self.model = model
        # After sharding, which replaces the parameters.
        self.optimizers: Sequence[torch.optim.Optimizer] = build(model)
        self.max_norm = max_norm

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Returns the context for the forward and `backward` of a microbatch.

        After the `last` microbatch of a step, the gradient is the sum over all microbatches of all processes.
        """
        # DDP decides in the forward whether the following backward synchronises gradients, so the forward must be in
        # the context too. FSDP2 has no `no_sync` and reduces gradients after every microbatch: unsharded gradients
        # that are kept until the last microbatch would take the memory that sharding saves.
        no_sync = None if last else getattr(self.model, "no_sync", None)
        return no_sync() if no_sync else nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a microbatch, within `accumulating`."""
        # DDP and FSDP2 average gradients over processes, but the step's loss is a sum.
        (loss * distributed.world_size()).backward()

    def step(self, learning_rate: float) -> float:
        """Clips the gradient, takes a step, clears the gradient, and returns its norm before clipping.

        A gradient that is not finite changes no weights.
        """
        self._reduce_outside_ddp()
        norm = float(full_tensor(nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _reduce_outside_ddp(self) -> None:
        """Averages the gradients of the parameters outside DDP over the processes, where any process has one."""
        if not self.outside_ddp:
            return
        has_gradient = distributed.all_gather([weight.grad is not None for weight in self.outside_ddp])
        for weight, needed in zip(self.outside_ddp, map(any, zip(*has_gradient, strict=True)), strict=True):
            if needed:
                # All processes must take part in the reduction, those without a gradient with zeros.
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                torch.distributed.all_reduce(weight.grad)
                weight.grad /= distributed.world_size()

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the optimizers' state as (`<optimizer>.<weight>.<name>`, tensor), sharded where the weight is."""
        for number, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    yield f"{number}.{index}.{key}", torch.as_tensor(value)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Loads the optimizers' state, with the names of `state` and unsharded tensors."""
        states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in self.optimizers]
        weights = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in self.optimizers]
        for name, tensor in state.items():
            number, index, key = name.split(".", 2)
            # A tensor of the weight's shape (a moment) is sharded like the weight; a step count is not.
            weight = weights[int(number)][int(index)]
            value = shard_like(tensor, weight) if tensor.shape == weight.shape else tensor
            states[int(number)].setdefault(int(index), {})[key] = value
        for optimizer, optimizer_state in zip(self.optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})


def _wrap_ddp(model: nn.Module, ignored: Sequence[nn.Parameter]) -> nn.Module:
    """Returns the model wrapped in DDP, on its present device and in its present dtypes.

    The settings of accelerate's launcher (mixed precision, dynamo, device placement) are overridden, because the config
    decides these.

    Args:
        model: the model.
        ignored: parameters whose gradients DDP does not synchronise.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    ignored_ids = {id(weight) for weight in ignored}
    names = [name for name, weight in model.named_parameters() if id(weight) in ignored_ids]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    # Buffers are the same in every process. Broadcasting them would also require the same number of forwards in every
    # process.
    ddp_settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    accelerator = Accelerator(
        cpu=device_of(model).type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        device_placement=False,
        kwargs_handlers=[ddp_settings],
    )
    return accelerator.prepare(model)


def _parameters_without_gradient(model: nn.Module) -> list[nn.Parameter]:
    """Returns the trainable parameters that get no gradient from text, such as those of a vision tower.

    DDP would wait for their gradients in every backward.
    """
    training = model.training
    model.train()
    sequence_logprobs(model, [((0,), (0,))])[0].sum().backward()
    parameters = [p for p in model.parameters() if p.requires_grad and p.grad is None]
    model.train(training)
    model.zero_grad()
    return parameters
