"""Being asked to stop, by SIGTERM: at once, or, in a training step, when its checkpoint is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = _in_step = False


class Stopped(KeyboardInterrupt):
    """SIGTERM came; like Ctrl-C it is nobody's error, and the same command continues."""


@contextmanager
def heeded() -> Iterator[None]:
    """SIGTERM raises `Stopped` for as long; only a main thread can heed it."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _asked = False


def _heed(*_: Any) -> None:
    global _asked
    if _asked or not _in_step:  # who asks twice does not want to wait
        raise Stopped
    _asked = True


@contextmanager
def after_this() -> Iterator[None]:
    """What is inside is finished first: it looks at `asked` when it is done, and raises `Stopped` itself."""
    global _in_step
    before, _in_step = _in_step, True
    try:
        yield
    finally:
        _in_step = before


def asked() -> bool:
    """Whether SIGTERM came while something was to be finished first."""
    return _asked
