"""Where the time of a run goes: methods wrapped with timers that wait for the GPU, each second counted once."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Seconds and calls by path, as in `mapper-s0/reward/score`; those of a part's own parts are not counted in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._path: list[str] = []
        self._since = time.perf_counter()

    def _charge(self) -> None:
        """Book the time since the last change of part."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        where = "/".join(self._path)
        self.seconds[where] = self.seconds.get(where, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._charge()
        self._path.append(name)
        where = "/".join(self._path)
        self.calls[where] = self.calls.get(where, 0) + 1
        try:
            yield
        finally:
            self._charge()
            self._path.pop()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Time every call of `owner.method`, a class's or a module's."""
        plain = getattr(owner, method)

        @functools.wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return plain(*args, **kwargs)

        setattr(owner, method, timed)

    def under(self, stage: str) -> dict[str, dict[str, float]]:
        """A stage's parts: path below it -> seconds and calls; what is in no part is `rest`."""
        return {
            path.removeprefix(stage).removeprefix("/") or "rest": {
                "seconds": round(seconds, 3),
                "calls": self.calls.get(path, 0),
            }
            for path, seconds in sorted(self.seconds.items())
            if path == stage or path.startswith(f"{stage}/")
        }
