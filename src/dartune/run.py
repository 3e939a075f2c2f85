"""A run folder: its stages are skipped when nothing changed, continued when killed, redone with a reason.

`stages/<name>/` holds a stage's outputs. `STARTED` is there while a stage is under way and `DONE` is
written last, so a folder with `DONE` is complete, and one without can only be continued by the same
inputs. One process at a time holds the folder.
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
from typing import TYPE_CHECKING, Any, Self

from dartune import lock, processes
from dartune.environment import environment, peak_memory_mb, reset_peak_memory
from dartune.errors import DartuneError, MachineError, machine_error
from dartune.files import (
    DRAFT,
    append_jsonl,
    append_log,
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_jsonl,
    sync,
    write_jsonl,
    writing,
)
from dartune.redaction import redacted

if TYPE_CHECKING:
    from dartune.config import Config

__all__ = [
    "Cost",
    "Run",
    "append_jsonl",
    "atomic_write_json",
    "atomic_write_text",
    "changes",
    "lost_outputs",
    "read_jsonl",
    "stage_key",
    "write_jsonl",
]

DONE, STARTED = "DONE", "STARTED"
END_IT = "run it to its end first: dartune run {}/config.resolved.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHOWN_CHANGES = 5


@dataclasses.dataclass
class Cost:
    """What a stage spent: tokens, an estimate of floating point operations (`models/flops.py`), wall-clock seconds over
    all attempts, highest resident memory in MiB."""

    generated_tokens: int = 0
    scored_tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.generated_tokens + other.generated_tokens,
            self.scored_tokens + other.scored_tokens,
            self.trained_tokens + other.trained_tokens,
            self.seconds + other.seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
            self.flops + other.flops,
        )


# inputs of a stage and what changed in them


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"a stage's inputs must be plain data, not {type(value).__name__}")


def stage_key(name: str, inputs: Mapping[str, Any]) -> str:
    """sha256 over a stage's name and inputs; the order of keys does not count."""
    text = json.dumps([name, inputs], sort_keys=True, default=_plain, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changes(old: Any, new: Any, at: str = "") -> list[str]:
    """Every difference between two nested values, as in `mapper.learning_rate 1e-6 -> 2e-6`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            where = f"{at}.{key}" if at else str(key)
            if key not in new:
                found.append(f"{where} {_shown(old[key])} removed")
            elif key not in old:
                found.append(f"{where} {_shown(new[key])} added")
            else:
                found += changes(old[key], new[key], where)
        return found
    return [] if old == new else [f"{at} {_shown(old)} -> {_shown(new)}"]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return re.sub(r"e([+-])0+", r"e\1", repr(value)).replace("e+", "e")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"[0-9a-f]{64}", lambda hashed: hashed[0][:8], text)
    return text if len(text) <= 60 else f"{text[:57]}..."


# the run


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _Warnings(logging.Handler):
    """Passes what modules warn of on to a run's log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


class Run:
    """One run folder, held by this process from construction to `close` (or the end of the process)."""

    def __init__(self, folder: Path, log: Callable[[str], None] = _to_stderr) -> None:
        """Take the folder, creating it if need be, and note the environment in it.

        Raises:
            InputError: the folder exists and is not a run folder.
            MachineError: another process holds it, or the disk is full.
        """
        self.folder = Path(folder)
        self._print = log
        self._keys: dict[str, str] = {}
        self._lock: int | None = lock.take(self.folder) if processes.is_first() else None
        self._warnings = _Warnings(self.log)
        logging.getLogger("dartune").addHandler(self._warnings)
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
        """Let go of the folder."""
        logging.getLogger("dartune").removeHandler(self._warnings)
        if self._lock is not None:
            lock.release(self.folder, self._lock)
            self._lock = None

    def note_config(self, config: Config) -> None:
        """Keep the settings that the run goes by; called once they are known to be usable."""
        atomic_write_text(self.folder / "config.resolved.yaml", redacted(config.resolved_yaml()))

    @property
    def log_path(self) -> Path:
        return self.folder / "logs" / "run.log"

    def log(self, message: str) -> None:
        """Say `message` on stderr and in `logs/run.log`; of several processes the first one speaks."""
        if processes.is_first():
            self._print(redacted(message))
        append_log(self.log_path, message)

    def stage_folder(self, name: str) -> Path:
        """`stages/<name>`, whether or not it exists."""
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a stage: use letters, digits, '.', '_' and '-'")
        return self.folder / "stages" / name

    def stage(self, name: str, inputs: Mapping[str, Any], fn: Callable[[Path], Cost | None]) -> Path:
        """Bring a stage up to date and return its folder.

        Args:
            name: a folder name, such as `mapper-s0`.
            inputs: all that `fn`'s outputs depend on, as plain data; earlier stages as `run.key(name)`.
            fn: writes its outputs into the folder it is given. After a killed attempt with the same
                inputs it finds that attempt's outputs there and may continue from them. It returns the
                tokens spent by *all* attempts; seconds (and memory, where it says none) are measured here.

        Raises:
            MachineError: the disk or memory ran out. What `fn` raises otherwise passes through.
        """
        inputs = json.loads(json.dumps(inputs, default=_plain, allow_nan=False))
        folder, key = self.stage_folder(name), stage_key(name, inputs)
        if self._keys.setdefault(name, key) != key:
            raise ValueError(f"stage {name} was already used in this run with other inputs")
        state = self._due(name, folder, key, inputs) if processes.is_first() else None
        if not processes.agreed(state is not None):
            return folder
        if state is None:
            fn(folder)
        else:
            self._attempt(name, folder, state, fn)
        processes.wait()
        return folder

    def _due(self, name: str, folder: Path, key: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """What a stage that must be run starts with, None for one that need not be; says why or why not."""
        done = read_json(folder / DONE)
        if done and done["key"] == key and not (lost := lost_outputs(folder, done)):
            (folder / STARTED).unlink(missing_ok=True)
            self.log(f"{name}: nothing changed, skipped ({done['cost']['seconds']:.1f} s when it ran)")
            return None
        if done and done["key"] == key:
            self.log(f"{name}: run again, its output {lost[0]} is missing or was changed")
        elif done:
            self.log(f"{name}: run again, {_reason(done['inputs'], inputs)}")
        return {"key": key, "inputs": inputs, "attempts": self._partial(name, folder, key, inputs, done is not None)}

    def key(self, name: str) -> str:
        """The key of a stage of this run, to put into the inputs of those that build on it."""
        return self._keys.get(name) or self._done(name)["key"]

    def cost(self, name: str) -> Cost:
        """What a finished stage cost, all attempts together."""
        return Cost(**self._done(name)["cost"])

    def noted_inputs(self, name: str) -> dict[str, Any] | None:
        """The inputs that a complete stage was made from; None where it is not complete."""
        done = read_json(self.stage_folder(name) / DONE)
        return done and done["inputs"]

    def finished(self, name: str) -> bool:
        """Whether the stage is complete (for whichever inputs it was last run with)."""
        return read_json(self.stage_folder(name) / DONE) is not None

    def finished_stages(self) -> list[str]:
        """Complete stages in the order of their first use here; in a process that ran none, all on disk."""
        names = self._keys or [path.parent.name for path in _by_age(self.folder, DONE)]
        return [name for name in names if self.finished(name)]

    def _done(self, name: str) -> dict[str, Any]:
        done = read_json(self.stage_folder(name) / DONE)
        if done is None:
            raise DartuneError(f"stage {name} of {self.folder} has not finished")
        return done

    def _partial(
        self, name: str, folder: Path, key: str, inputs: dict[str, Any], was_done: bool
    ) -> list[dict[str, Any]]:
        """Keep what a killed attempt with the same key left and return its attempts; clear anything else."""
        started = None if was_done else read_json(folder / STARTED)
        if started and started["key"] == key:
            attempts = started["attempts"]
            if attempts and attempts[-1]["seconds"] is None:
                # Outputs are written all along, so the newest one tells about when the process died.
                newest = max(path.stat().st_mtime for path in folder.rglob("*"))
                attempts[-1]["seconds"] = round(max(0.0, newest - attempts[-1]["started"]), 3)
            self.log(f"{name}: continues, attempt {len(attempts) + 1}")
            return attempts
        if started:
            self.log(f"{name}: starts over, {_reason(started['inputs'], inputs)} since it was interrupted")
        if folder.exists():
            # The marks go first: a half-removed folder must never look complete or continuable.
            for mark in (DONE, STARTED):
                (folder / mark).unlink(missing_ok=True)
            sync(folder)
            shutil.rmtree(folder)
        return []

    def _attempt(self, name: str, folder: Path, state: dict[str, Any], fn: Callable[[Path], Cost | None]) -> None:
        attempt: dict[str, Any] = {"started": time.time(), "seconds": None}
        state["attempts"].append(attempt)
        atomic_write_json(folder / STARTED, state)
        if len(state["attempts"]) == 1:
            self.log(f"{name}: starts")
        start = time.monotonic()
        reset_peak_memory()
        try:
            cost = fn(folder) or Cost()
        except BaseException as error:
            attempt["seconds"] = round(time.monotonic() - start, 3)
            with suppress(OSError, MachineError):
                atomic_write_json(folder / STARTED, state)
            if known := machine_error(error):
                raise MachineError(f"{name}: {known}") from error
            raise
        attempt["seconds"] = round(time.monotonic() - start, 3)
        seconds = round(sum(entry["seconds"] for entry in state["attempts"]), 3)
        memory = cost.peak_memory_mb or peak_memory_mb()
        cost = dataclasses.replace(cost, seconds=seconds, peak_memory_mb=memory)
        files = _settle(folder)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        atomic_write_json(
            folder / DONE, {**state, "cost": dataclasses.asdict(cost), "finished": finished, "files": files}
        )
        (folder / STARTED).unlink(missing_ok=True)
        self.log(f"{name}: done in {seconds:.1f} s")

    def _note_environment(self) -> None:
        path, now = self.folder / "environment.json", environment()
        before = read_json(path)
        if before and (found := changes(before, now)):
            self.log(f"the environment changed since this run started: {'; '.join(found[:SHOWN_CHANGES])}")
        atomic_write_json(path, now)


def _reason(old: Any, new: Any) -> str:
    found = changes(old, new)
    more = f" and {len(found) - SHOWN_CHANGES} more" if len(found) > SHOWN_CHANGES else ""
    return f"{', '.join(found[:SHOWN_CHANGES])}{more} changed" if found else "it was left by another version"


def _settle(folder: Path) -> dict[str, int]:
    """Flush every output to disk; returns their sizes in bytes, by path. Drafts that a crash left go."""
    sizes = {}
    with writing(folder):
        for left in folder.rglob(f".*{DRAFT}"):
            left.unlink()
        for path in sorted(folder.rglob("*")):
            sync(path)
            if path.is_file() and path.name != STARTED:
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    return sizes


def lost_outputs(folder: Path, done: Mapping[str, Any]) -> list[str]:
    """Outputs of a stage's folder that are not what its `DONE` says it left."""
    return [
        name
        for name, size in done["files"].items()
        if not (folder / name).is_file() or (folder / name).stat().st_size != size
    ]


def _by_age(folder: Path, mark: str) -> list[Path]:
    return sorted(folder.glob(f"stages/*/{mark}"), key=lambda path: path.stat().st_mtime)
