"""How far a long step is: a live bar on a terminal, plain lines elsewhere, the same lines in the log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dartune import processes
from dartune.files import append_log

EVERY_SECONDS = 5.0


class Progress:
    """Progress of `total` items of work, with the time left and the latest metrics.

    Plain lines look like `mapper, seed 0: 12/40 (30%), 1.3 s each, 36 s left, reward 0.41`: the first
    and the last update always, those between at most every five seconds.
    """

    def __init__(self, total: int, label: str, log_path: Path | None = None) -> None:
        """`log_path` is a log file to append plain lines to, whatever stderr is."""
        self.total, self.label, self.log_path = total, label, log_path
        self.done = 0
        self._base = 0  # work found done at the start says nothing about the speed
        self._start = time.monotonic()
        self._said = float("-inf")
        self._unsaid = False
        self._metrics: dict[str, Any] = {}
        visible = sys.stderr.isatty() and processes.is_first()
        self._bar, self._task = self._open_bar() if visible else (None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1, **metrics: Any) -> None:
        """`n` more items are done."""
        self.done += n
        self._metrics |= metrics
        self._show()

    def advance_to(self, done: int, **metrics: Any) -> None:
        """`done` items are done in all; a first call beyond 1 means the items before it were found done."""
        if self.done == 0:
            self._base = done - 1
        self.update(done - self.done, **metrics)

    def close(self) -> None:
        """Take the bar away and say the last line, if it was not."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._unsaid:
            self._say()

    def line(self) -> str:
        """The current state as one line."""
        parts = [f"{self.label}: {self.done}/{self.total}"]
        if self.total:
            parts[0] += f" ({100 * self.done // self.total}%)"
        counted = self.done - self._base
        if counted > 0:
            each = (time.monotonic() - self._start) / counted
            parts.append(f"{_duration(each)} each")
            if self.done < self.total:
                parts.append(f"{_duration(each * (self.total - self.done))} left")
        return ", ".join(parts + self._shown_metrics())

    def _shown_metrics(self) -> list[str]:
        return [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._metrics.items()
        ]

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, metrics=", ".join(self._shown_metrics()))
            self._bar.refresh()
        self._unsaid = True
        if self.done >= self.total or time.monotonic() - self._said >= EVERY_SECONDS:
            self._say()

    @processes.first_only
    def _say(self) -> None:
        line = self.line()
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        if self.log_path is not None:
            append_log(self.log_path, line)
        self._said, self._unsaid = time.monotonic(), False

    def _open_bar(self) -> tuple[Any, Any]:
        from rich import progress
        from rich.console import Console

        bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[metrics]}", markup=False),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        bar.start()
        return bar, bar.add_task(self.label, total=self.total, metrics="")


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def follow(progress: Progress, *shown: str) -> Callable[[int, dict[str, Any]], None]:
    """A step callback that moves a progress bar and shows some of the step's metrics."""
    return lambda step, row: progress.advance_to(step, **{name: row[name] for name in shown})
