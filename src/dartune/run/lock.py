"""Exclusive lock on a run folder: one process at a time; a second process gets an error that names the first."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from dartune.errors import InputError, MachineError
from dartune.run.files import atomic_write_json, read_json, writing

LOCK, HOLDER = "lock", "holder.json"
_held: set[Path] = set()
"""Folders locked by this process. Record locks belong to the process, so they do not stop it from locking twice."""


def take(folder: Path) -> int:
    """Lock `folder`, creating it if it does not exist; return the descriptor to pass to `release`.

    The operating system releases the lock when the process ends, also after a crash.

    Raises:
        InputError: the folder exists and is not a run folder.
        MachineError: another process holds the lock, or the folder cannot be written or locked.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the run folder {folder} is a file; choose another --output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK).exists():
        raise InputError(f"{folder} holds other files and is no run folder; choose another --output")
    resolved = folder.resolve()
    in_use = MachineError(f"{folder} is in use by {holder(folder)}; wait for it, or choose another --output")
    # Checked before opening the file: closing any descriptor of it releases all record locks that the process holds.
    if resolved in _held:
        raise in_use
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        # A record lock, not flock: forked workers inherit a flock and would keep it if they outlive this process.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, (BlockingIOError, PermissionError)):
            raise in_use from None
        raise MachineError(f"cannot lock {folder}: {error}; put the run on a local disk") from error
    _held.add(resolved)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    atomic_write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
    return descriptor


def release(folder: Path, descriptor: int) -> None:
    """Release a lock obtained from `take`."""
    (folder / HOLDER).unlink(missing_ok=True)
    os.close(descriptor)
    _held.discard(folder.resolve())


def holder(folder: Path) -> str:
    """Describe the process that locked the folder last, for messages."""
    process = read_json(folder / HOLDER)
    if not process:
        return "another process"
    return f"process {process['pid']} on {process['host']}, since {process['started']}"


def is_left_behind(folder: Path) -> bool:
    """Return whether the process that locked the folder last was killed: it did not release the lock itself."""
    return (folder / HOLDER).exists() and not is_held(folder)


def is_held(folder: Path) -> bool:
    """Return whether a process currently holds the lock."""
    if folder.resolve() in _held:
        return True
    with suppress(FileNotFoundError), (folder / LOCK).open("r+") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False
