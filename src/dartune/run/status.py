"""State of a run folder, for `dartune status`."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from dartune.errors import InputError
from dartune.run import lock
from dartune.run.files import read_json
from dartune.run.folder import DONE, STARTED
from dartune.run.number_format import duration, seconds_text
from dartune.run.progress_state import FILE as PROGRESS_FILE
from dartune.run.progress_state import ProgressState, read_state

RESULTS = "report/results.json"
"""File of the report, which is written after the last stage."""
SILENT_SECONDS = 60.0
"""Age of the progress of a running process from which it counts as silent; it is written every few seconds."""


def runs_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run folder, otherwise the run folders of a matrix inside it.

    Raises:
        InputError: there is no run.
    """
    if (folder / lock.LOCK).exists():
        return [folder]
    runs = sorted(path.parent for path in folder.glob(f"*/{lock.LOCK}"))
    if not runs:
        raise InputError(f"there is no run in {folder}; give the `output` folder of `dartune run`")
    return runs


def status_lines(folder: Path) -> list[str]:
    """Describe a run: the process that holds it, each stage with its state, seconds and attempts, and the progress.

    Raises:
        InputError: there is no run in `folder`, or there are several.
    """
    if runs_in(folder) != [folder]:
        names = ", ".join(path.name for path in runs_in(folder))
        raise InputError(f"{folder} holds several runs; give the folder of one of them: {names}")
    held = lock.is_held(folder)
    stages = []
    for path in (folder / "stages").glob("*/*"):
        if path.name == DONE and (record := read_json(path)):
            stages.append((record["attempts"][-1]["started"], path.parent.name, "done", record))
        elif path.name == STARTED and not (path.parent / DONE).exists() and (record := read_json(path)):
            stages.append((record["attempts"][-1]["started"], path.parent.name, "", record))
    state = "finished" if _is_finished(folder, [record for *_, record in stages]) else "not running"
    if held:
        state = f"in use by {lock.holder(folder)}"
    elif lock.is_left_behind(folder):
        state = f"not running; {lock.holder(folder)}, is gone without an end. The same command continues the run"
    lines = [f"{folder}: {state}"]
    for started, name, state, record in sorted(stages, key=lambda stage: stage[0]):
        seconds = [attempt["seconds"] for attempt in record["attempts"]]
        running = not state and held and seconds[-1] is None
        if running:
            seconds[-1] = time.time() - started
        recorded = [value for value in seconds if value is not None]  # a killed attempt has not recorded its time
        attempts = f", attempt {len(seconds)}" if len(seconds) > 1 else ""
        state = state or ("running" if running else "partial")
        time_text = seconds_text(sum(recorded)) if recorded else ""
        lines.append(f"  {name:<28} {state:<8} {time_text:>10}{attempts}".rstrip())
    progress = read_state(folder / PROGRESS_FILE)
    # Without figures it would repeat the line of the stage.
    if progress and (progress.total is not None or progress.activity or progress.label not in {s[1] for s in stages}):
        lines.append(_progress_line(progress, running=held))
    return lines


def _progress_line(progress: ProgressState, *, running: bool) -> str:
    """Describe the progress with its age. A stopped process leaves the progress at which it stopped."""
    age = max(0.0, time.time() - progress.updated)
    silent = ", nothing since then" if running and age >= SILENT_SECONDS else ""
    note = f"updated {duration(age)} ago{silent}" if running else f"stopped {duration(age)} ago"
    return f"  {progress.label}: {progress.text()} ({note})"


def _is_finished(folder: Path, records: list[dict[str, Any]]) -> bool:
    """Return whether every stage is done, and the report was written after the last of them."""
    if not (report := folder / RESULTS).exists() or not all("finished" in record for record in records):
        return False
    written = report.stat().st_mtime
    return all(datetime.fromisoformat(record["finished"]).timestamp() <= written for record in records)
