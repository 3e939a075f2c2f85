"""Metrics to experiment trackers, by name and through accelerate; the files of a run are written all the same.

Each call of `dartune run` is one run in a tracker, which holds the whole curves of the stages that were worked on: a
stage that continues an interrupted one begins with what its `metrics.jsonl` has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dartune import processes
from dartune.config import Config
from dartune.errors import InputError
from dartune.files import read_jsonl

OWN_STEPS = "tensorboard"
"""Keeps steps apart by metric; the others want one count that only rises."""


def problems(names: Sequence[str]) -> list[str]:
    """What keeps trackers from being used here."""
    return [f"trackers: {name} is not installed: pip install {name}" for name in names if find_spec(name) is None]


class Tracking:
    """Hands the scalars of every training step to trackers; one that fails is left out from then on.

    Args:
        trackers: accelerate's, started.
        say: where a failure is told.
    """

    def __init__(self, trackers: Sequence[Any] = (), say: Callable[[str], None] = lambda text: None) -> None:
        self.trackers, self.say = list(trackers), say
        self._count = 0

    def follow(
        self, stage: str, folder: Path, then: Callable[[int, dict[str, Any]], None]
    ) -> Callable[[int, dict[str, Any]], None]:
        """A step callback that logs a stage's metrics, named `stage/metric`, and calls `then`."""
        begun = False

        def step_done(step: int, row: dict[str, Any]) -> None:
            nonlocal begun
            if self.trackers:
                earlier = [] if begun else [one for one in read_jsonl(folder / "metrics.jsonl") if one["step"] < step]
                for one in [*earlier, row]:
                    self._log(stage, one)
            begun = True
            then(step, row)

        return step_done

    def _log(self, stage: str, row: Mapping[str, Any]) -> None:
        self._count += 1
        values = {f"{stage}/{name}": value for name, value in scalars(row)}
        for tracker in list(self.trackers):
            step = row["step"] if tracker.name == OWN_STEPS else self._count
            self._guarded(tracker, lambda tracker=tracker, step=step: tracker.log(values, step=step))

    def close(self) -> None:
        for tracker in list(self.trackers):
            self._guarded(tracker, tracker.finish)

    def _guarded(self, tracker: Any, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # somebody's service or its library: training does not hang on it
            self.trackers.remove(tracker)
            self.say(f"the tracker {tracker.name} failed and is left out from now on: {type(error).__name__}: {error}")


def scalars(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a metrics row, those of nested ones as `gates/finished`."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{before}{name}/")
        elif isinstance(value, bool | int | float):
            yield f"{before}{name}", float(value)


@contextmanager
def tracking(config: Config, folder: Path, say: Callable[[str], None]) -> Iterator[Tracking]:
    """The trackers that `config` names, for a run in `folder`; of several processes the first one has them.

    Raises:
        InputError: one cannot be started (no login, no service).
    """
    made = Tracking([_started(name, config, folder) for name in config.trackers if processes.is_first()], say)
    try:
        yield made
    finally:
        made.close()


def _started(name: str, config: Config, folder: Path) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # which accelerate's trackers ask whether this is the first process
    began = f"{datetime.now():%Y%m%d-%H%M%S}"
    places = {
        "tensorboard": {"logging_dir": str(folder / "tensorboard")},
        "wandb": {"name": f"{folder.name}-{began}", "dir": str(folder)},
        "trackio": {"name": f"{folder.name}-{began}"},
    }
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](began if name == "tensorboard" else config.name, **places[name])
        tracker.start()
        tracker.store_init_configuration(dict(_flat(config.model_dump(mode="json"))))
    except Exception as error:
        raise InputError(f"the tracker {name} cannot be started: {type(error).__name__}: {error}") from error
    return tracker


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their full keys; lists as text, which is what trackers take."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value if isinstance(value, bool | int | float | str) else str(value)
