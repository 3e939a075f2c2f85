"""Where a run stands."""

from __future__ import annotations

import time
from pathlib import Path

from dartune import lock
from dartune.errors import InputError
from dartune.files import read_json
from dartune.run import DONE, STARTED


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, else the runs in it: those of a matrix.

    Raises:
        InputError: there is no run.
    """
    found = [folder] if (folder / lock.LOCK).exists() else sorted(path.parent for path in folder.glob(f"*/{lock.LOCK}"))
    if not found:
        raise InputError(f"there is no run in {folder}; give the `output` folder of `dartune run`")
    return found


def status_lines(folder: Path) -> list[str]:
    """Where a run stands: who holds it, then each stage with its state, seconds and attempts.

    Raises:
        InputError: there is no run in `folder`.
    """
    if runs_in(folder) != [folder]:
        inside = ", ".join(path.name for path in runs_in(folder))
        raise InputError(f"{folder} holds several runs; give the folder of one of them: {inside}")
    held = lock.is_held(folder)
    lines = [f"{folder}: in use by {lock.holder(folder)}" if held else f"{folder}: not running"]
    entries = []
    for path in (folder / "stages").glob("*/*"):
        if path.name == DONE and (done := read_json(path)):
            entries.append((done["attempts"][-1]["started"], path.parent.name, "done", done))
        elif path.name == STARTED and not (path.parent / DONE).exists() and (state := read_json(path)):
            entries.append((state["attempts"][-1]["started"], path.parent.name, "", state))
    for started, name, state, entry in sorted(entries, key=lambda item: item[0]):
        spent = [attempt["seconds"] for attempt in entry["attempts"]]
        running = not state and held and spent[-1] is None
        if running:
            spent[-1] = time.time() - started
        known = sum(seconds for seconds in spent if seconds is not None)
        tries = f", attempt {len(spent)}" if len(spent) > 1 else ""
        state = state or ("running" if running else "partial")
        lines.append(f"  {name:<28} {state:<8} {known:8.1f} s{tries}")
    return lines
