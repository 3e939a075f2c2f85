"""Several processes as one run: torchrun (or accelerate launch) starts them, each does its share, the first one writes.

Outside of `joined` there is one process, whatever the environment says: a library that is used inside somebody else's
distributed job does not divide its work by itself.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from dartune.errors import InputError

T = TypeVar("T")
P = ParamSpec("P")
SPREAD_BY_OTHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
"""What accelerate's launcher sets where it is told to spread models itself."""
PATIENCE = timedelta(hours=2)
"""Longest wait for another process before the run is given up: what one process does alone is short."""

_count, _rank = 1, 0


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the processes that were started along with this one, if any, for as long; as often as wanted.

    Uses accelerate: gloo between CPUs, nccl between GPUs, each process on the GPU of its local rank.

    Raises:
        InputError: the launcher is set up to spread models in a way of its own.
    """
    global _count, _rank
    for name, launcher in SPREAD_BY_OTHERS.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise InputError(
                f"accelerate is set up for {launcher} ({name}), but how models are spread is the config's to say: "
                "launch with torchrun, or a plain multi-GPU setting of accelerate, and set execution.sharding: ddp or "
                "fsdp2"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _count > 1:
        yield
        return
    import torch
    from accelerate import PartialState

    atexit.unregister(_part)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    _count, _rank = state.num_processes, state.process_index
    try:
        yield
        wait()
        # Not before the end: a second group would find what the first has left at the place where processes meet.
        atexit.register(_part)
    finally:
        _count, _rank = 1, 0


def _part() -> None:
    from accelerate import PartialState

    PartialState().destroy_process_group()


def count() -> int:
    return _count


def rank() -> int:
    return _rank


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return _rank == 0


def first_only(function: Callable[P, Any]) -> Callable[P, Any]:
    """Decorates what changes files or speaks: the other processes pass it over (and get None)."""

    @functools.wraps(function)
    def once(*args: P.args, **kwargs: P.kwargs) -> Any:
        return function(*args, **kwargs) if is_first() else None

    return once


def wait() -> None:
    """Until all processes have come this far."""
    if _count > 1:
        import torch.distributed

        torch.distributed.barrier()


def share(items: Sequence[T]) -> list[T]:
    """This process's part of `items`: every so manieth, so that sorted items are dealt out evenly."""
    return list(items[_rank::_count])


def agreed(value: T) -> T:
    """The first process's value, on all; plain data only."""
    if _count == 1:
        return value
    import torch.distributed

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def everyones(value: T) -> list[T]:
    """Every process's value, in order of rank, on all; plain data only."""
    if _count == 1:
        return [value]
    import torch.distributed

    boxes: list[Any] = [None] * _count
    torch.distributed.all_gather_object(boxes, value)
    return boxes


def totals(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes, by name."""
    return {name: sum(one[name] for one in everyones(dict(values))) for name in values} if _count > 1 else dict(values)
