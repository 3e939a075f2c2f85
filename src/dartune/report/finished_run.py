"""A finished run for the commands that read it: its results, its settings, and the outputs of its stages."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from dartune.config.load import HUB_ID
from dartune.config.recipe import Recipe, drop_removed_keys, explain, read_recipe
from dartune.config.schema import Config, is_section
from dartune.errors import InputError
from dartune.report.results import read_results
from dartune.report.ungraded import graded_records
from dartune.run import lock
from dartune.run.files import read_json, read_jsonl
from dartune.run.folder import DONE, STARTED, changes, lost_outputs
from dartune.run.status import status_lines
from dartune.stages.data import model_name
from dartune.stages.names import evaluation_stage, train_stage

SHOWN_CHANGES = 3


@dataclass(frozen=True)
class FinishedRun:
    """A run folder that has a report."""

    name: str
    folder: Path
    results: dict[str, Any]

    @cached_property
    def outcomes(self) -> dict[str, dict[str, dict[int, dict[str, float | None]]]]:
        """arm -> suite -> seed -> question id -> 1.0 if correct, 0.0 if incorrect, None without a verdict."""
        by_arm: dict[str, dict[str, dict[int, dict[str, float | None]]]] = {}
        for arm in self.results["arms"]:
            for seed in self.results["seeds"]:
                for row in read_jsonl(self.folder / "stages" / evaluation_stage(arm, seed) / "records.jsonl"):
                    by_seed = by_arm.setdefault(arm, {}).setdefault(row["suite"], {})
                    correct = row["correct"]
                    by_seed.setdefault(seed, {})[row["id"]] = None if correct is None else float(correct)
        return by_arm

    @cached_property
    def graded_outcomes(self) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
        """`outcomes` of the questions that the results are computed from: those with a verdict in every arm."""
        return graded_records(self.outcomes, lambda outcome: outcome)[0]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings at the time of the report, without removed keys that have the value which applies now."""
        values = deepcopy(self.results["config"])
        drop_removed_keys(values, recorded=True)
        return values

    @property
    def comparable_settings(self) -> dict[str, Any]:
        """`settings` with the defaults of missing keys, so that a missing key equals a key set to its default."""
        return with_defaults(self.settings)

    @cached_property
    def config(self) -> Config:
        """The config of the run at the time of its report.

        Raises:
            InputError: the run is of an earlier version, with settings that no longer exist.
        """
        try:
            return Config.model_validate(self.settings)
        except ValidationError as error:
            raise InputError(
                f"{self.folder} was made by an earlier version, and its settings cannot be read",
                explain(error, Recipe(), Config),
            ) from error

    def learning_rate(self, arm: str, seed: int) -> float:
        """The learning rate of an arm, selected by dev accuracy."""
        return self.results["learning_rates"][arm][str(seed)]["chosen"]

    def model_stage(self, arm: str, seed: int) -> str:
        """Name of the stage that holds a trained arm's model at the selected learning rate."""
        return train_stage(arm, seed, self.learning_rate(arm, seed))

    def stage_folder(self, name: str) -> Path:
        return self.folder / "stages" / name

    def stage_record(self, stage: str) -> dict[str, Any]:
        """Return the record of a complete stage: `key`, `inputs`, `cost`, and `files` with their sizes in bytes.

        Raises:
            InputError: the stage is not complete, or one of its files is missing or was changed.
        """
        record = read_json(self.stage_folder(stage) / DONE)
        if record is None:
            raise InputError(f"the stage {stage} of {self.folder} is not complete; {self._finish_hint}")
        if lost := lost_outputs(self.stage_folder(stage), record):
            raise InputError(f"{self.stage_folder(stage) / lost[0]} is missing or was changed; {self._finish_hint}")
        return record

    def model_name(self, address: str) -> str:
        """Public name of a model of the config: a Hub id, a lab address, or a folder's name without its path."""
        return model_name(address, is_folder=not self.from_hub(address))

    def from_hub(self, address: str) -> bool:
        """Whether a model was loaded from the Hub.

        An address like `owner/name` may also be a local folder. Stages record a Hub model by its id and a folder by
        the hash of its content, so the recorded inputs decide.
        """
        return bool(HUB_ID.fullmatch(address.removeprefix("hub:"))) and any(
            isinstance(recorded, str) and (recorded == address or recorded.startswith(f"{address}/"))
            for path in self.folder.glob(f"stages/*/{DONE}")
            for value in (read_json(path) or {"inputs": {}})["inputs"].values()
            for recorded in (value if isinstance(value, list) else [value])
        )

    @property
    def _finish_hint(self) -> str:
        return f"finish the run first: dartune run {self.folder / 'config.resolved.yaml'}"

    def problems(self) -> list[str]:
        """Reasons why the report may not describe the current outputs of the stages."""
        problems = []
        if lock.is_held(self.folder):
            problems.append(f"{self.folder} is in use by {lock.holder(self.folder)}; wait until that process ends")
        settings = read_recipe(self.folder / "config.resolved.yaml").values
        drop_removed_keys(settings, recorded=True)
        differences = changes(self.comparable_settings, with_defaults(settings))
        if changed := [text for text in differences if not text.startswith(FILLED_IN)]:
            shown = ", ".join(changed[:SHOWN_CHANGES])
            problems.append(f"{self.folder}: settings were changed since its report ({shown}); {self._finish_hint}")
        started = sorted(path.parent.name for path in self.folder.glob(f"stages/*/{STARTED}"))
        if incomplete := [name for name in started if not (self.stage_folder(name) / DONE).exists()]:
            problems.append(f"{self.folder}: {', '.join(incomplete)} not complete; {self._finish_hint}")
        return problems


FILLED_IN = "target.other "
"""A setting that the run fills in for the lab, so the report's config has it even where the recipe does not."""


def with_defaults(values: dict[str, Any], schema: type[BaseModel] = Config) -> dict[str, Any]:
    """Return recorded settings with the defaults of missing keys, as plain data; nothing is validated."""
    complete = dict(values)
    for name, field in schema.model_fields.items():
        if is_section(field.annotation):
            section = values.get(name, {})
            complete[name] = with_defaults(section, field.annotation) if isinstance(section, dict) else section
        elif name not in values and not field.is_required():
            complete[name] = to_jsonable_python(field.get_default(call_default_factory=True))
    return complete


def open_finished_run(folder: Path) -> FinishedRun:
    """Load the finished run in `folder`.

    Raises:
        InputError: there is no finished run, or it was changed or continued since its report; all reasons are listed.
    """
    status_lines(folder)  # raises if this is not a run folder
    run = FinishedRun(folder.name, folder, read_results(folder / "report" / "results.json"))
    if problems := run.problems():
        raise InputError("this run is not finished", problems)
    return run
