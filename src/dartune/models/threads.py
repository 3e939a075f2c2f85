"""The number of CPU threads that a model computes with.

The threads of a matrix product wait for each other. For a model of a million weights that takes longer than a second
thread saves, above all beside another job, so its number of threads is measured.
"""

from __future__ import annotations

import os
import time

import loky
import torch
from torch import nn

from dartune.models.device import device_of
from dartune.models.language_model import LanguageModel

# Larger models gain from every thread, and measuring them takes seconds.
SMALL_WEIGHTS = 20_000_000
# A batch of a training step of the lab; the fastest of some forwards is taken.
ROWS, TOKENS, REPEATS = 8, 64, 5
# Fewer threads are taken if they are nearly as fast: they disturb other jobs less.
NEARLY_AS_FAST = 1.05
PROCESS_THREADS = torch.get_num_threads()
"""Threads of this process before `use_threads`, which changes them until the process ends."""


def available_threads() -> int:
    """Returns the most threads this process may use, from its CPUs and a container's quota; OMP_NUM_THREADS if set."""
    return PROCESS_THREADS if "OMP_NUM_THREADS" in os.environ else min(PROCESS_THREADS, loky.cpu_count())


def fastest_threads(model: LanguageModel) -> int:
    """Returns the number of CPU threads that is fastest for a model; all available ones for a large model.

    OMP_NUM_THREADS is followed, not measured.
    """
    available = available_threads()
    large = sum(p.numel() for p in model.parameters()) > SMALL_WEIGHTS
    if available == 1 or large or "OMP_NUM_THREADS" in os.environ or device_of(model).type != "cpu":
        return available
    before = torch.get_num_threads()
    try:
        seconds = {count: _forward_seconds(model, count) for count in sorted({*_powers_of_two(available), available})}
    finally:
        torch.set_num_threads(before)
    return min(count for count in seconds if seconds[count] <= NEARLY_AS_FAST * min(seconds.values()))


def use_threads(model: LanguageModel, before: int | None) -> int:
    """Computes with a number of threads from now on, and returns it.

    Args:
        model: what will be computed.
        before: the number that the same work was started with; None if it starts now.
    """
    if before is None or before > available_threads() or "OMP_NUM_THREADS" in os.environ:
        before = fastest_threads(model)
    torch.set_num_threads(before)
    return before


@torch.no_grad()
def _forward_seconds(model: nn.Module, threads: int) -> float:
    """Returns the seconds of the fastest of some forwards."""
    torch.set_num_threads(threads)
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long, device=device_of(model))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        model(input_ids=ids, use_cache=False)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _powers_of_two(limit: int) -> list[int]:
    return [2**i for i in range(limit.bit_length())]
