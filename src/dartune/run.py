"""The run folder: stages that are skipped when nothing changed, atomic files, one process at a time.

A stage writes into `stages/<name>/`; `DONE.json`, written last, is its completion mark and holds the
key (a hash of its inputs), the inputs themselves and the cost. A killed attempt leaves no mark, so
the same command continues from what it left behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dartune.errors import InputError, MachineError

MARK = "DONE.json"
STARTED = "STARTED.json"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage used: tokens generated, scored (forward only) and trained on, seconds, peak memory."""

    generated_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.generated_tokens + other.generated_tokens,
            self.scored_tokens + other.scored_tokens,
            self.trained_tokens + other.trained_tokens,
            self.seconds + other.seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
        )


# files


def _guard_disk(error: OSError, path: Path) -> OSError | MachineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return MachineError(f"the disk is full (writing {path}); free some space and run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return MachineError(f"{path} cannot be written ({error.strerror}); choose another `output`")
    return error


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise _guard_disk(error, path) from error


def atomic_write_json(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row; a crash can cut the last line only, which `read_jsonl` ignores."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            _drop_cut_line(stream)
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()
    except OSError as error:
        raise _guard_disk(error, path) from error


def _drop_cut_line(stream: Any) -> None:
    """Remove what follows the last line end, so that a new row never joins half of an old one."""
    end = stream.seek(0, os.SEEK_END)
    if not end:
        return
    stream.seek(end - 1)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)
    stream.seek(0, os.SEEK_END)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line without its line end is the trace of a crash and is ignored."""
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines() if line.strip()]


# stages


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    if isinstance(value, Mapping):
        return {key: leaf for name, part in value.items() for key, leaf in flatten(part, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed between two stages' inputs, one line each: `mapper.learning_rate 1e-06 -> 2e-06`."""
    old, new = flatten(before), flatten(after)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            lines.append(f"{name} {_short(old.get(name))} -> {_short(new.get(name))}")
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def input_key(inputs: Mapping[str, Any]) -> str:
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Run:
    """A run folder, held by this process alone; use as a context manager.

    Raises:
        InputError: another process holds the folder.
        MachineError: the folder cannot be written.
    """

    def __init__(self, folder: Path, resolved: str | None = None, echo: Callable[[str], None] | None = None):
        """`resolved` is the text of `config.resolved.yaml`; `echo` gets every log line (default: standard error)."""
        self.folder, self.resolved = folder, resolved
        self.echo = echo or (lambda line: print(line, file=sys.stderr, flush=True))
        self.log_path = folder / "logs" / "run.log"

    def __enter__(self) -> Run:
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            (self.folder / "stages").mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("a+")
        except OSError as error:
            raise _guard_disk(error, self.folder) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise InputError(f"{self.folder} is in use by {holder}; wait for it, stop it, or choose another output") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {_now()}")
        self._lock.flush()
        if self.resolved is not None:
            atomic_write_text(self.folder / "config.resolved.yaml", self.resolved)
            atomic_write_json(self.folder / "environment.json", environment())
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.truncate(0)
        self._lock.close()

    def log(self, text: str) -> None:
        """Say `text` and keep it, with the time, in logs/run.log."""
        self.echo(text)
        with self.log_path.open("a", encoding="utf-8") as stream:
            stream.writelines(f"{_now()} {line}\n" for line in text.splitlines())

    def stage_folder(self, name: str) -> Path:
        return self.folder / "stages" / name

    def stage(self, name: str, inputs: Mapping[str, Any], work: Callable[[Path], Cost | None]) -> Path:
        """Do a stage unless it is finished with these very inputs; returns its folder.

        `work` writes into the folder and returns the cost. With the same inputs it may find what a
        killed attempt left there; with changed inputs the folder is emptied first.
        """
        folder, key = self.stage_folder(name), input_key(inputs)
        plain = json.loads(json.dumps(dict(inputs), default=str))
        done, started = _read(folder / MARK), _read(folder / STARTED)
        if done and done["key"] == key:
            self.log(f"{name}: unchanged, skipped")
            return folder
        known = done or started
        if known and known["key"] != key:
            why = changes(known["inputs"], plain)
            self.log(f"{name}: done again, because {'; '.join(why[:4])}{' ...' if len(why) > 4 else ''}")
            shutil.rmtree(folder)
            started = None
        elif started:
            self.log(f"{name}: continues where an earlier attempt stopped")
        else:
            self.log(f"{name}: starts")
        spent = (started or {}).get("seconds", 0.0)
        begun = time.monotonic()
        with _heartbeat(folder / STARTED, {"key": key, "inputs": plain}, spent):
            cost = work(folder) or Cost()
        seconds = round(spent + time.monotonic() - begun, 3)
        cost += Cost(seconds=seconds, peak_memory_mb=_peak_memory_mb())
        atomic_write_json(folder / MARK, {"key": key, "inputs": plain, "cost": asdict(cost), "finished": _now()})
        (folder / STARTED).unlink()
        self.log(f"{name}: done in {seconds:.1f} s")
        return folder

    def finished(self, name: str) -> bool:
        return _read(self.stage_folder(name) / MARK) is not None

    def finished_stages(self) -> list[str]:
        return sorted(path.parent.name for path in (self.folder / "stages").glob(f"*/{MARK}") if _read(path))

    def key(self, name: str) -> str:
        """The key of a finished stage, for the inputs of the stages that use it."""
        return self._mark(name)["key"]

    def cost(self, name: str) -> Cost:
        return Cost(**self._mark(name)["cost"])

    def _mark(self, name: str) -> dict[str, Any]:
        done = _read(self.stage_folder(name) / MARK)
        if done is None:
            raise InputError(f"{self.folder}: the stage {name} is not finished; run the recipe again to finish it")
        return done


class _heartbeat:
    """Keeps the seconds an attempt has spent in its start mark, so that a killed attempt is still counted."""

    EVERY = 10.0

    def __init__(self, path: Path, content: dict[str, Any], spent: float):
        self.path, self.content, self.spent = path, content, spent

    def __enter__(self) -> None:
        import threading

        self.begun, self.stop = time.monotonic(), threading.Event()
        self._beat()
        self.thread = threading.Thread(target=self._beats, daemon=True)
        self.thread.start()

    def _beats(self) -> None:
        while not self.stop.wait(self.EVERY):
            with suppress(OSError, MachineError):
                self._beat()

    def _beat(self) -> None:
        atomic_write_json(self.path, {**self.content, "seconds": self.spent + time.monotonic() - self.begun})

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_mb() -> float:
    """The process's peak resident memory so far, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)


def environment() -> dict[str, Any]:
    """What the run ran on; versions and sizes only, never the process's environment variables."""
    names = ("torch", "transformers", "accelerate", "tokenizers", "datasets", "peft", "dartune")
    versions = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
    }
