"""A run folder with cached and resumable stages.

A stage is skipped if its inputs did not change, continued if it was interrupted, and otherwise run again with the
reason in the log. `stages/<name>/` holds a stage's outputs. The file `STARTED` exists while a stage runs, and `DONE` is
written last. A folder with `DONE` is therefore complete; one without can only be continued with the same inputs. One
process at a time holds the lock of the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from dartune import distributed
from dartune.errors import DartuneError, MachineError, machine_error
from dartune.run import lock
from dartune.run.cost import Cost
from dartune.run.environment import environment, peak_memory_mb, reset_peak_memory
from dartune.run.files import (
    DRAFT,
    append_log,
    atomic_write_json,
    atomic_write_text,
    read_json,
    sync,
    writing,
)
from dartune.run.number_format import seconds_text
from dartune.run.progress import Progress
from dartune.run.progress_state import FILE as PROGRESS_FILE
from dartune.run.progress_state import remove_state
from dartune.run.redaction import redacted

DONE, STARTED = "DONE", "STARTED"
ENVIRONMENT = "environment.json"
FINISH_HINT = "run it to its end first: dartune run {}/config.resolved.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Stage names are also folder names, so they must not contain separators or start with a dot."""
SHOWN_CHANGES = 5
"""Changes listed in a log line; the others are counted."""


# Inputs of a stage, and the differences between them


def _to_plain(value: Any) -> Any:
    """Convert paths, dataclasses and pydantic models to JSON values; the `default` of `json.dumps`."""
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if dump := getattr(value, "model_dump", None):
        return dump(mode="json")
    raise TypeError(f"a stage's inputs must be plain data, not {type(value).__name__}")


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a stage's name and inputs, independent of the order of keys."""
    text = json.dumps([name, inputs], sort_keys=True, default=_to_plain, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changes(old: Any, new: Any, at: str = "") -> list[str]:
    """List the differences between two nested values, as in `mapper.learning_rate 1e-6 -> 2e-6`.

    Args:
        at: dotted path of the two values, put in front of the keys.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        differences = []
        for key in [*old, *(key for key in new if key not in old)]:
            path = f"{at}.{key}" if at else str(key)
            if key not in new:
                differences.append(f"{path} {_format_value(old[key])} removed")
            elif key not in old:
                differences.append(f"{path} {_format_value(new[key])} added")
            else:
                differences += changes(old[key], new[key], path)
        return differences
    return [] if old == new else [f"{at} {_format_value(old)} -> {_format_value(new)}"]


def _format_value(value: Any) -> str:
    """Format a value for a log line: floats as people write them (1e-6), hashes and long text truncated."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", repr(value)).replace("e+", "e")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"[0-9a-f]{64}", lambda sha256: sha256[0][:8], text)
    return text if len(text) <= 60 else f"{text[:57]}..."


# The run


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _WarningHandler(logging.Handler):
    """Forwards warnings of the package's loggers to the run's log."""

    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log(record.getMessage())


