"""Progress of a long loop: a live bar with ETA on a terminal, plain lines in the log and everywhere else."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

PLAIN_EVERY_SECONDS = 5.0
LIVE_EVERY_SECONDS = 0.2


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Progress:
    """Counts to `total`; use as a context manager. The first and the last line are always written."""

    def __init__(self, total: int, label: str, log_path: Path | None = None, stream: Any = None):
        self.total, self.label, self.log_path = total, label, log_path
        self.stream = stream or sys.stderr
        self.live = bool(getattr(self.stream, "isatty", lambda: False)())
        self.done = 0
        self.metrics: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        self.begun = time.monotonic()
        self.first: tuple[float, int] | None = None
        self._live_at = self._plain_at = -PLAIN_EVERY_SECONDS
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            print(file=self.stream, flush=True)
        elif self.done < self.total:
            self._plain(time.monotonic())

    def update(self, n: int = 1, **metrics: Any) -> None:
        self.advance_to(self.done + n, **metrics)

    def advance_to(self, done: int, **metrics: Any) -> None:
        """Say that `done` of the total is done; metrics are shown beside it."""
        self.done, self.metrics = done, metrics
        now = time.monotonic()
        if self.first is None:
            self.first = (now, done)
        if self.live and (now - self._live_at >= LIVE_EVERY_SECONDS or done >= self.total):
            self._live_at = now
            print(f"\r\x1b[2K{self.line(now)}", end="", file=self.stream, flush=True)
        if now - self._plain_at >= PLAIN_EVERY_SECONDS or done >= self.total:
            self._plain(now)

    def _plain(self, now: float) -> None:
        self._plain_at = now
        line = self.line(now)
        if not self.live:
            print(line, file=self.stream, flush=True)
        if self.log_path:
            with self.log_path.open("a", encoding="utf-8") as log:
                log.write(line + "\n")

    def line(self, now: float) -> str:
        """`mapper: 12/40 (30%) 0:24, about 0:56 left, reward 0.41`."""
        share = self.done / self.total if self.total else 1.0
        text = f"{self.label}: {self.done}/{self.total} ({share:.0%}) {clock(now - self.begun)}"
        if self.first and self.done > self.first[1] and self.done < self.total:
            # The rate is taken from the first report on: what a resumed loop finds done cost no time.
            rate = (now - self.first[0]) / (self.done - self.first[1])
            text += f", about {clock(rate * (self.total - self.done))} left"
        shown = [f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.metrics.items()]
        return ", ".join([text, *shown])
