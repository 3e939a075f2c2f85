"""Counts what engines spend: generated and scored tokens, and FLOPs. The only place that reads their counters."""

from __future__ import annotations

from typing import Any

from dartune.engines.base import COUNTERS, Engine
from dartune.run.cost import Cost


class Meter:
    """Counts what the given engines spend from now on; an engine that is given twice counts once."""

    def __init__(self, *engines: Engine):
        self.engines = list({id(engine): engine for engine in engines}.values())
        self._start = self._counters()

    def cost(self) -> Cost:
        """What was spent since the meter was made."""
        return self._counters() - self._start

    def _counters(self) -> Cost:
        return Cost(**{name: sum(getattr(engine, name) for engine in self.engines) for name in COUNTERS})


def counters(cost: Cost) -> dict[str, Any]:
    """The engines' part of a cost by name, as rows on disk record it (`spent`)."""
    return {name: getattr(cost, name) for name in COUNTERS}