class RunFolder:
    """A run folder, locked by this process from construction to `close` or to the end of the process."""

    def __init__(self, folder: Path, log: Callable[[str], None] = _to_stderr) -> None:
        """Lock the folder, creating it if it does not exist, and write `environment.json`.

        Args:
            folder: path of the run folder.
            log: prints a message; by default to stderr.

        Raises:
            InputError: the folder exists and is not a run folder.
            MachineError: another process holds the lock, or the disk is full.
        """
        self.folder = Path(folder)
        self._print = log
        self._keys: dict[str, str] = {}
        self._lock: int | None = lock.take(self.folder) if distributed.is_main() else None
        self._warning_handler = _WarningHandler(self.log)
        logging.getLogger("dartune").addHandler(self._warning_handler)
        remove_state(self.folder / PROGRESS_FILE)  # of a process that was killed
        try:
            self._note_environment()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            with suppress(MachineError):
                append_log(self.log_path, f"stopped by {type(error).__name__}: {error}")
        self.close()

    def close(self) -> None:
        """Release the lock and stop forwarding warnings."""
        logging.getLogger("dartune").removeHandler(self._warning_handler)
        if self._lock is not None:
            lock.release(self.folder, self._lock)
            self._lock = None

    def note_config(self, settings: str) -> None:
        """Write the resolved config (YAML). Call it only after the config was checked against data and models."""
        atomic_write_text(self.folder / "config.resolved.yaml", redacted(settings))

    @property
    def log_path(self) -> Path:
        return self.folder / "logs" / "run.log"

    def log(self, message: str) -> None:
        """Print `message` and append it to `logs/run.log`, on rank 0 only."""
        if distributed.is_main():
            self._print(redacted(message))
        append_log(self.log_path, message)

    def progress(self, total: int | None, label: str) -> Progress:
        """Return a progress whose lines go to the log too, and whose state `dartune status` shows."""
        return Progress(total, label, self.log_path, self.folder / PROGRESS_FILE)

    def stage_folder(self, name: str) -> Path:
        """Return `stages/<name>`, whether or not it exists."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a stage: use letters, digits, '.', '_' and '-'")
        return self.folder / "stages" / name

    def stage(self, name: str, inputs: Mapping[str, Any], fn: Callable[[Path], Cost | None]) -> Path:
        """Bring a stage up to date and return its folder.

        Args:
            name: name of the stage and of its folder, such as `mapper-s0`.
            inputs: everything that the outputs of `fn` depend on, as plain data; earlier stages as `run.key(name)`.
            fn: writes its outputs into the folder that it receives. After an interrupted attempt with the same
                inputs, the folder still holds that attempt's outputs, and `fn` may continue from them. It returns
                the tokens used by *all* attempts. Seconds are measured here, and so is peak memory if `fn` reports 0.

        Raises:
            MachineError: disk or memory is exhausted. Other exceptions of `fn` are passed through.
        """
        inputs = json.loads(json.dumps(inputs, default=_to_plain, allow_nan=False))
        folder, key = self.stage_folder(name), stage_key(name, inputs)
        if self._keys.setdefault(name, key) != key:
            raise ValueError(f"stage {name} was already used in this run with other inputs")
        # Only rank 0 reads and writes the marker files, so that all ranks take the same decision.
        state = self._initial_state(name, folder, key, inputs) if distributed.is_main() else None
        if not distributed.broadcast(state is not None):
            return folder
        if state is None:
            fn(folder)
        else:
            self._attempt(name, folder, state, fn)
        distributed.barrier()
        return folder

    def _initial_state(self, name: str, folder: Path, key: str, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the state that a stage to be run starts with, or None if it can be skipped; log the reason."""
        done = read_json(folder / DONE)
        if done and done["key"] == key and not (lost := lost_outputs(folder, done)):
            (folder / STARTED).unlink(missing_ok=True)
            self.log(f"{name}: nothing changed, skipped ({seconds_text(done['cost']['seconds'])} when it ran)")
            return None
        if done and done["key"] == key:
            self.log(f"{name}: run again, its output {lost[0]} is missing or was changed")
        elif done:
            self.log(f"{name}: run again, {_reason(done['inputs'], inputs)}")
        attempts = self._earlier_attempts(name, folder, key, inputs, done is not None)
        return {"key": key, "inputs": inputs, "attempts": attempts}

    def key(self, name: str) -> str:
        """Return the key of a stage of this run, for the inputs of stages that depend on it."""
        return self._keys.get(name) or self._done(name)["key"]

    def cost(self, name: str) -> Cost:
        """Return the cost of a finished stage, summed over all attempts."""
        return Cost(**self._done(name)["cost"])

    def noted_inputs(self, name: str) -> dict[str, Any] | None:
        """Return the inputs of a complete stage, or None if it is not complete."""
        record = read_json(self.stage_folder(name) / DONE)
        return record and record["inputs"]

    def finished(self, name: str) -> bool:
        """Return whether the stage is complete for the inputs of its last run, which may be stale."""
        return read_json(self.stage_folder(name) / DONE) is not None

    def finished_stages(self) -> list[str]:
        """Return complete stages in the order of their first use by this process; if it used none, all on disk."""
        names = self._keys or [path.parent.name for path in _by_age(self.folder, DONE)]
        return [name for name in names if self.finished(name)]

    def _done(self, name: str) -> dict[str, Any]:
        record = read_json(self.stage_folder(name) / DONE)
        if record is None:
            raise DartuneError(f"stage {name} of {self.folder} has not finished")
        return record

    def _earlier_attempts(
        self, name: str, folder: Path, key: str, inputs: Mapping[str, Any], was_done: bool
    ) -> list[dict[str, Any]]:
        """Return the interrupted attempts with the same key and keep their outputs; otherwise empty the folder."""
        started = None if was_done else read_json(folder / STARTED)
        if started and started["key"] == key:
            attempts = started["attempts"]
            if attempts and attempts[-1]["seconds"] is None:
                # The process was killed before it could record its time. It wrote outputs throughout, so the newest
                # file is a good estimate of when it ended.
                newest = max(path.stat().st_mtime for path in folder.rglob("*"))
                attempts[-1]["seconds"] = round(max(0.0, newest - attempts[-1]["started"]), 3)
            self.log(f"{name}: continues, attempt {len(attempts) + 1}")
            return attempts
        if started:
            self.log(f"{name}: starts over, {_reason(started['inputs'], inputs)} since it was interrupted")
        if folder.exists():
            # The markers are removed first: a partly removed folder must not look complete or resumable.
            for marker in (DONE, STARTED):
                (folder / marker).unlink(missing_ok=True)
            sync(folder)
            shutil.rmtree(folder)
        return []

    def _attempt(self, name: str, folder: Path, state: dict[str, Any], fn: Callable[[Path], Cost | None]) -> None:
        """Run `fn` once, and record its time and cost in `STARTED` and, if it succeeds, in `DONE`."""
        attempt: dict[str, Any] = {"started": time.time(), "seconds": None}
        state["attempts"].append(attempt)
        atomic_write_json(folder / STARTED, state)
        if len(state["attempts"]) == 1:
            self.log(f"{name}: starts")
        start = time.monotonic()
        reset_peak_memory()
        try:
            with self.progress(None, name):  # reports what the stage's own progress does not cover
                cost = fn(folder) or Cost()
        except BaseException as error:
            attempt["seconds"] = round(time.monotonic() - start, 3)
            with suppress(OSError, MachineError):
                atomic_write_json(folder / STARTED, state)
            if translated := machine_error(error):
                raise MachineError(f"{name}: {translated}") from error
            raise
        attempt["seconds"] = round(time.monotonic() - start, 3)
        seconds = round(sum(entry["seconds"] for entry in state["attempts"]), 3)
        memory = cost.peak_memory_mb or peak_memory_mb()
        cost = dataclasses.replace(cost, seconds=seconds, peak_memory_mb=memory)
        files = _flush_outputs(folder)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        atomic_write_json(
            folder / DONE, {**state, "cost": dataclasses.asdict(cost), "finished": finished, "files": files}
        )
        (folder / STARTED).unlink(missing_ok=True)
        self.log(f"{name}: done in {seconds_text(seconds)}")

    @property
    def computing(self) -> dict[str, Any]:
        """How the run computes (`note_computing`); empty before it was noted."""
        return (read_json(self.folder / ENVIRONMENT) or {}).get("computing", {})

    def note_computing(self, computing: dict[str, Any]) -> None:
        """Note what the rounding of results depends on beside the environment, and log it where it is new."""
        if computing != self.computing:
            self.log(", ".join(f"{name} {value}" for name, value in computing.items()))
            atomic_write_json(
                self.folder / ENVIRONMENT,
                {**(read_json(self.folder / ENVIRONMENT) or {}), "computing": computing},
            )

    def _note_environment(self) -> None:
        path, now = self.folder / ENVIRONMENT, environment()
        before = read_json(path)
        if before and "computing" in before:
            now["computing"] = before["computing"]
        if before and (differences := changes(before, now)):
            self.log(f"the environment changed since this run started: {'; '.join(differences[:SHOWN_CHANGES])}")
        atomic_write_json(path, now)


def _reason(old: Any, new: Any) -> str:
    """Say which inputs changed. Equal inputs with different keys come from a version that computed keys differently."""
    differences = changes(old, new)
    if not differences:
        return "it was written by another version"
    more = f" and {len(differences) - SHOWN_CHANGES} more" if len(differences) > SHOWN_CHANGES else ""
    return f"{', '.join(differences[:SHOWN_CHANGES])}{more} changed"


def _flush_outputs(folder: Path) -> dict[str, int]:
    """Flush every output to disk, remove drafts left by a crash, and return the sizes in bytes by relative path."""
    sizes = {}
    with writing(folder):
        for draft in folder.rglob(f".*{DRAFT}"):
            draft.unlink()
        for path in sorted(folder.rglob("*")):
            sync(path)
            if path.is_file() and path.name != STARTED:
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def lost_outputs(folder: Path, done: Mapping[str, Any]) -> list[str]:
    """Return the outputs that are missing or differ in size from what the stage's `DONE` record lists."""
    return [
        name
        for name, size in done["files"].items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]


def _by_age(folder: Path, marker: str) -> list[Path]:
    return sorted(folder.glob(f"stages/*/{marker}"), key=lambda path: path.stat().st_mtime)
