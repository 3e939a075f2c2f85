"""Collective operations for runs of several processes, started by torchrun or `accelerate launch`.

Each rank processes its share of the work, and rank 0 writes files and logs. Outside `process_group` the world size is
1, regardless of the environment: when dartune is used as a library inside another distributed job, it must not divide
its work.
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
SHARDING_LAUNCHERS = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "FSDP"}
"""Environment variables of accelerate's launcher that mean that accelerate itself shards the models."""
TIMEOUT = timedelta(hours=2)
"""Timeout of collective operations. Rank 0 works alone for short periods only; a longer wait means a lost process."""

_count, _rank = 1, 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of the launcher inside the block; do nothing if there is one process.

    May be entered several times. Uses accelerate: gloo on CPUs, NCCL on GPUs, each process on the GPU of its local
    rank.

    Raises:
        InputError: the launcher is configured to shard models itself.
    """
    global _count, _rank
    for name, launcher in SHARDING_LAUNCHERS.items():
        if os.environ.get(name, "").lower() in ("1", "true"):
            raise InputError(
                f"accelerate is configured for {launcher} ({name}), but dartune shards models itself: launch with "
                "torchrun, or with accelerate's plain multi-GPU setting, and set execution.sharding: ddp or fsdp2"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _count > 1:
        yield
        return
    import torch
    from accelerate import PartialState

    atexit.unregister(_destroy_process_group)
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    _count, _rank = state.num_processes, state.process_index
    try:
        yield
        barrier()
        # Destroyed at exit, not here: a second group would read stale keys of the first from the rendezvous store.
        atexit.register(_destroy_process_group)
    finally:
        _count, _rank = 1, 0


def _destroy_process_group() -> None:
    from accelerate import PartialState

    PartialState().destroy_process_group()


def world_size() -> int:
    """Return the number of processes; 1 outside `process_group`."""
    return _count


def rank() -> int:
    """Return the index of this process; 0 outside `process_group`."""
    return _rank


def is_main() -> bool:
    """Return whether this process is rank 0, which writes files and logs."""
    return _rank == 0


def main_only(function: Callable[P, Any]) -> Callable[P, Any]:
    """Decorate a function that writes files or logs: it runs on rank 0 only and returns None on the other ranks."""

    @functools.wraps(function)
    def on_main(*args: P.args, **kwargs: P.kwargs) -> Any:
        return function(*args, **kwargs) if is_main() else None

    return on_main


def barrier() -> None:
    """Wait until all processes have called this function."""
    if _count > 1:
        import torch.distributed

        torch.distributed.barrier()


def shard(items: Sequence[T]) -> list[T]:
    """Return `items[rank::world_size]`. With a stride, every rank gets long and short items of a sorted sequence."""
    return list(items[_rank::_count])


def broadcast(value: T) -> T:
    """Return the value of rank 0 on all ranks; the value must be picklable."""
    if _count == 1:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Return the values of all ranks, in order of rank, on all ranks; the values must be picklable."""
    if _count == 1:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * _count
    torch.distributed.all_gather_object(values, value)
    return values


def all_reduce(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums over all ranks, by name."""
    if _count == 1:
        return dict(values)
    gathered = all_gather(dict(values))
    return {name: sum(part[name] for part in gathered) for name in values}
