"""The progress of long work at one moment: as a line of text, and as a file that `dartune status` reads."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.run.files import DRAFT, read_json
from dartune.run.number_format import estimated_duration, significant

FILE = Path("logs") / "progress.json"
"""The file's place in a run folder."""
SHORTEST_ITEM = 0.05
"""Seconds of an item below which they are not shown: the items are tokens then, or too many to count."""


@dataclass(frozen=True)
class ProgressState:
    """Progress at one moment.

    Args:
        label: what is being done, such as the name of a stage.
        done, total: finished items and all items; no total: how much there is to do is not known.
        elapsed: seconds since the work started, or was continued.
        each: mean seconds of an item; None before the first is finished.
        seconds_left: estimate; None if nothing can be said yet, or if the work is finished.
        tokens_per_second: of the kind of work that took most of the time so far; None before the first tokens.
        tokens: that kind: `sampled`, `scored` or `trained`.
        figures: intermediate results by name.
        activity: what a model is doing now, such as `sampling 120 completions: 45%`; empty between two calls.
        updated: Unix time.
    """

    label: str
    done: int
    total: int | None
    elapsed: float
    each: float | None
    seconds_left: float | None
    tokens_per_second: float | None
    tokens: str
    figures: dict[str, Any]
    activity: str
    updated: float

    def text(self) -> str:
        """The state without the label, as a part of a line."""
        if self.total is None:
            parts = [f"{estimated_duration(self.elapsed)} so far"]
        else:
            parts = [f"{self.done}/{self.total}" + (f" ({100 * self.done // self.total}%)" if self.total else "")]
        if self.each is not None and self.each >= SHORTEST_ITEM:
            parts.append(f"{estimated_duration(self.each)} each")
        if self.seconds_left is not None:
            parts.append(f"{estimated_duration(self.seconds_left)} left")
        if rate := self.rate():
            parts.append(rate)
        parts += self.formatted_figures()
        return ", ".join(parts) + (f"; {self.activity}" if self.activity else "")

    def rate(self) -> str:
        """The throughput as text; empty before the first tokens."""
        rate = self.tokens_per_second
        return "" if rate is None else f"{significant(float(f'{rate:.3g}'))} tokens/s {self.tokens}"

    def formatted_figures(self) -> list[str]:
        """Name and value of every figure."""
        return [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.figures.items()
        ]


@distributed.main_only
def write_state(path: Path, state: ProgressState) -> None:
    """Replace the file. Errors are ignored: work must not end because its progress cannot be shown.

    There is no fsync, unlike in `run/files.py`: after a power cut the progress of the work is of no use.
    """
    draft = path.with_name(f".{path.name}{DRAFT}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(asdict(state), default=str), encoding="utf-8")
        os.replace(draft, path)


@distributed.main_only
def remove_state(path: Path) -> None:
    """Remove the file, if there is one."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def read_state(path: Path) -> ProgressState | None:
    """Read the file; None if there is none, or if another version wrote it."""
    values = read_json(path)
    if values is None or set(values) != {field.name for field in fields(ProgressState)}:
        return None
    return ProgressState(**values)
