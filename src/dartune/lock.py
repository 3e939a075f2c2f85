"""One process at a time holds a run folder; whoever comes second learns who does."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dartune.errors import InputError, MachineError
from dartune.files import atomic_write_json, read_json, writing

LOCK, HOLDER = "lock", "holder.json"
_held: set[Path] = set()
"""Folders this process holds: a record lock does not keep a process from taking it twice."""


def take(folder: Path) -> int:
    """Lock `folder`, creating it if need be; returns the descriptor to give to `release`.

    The lock ends with the process, however it ends.

    Raises:
        InputError: the folder exists and is not a run folder.
        MachineError: it is held, or cannot be written or locked.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the run folder {folder} is a file; choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise InputError(f"{folder} holds other files and is no run folder; choose another --output")
    place = folder.resolve()
    taken = MachineError(f"{folder} is in use by {holder(folder)}; wait for it, or choose another --output")
    if place in _held:  # and opening the file a second time would end our own record lock on closing it
        raise taken
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # A record lock: unlike flock's it is not inherited by forked workers that may outlive us.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise taken from None
        raise MachineError(f"cannot lock {folder}: {error}; put the run on a local disk") from error
    _held.add(place)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
    return descriptor


def release(folder: Path, descriptor: int) -> None:
    """Undo `take`."""
    (folder / HOLDER).unlink(missing_ok=True)
    os.close(descriptor)
    _held.discard(folder.resolve())


def holder(folder: Path) -> str:
    """Who took the folder last, for messages."""
    who = read_json(folder / HOLDER)
    return f"process {who['pid']} on {who['host']}, since {who['started']}" if who else "another process"


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder now."""
    if folder.resolve() in _held:
        return True
    with suppress(FileNotFoundError), (folder / LOCK).open("r+") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False
