"""Experiment trackers, through accelerate. The metrics files of a run are written with or without them.

Each call of `dartune run` is one run in a tracker. It holds complete curves of the stages that it worked on: when a
stage continues after an interruption, the earlier steps are read from its `metrics.jsonl` and logged first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.config.plugins import import_part
from dartune.errors import InputError
from dartune.run.files import read_jsonl

OWN_STEPS = "tensorboard"
"""The tracker that keeps a separate step axis per metric. The others require one step count that never decreases."""


METHODS = ("start", "store_init_configuration", "log", "finish")
"""Methods that a tracker must have."""


def problems(names: Sequence[str]) -> list[str]:
    """Return a message for every tracker that is not installed, cannot be imported or is not a tracker class."""
    messages = []
    for name in names:
        if ":" in name:
            try:
                messages += _class_problems(name, import_part(name, "trackers"))
            except InputError as error:
                messages.append(error.message)
        elif find_spec(name) is None:
            messages.append(f"trackers: {name} is not installed: pip install {name}")
    return messages


def _class_problems(name: str, tracker_class: Any) -> list[str]:
    """Return why a user-defined tracker cannot be used. It is called with the project's name, but not here."""
    if not isinstance(tracker_class, type):
        return [f"trackers: {name} is a {type(tracker_class).__name__}, not a class"]
    if missing := [method for method in METHODS if not callable(getattr(tracker_class, method, None))]:
        return [f"trackers: {name} has no method {', '.join(missing)}; see docs/extending.md"]
    try:
        inspect.signature(tracker_class).bind("project")
    except TypeError as error:
        return [
            f"trackers: {name} cannot be called with one argument, the name of the project ({error}); give the other "
            "arguments of its constructor defaults"
        ]
    except ValueError:  # a class without a signature, such as one of an extension module
        return []
    return []


class Tracking:
    """Logs the scalars of every training step to the trackers. A tracker that fails is no longer used.

    Args:
        trackers: started trackers of accelerate.
        log: called with a message when a tracker fails.
    """

    def __init__(self, trackers: Sequence[Any] = (), log: Callable[[str], None] = lambda text: None) -> None:
        self.trackers, self.log = list(trackers), log
        self._count = 0

    def follow(
        self, stage: str, folder: Path, then: Callable[[int, dict[str, Any]], None]
    ) -> Callable[[int, dict[str, Any]], None]:
        """Return a step callback that logs a stage's metrics as `stage/metric` and then calls `then`."""
        first_step = True

        def step_done(step: int, metrics: dict[str, Any]) -> None:
            nonlocal first_step
            if self.trackers:
                logged = read_jsonl(folder / "metrics.jsonl") if first_step else []
                for row in [*(row for row in logged if row["step"] < step), metrics]:
                    self._log_row(stage, row)
            first_step = False
            then(step, metrics)

        return step_done

    def _log_row(self, stage: str, row: Mapping[str, Any]) -> None:
        self._count += 1
        values = {f"{stage}/{name}": value for name, value in scalars(row)}
        for tracker in list(self.trackers):
            step = row["step"] if tracker.name == OWN_STEPS else self._count
            self._guarded(tracker, lambda tracker=tracker, step=step: tracker.log(values, step=step))

    def close(self) -> None:
        """Finish every tracker."""
        for tracker in list(self.trackers):
            self._guarded(tracker, tracker.finish)

    def _guarded(self, tracker: Any, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # a failing service or client library must not stop the training
            self.trackers.remove(tracker)
            self.log(f"the tracker {tracker.name} failed and is no longer used: {type(error).__name__}: {error}")


def scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a metrics row by name; nested ones are named by their path, as in `gates/finished`."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float):
            yield f"{prefix}{name}", float(value)


@contextmanager
def tracking(
    names: Sequence[str], project: str, settings: Mapping[str, Any], folder: Path, log: Callable[[str], None]
) -> Iterator[Tracking]:
    """Start the named trackers for a run in `folder`, on rank 0 only, and finish them at the end of the block.

    Args:
        names: names of trackers, as in the config's `trackers`.
        project: name of the project in the trackers.
        settings: nested settings, stored as the run's configuration.
        folder: the run folder.
        log: called with a message when a tracker fails.

    Raises:
        InputError: a tracker cannot be started (no login, no service).
    """
    active = Tracking([_start(name, project, settings, folder) for name in names if distributed.is_main()], log)
    try:
        yield active
    finally:
        active.close()


def _start(name: str, project: str, settings: Mapping[str, Any], folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers read from it whether this is the main process
    started = f"{datetime.now():%Y%m%d-%H%M%S}"
    options = {
        "tensorboard": {"logging_dir": str(folder / "tensorboard")},
        "wandb": {"name": f"{folder.name}-{started}", "dir": str(folder)},
        "trackio": {"name": f"{folder.name}-{started}"},
    }
    try:
        # tensorboard uses its first argument as a folder name; the start time keeps repeated commands apart.
        if ":" in name:
            tracker = import_part(name, "trackers")(project)
        else:
            tracker = LOGGER_TYPE_TO_CLASS[name](started if name == "tensorboard" else project, **options[name])
        tracker.start()
        tracker.store_init_configuration(dict(_flatten(settings)))
    except Exception as error:
        raise InputError(f"the tracker {name} cannot be started: {type(error).__name__}: {error}") from error
    return tracker


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted key. Lists are converted to text, because trackers accept scalars and text only."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)
