"""SIGTERM handling: stop immediately, or, during a training step, after its checkpoint is written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_asked = _in_step = False


class Stopped(KeyboardInterrupt):
    """SIGTERM arrived. As with Ctrl-C, this is not an error, and the same command continues the run."""


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `Stopped` inside the block.

    Only the main thread can set handlers; elsewhere this does nothing.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
        _asked = False


def _handle(*_: Any) -> None:
    global _asked
    if _asked or not _in_step:  # a second SIGTERM stops even within a step
        raise Stopped
    _asked = True


@contextmanager
def delay_sigterm() -> Iterator[None]:
    """Delay SIGTERM until the end of the block. The caller then checks `sigterm_received` and raises `Stopped`."""
    global _in_step
    previous, _in_step = _in_step, True
    try:
        yield
    finally:
        _in_step = previous


def sigterm_received() -> bool:
    """Return whether SIGTERM arrived within an `delay_sigterm` block."""
    return _asked
