"""Measuring: contenders by turns, their peaks of memory, and what the machine does at best."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
MATRIX = {"cpu": 1024, "cuda": 8192}  # rows of the square matrices whose product gives the machine's rate
COPIED = 2**30  # bytes of the copy that gives a GPU's bandwidth
FEWEST_ROUNDS = 2

Work = Callable[[], Mapping[str, Any] | None]
"""One round of a contender; what it returns (tokens, say) is kept with the round."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One round: how long it took, processor time of this process, by how much memory grew at most, its facts.

    Memory is in bytes, None where the system does not tell. A round on a CPU that took longer than its processor time
    had to share the processor with something else.
    """

    seconds: float
    processor: float
    peak: int | None
    facts: Mapping[str, Any]


def by_turns(contenders: Mapping[str, Work], device: str, rounds: int, budget: float) -> dict[str, list[Turn]]:
    """A round each to warm up, then A, B, A, B, ...: `rounds` of them, fewer where `budget` seconds are over."""
    for work in contenders.values():
        one_turn(work, device)
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for done in range(rounds):
        # The next round must fit, too.
        if done >= min(FEWEST_ROUNDS, rounds) and (time.perf_counter() - start) * (1 + 1 / done) > budget:
            break
        for name, work in contenders.items():
            turns[name].append(one_turn(work, device))
    return turns


def one_turn(work: Work, device: str) -> Turn:
    gc.collect()
    before = _forget_peak(device)
    start, started = time.perf_counter(), time.process_time()
    facts = work()
    _wait(device)
    seconds, processor = time.perf_counter() - start, time.process_time() - started
    return Turn(seconds, processor, None if before is None else max(0, _peak(device) - before), facts or {})


def compared(turns: Mapping[str, Sequence[Turn]], ours: str = "dartune") -> dict[str, Any]:
    """Seconds and peaks of every contender, and its time over ours in each round: median, least and most."""
    found: dict[str, Any] = {"rounds": len(turns[ours])}
    for name, rounds in turns.items():
        peaks = [turn.peak for turn in rounds if turn.peak is not None]
        found[name] = {
            "seconds": [turn.seconds for turn in rounds],
            "processor_seconds": [turn.processor for turn in rounds],
            "peak_bytes": max(peaks) if peaks else None,
            **{key: [turn.facts[key] for turn in rounds] for key in rounds[0].facts},
        }
    found["ratios"] = {
        name: spread([a.seconds / b.seconds for a, b in zip(rounds, turns[ours], strict=True)])
        for name, rounds in turns.items()
        if name != ours
    }
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


class ByStep:
    """A training in a thread of its own, which stands still between its steps: a call lets one step happen.

    Everything that a training does between the ends of two steps is in a call; the first has its set-up, too.

    Args:
        training: called with `pause`, which it calls after every step with what is worth keeping of it.
    """

    def __init__(self, training: Callable[[Callable[[Mapping[str, Any]], None]], Any]):
        self._go, self._came = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._failure, self._facts = False, None, {}
        self._thread = threading.Thread(target=self._run, args=(training,), daemon=True)
        self._thread.start()

    def __call__(self) -> Mapping[str, Any]:
        self._go.release()
        self._came.acquire()
        if self._failure:
            raise self._failure
        return self._facts

    def close(self) -> None:
        self._over = True
        self._go.release()
        self._thread.join()

    def _run(self, training: Callable) -> None:
        self._go.acquire()
        try:
            if not self._over:
                training(self._pause)
        except _Enough:
            pass
        except Exception as failure:
            self._failure = failure
        self._came.release()

    def _pause(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts
        self._came.release()
        self._go.acquire()
        if self._over:
            raise _Enough


class _Enough(BaseException):
    """Ends a training; not an `Exception`, which a training might handle."""


def machine_rates(device: str) -> dict[str, float]:
    """What the machine does at best right now: operations a second, and on a GPU bytes a second."""
    return {"flops": matrix_rate(device)} | ({"bandwidth": bandwidth()} if device == "cuda" else {})


def free(device: str) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def matrix_rate(device: str, seconds: float = 0.5) -> float:
    """Floating point operations a second of a square matrix product, float32 on a CPU, bfloat16 on a GPU: the best."""
    n, kind = MATRIX[device], torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    return 2 * n**3 / _fastest(lambda: left @ right, device, seconds)


def bandwidth(seconds: float = 0.3) -> float:
    """Bytes a second that a GPU reads and writes in a copy: the best."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    goal = torch.empty_like(source)
    return 2 * COPIED / _fastest(lambda: goal.copy_(source), "cuda", seconds)


def _fastest(work: Callable[[], Any], device: str, seconds: float) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def machine(device: str) -> dict[str, Any]:
    """What measured: device, threads, versions."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _forget_peak(device: str) -> int | None:
    """Start a new peak; returns the memory in use, None where this system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or what the last contender freed would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory, see proc(5)
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    for line in Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise KeyError(key)
