"""Cost of a stage: tokens, FLOPs, wall-clock seconds and peak memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """What a stage spent, over all its attempts.

    `flops` is an estimate (`models/flops.py`), `seconds` is wall-clock time, `peak_memory_mb` the highest resident
    memory in MiB.
    """

    generated_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    flops: float = 0.0

    def __sub__(self, earlier: Cost) -> Cost:
        """What was spent since `earlier`; the peak memory is the current one."""
        return Cost(
            self.generated_tokens - earlier.generated_tokens,
            self.scored_tokens - earlier.scored_tokens,
            self.trained_tokens - earlier.trained_tokens,
            self.seconds - earlier.seconds,
            self.peak_memory_mb,
            self.flops - earlier.flops,
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.generated_tokens + other.generated_tokens,
            self.scored_tokens + other.scored_tokens,
            self.trained_tokens + other.trained_tokens,
            self.seconds + other.seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
            self.flops + other.flops,
        )
