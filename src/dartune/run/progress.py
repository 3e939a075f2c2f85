"""Progress of long work: a live bar on a terminal, plain lines elsewhere, and the same lines in the log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from dartune import distributed
from dartune.run.files import append_log
from dartune.run.number_format import estimated_duration

EVERY_SECONDS = 5.0
"""Minimum time between two plain lines; more would fill the log of a long run."""


class Progress:
    """Progress of `total` items, with the remaining time and the latest metrics.

    Plain lines look like `mapper, seed 0: 12/40 (30%), 1.3 s each, 36 s left, reward 0.41`. The first and the last
    update are always printed, those in between at most every five seconds.
    """

    def __init__(self, total: int, label: str, log_path: Path | None = None) -> None:
        """Start the clock, and open a bar if stderr is a terminal.

        Args:
            total: number of items.
            label: text in front of every line.
            log_path: log file that receives the plain lines, also when a bar is shown.
        """
        self.total, self.label, self.log_path = total, label, log_path
        self.done = 0
        self._resumed = 0  # items finished by an earlier attempt; they do not count for the speed
        self._start = time.monotonic()
        self._printed_at = float("-inf")
        self._pending = False
        self._metrics: dict[str, Any] = {}
        visible = sys.stderr.isatty() and distributed.is_main()
        self._bar, self._task = self._open_bar() if visible else (None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: int = 1, **metrics: Any) -> None:
        """Report that `n` more items are done, with the latest values of `metrics`."""
        self.done += n
        self._metrics |= metrics
        self._show()

    def advance_to(self, done: int, **metrics: Any) -> None:
        """Report that `done` items are done in total.

        If the first call reports more than 1, the items before it count as finished by an earlier attempt.
        """
        if self.done == 0:
            self._resumed = done - 1
        self.update(done - self.done, **metrics)

    def close(self) -> None:
        """Remove the bar, and print the last line if it was not printed yet."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._pending:
            self._print_line()

    def line(self) -> str:
        """Return the current state as one line."""
        parts = [f"{self.label}: {self.done}/{self.total}"]
        if self.total:
            parts[0] += f" ({100 * self.done // self.total}%)"
        timed_items = self.done - self._resumed
        if timed_items > 0:
            each = (time.monotonic() - self._start) / timed_items
            parts.append(f"{estimated_duration(each)} each")
            if self.done < self.total:
                parts.append(f"{estimated_duration(each * (self.total - self.done))} left")
        return ", ".join(parts + self._formatted_metrics())

    def _formatted_metrics(self) -> list[str]:
        return [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._metrics.items()
        ]

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, metrics=", ".join(self._formatted_metrics()))
            self._bar.refresh()
        self._pending = True
        if self.done >= self.total or time.monotonic() - self._printed_at >= EVERY_SECONDS:
            self._print_line()

    @distributed.main_only
    def _print_line(self) -> None:
        line = self.line()
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        if self.log_path is not None:
            append_log(self.log_path, line)
        self._printed_at, self._pending = time.monotonic(), False

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


def follow(progress: Progress, *shown: str) -> Callable[[int, dict[str, Any]], None]:
    """Return a step callback that advances `progress` and shows the metrics named in `shown`."""
    return lambda step, row: progress.advance_to(step, **{name: row[name] for name in shown})
