"""A run that has ended, as later commands read it: its results, its settings, and what its stages left."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dartune import lock
from dartune.config import HUB_ID, Config
from dartune.errors import InputError
from dartune.files import read_json
from dartune.inputs import model_name
from dartune.recipe import read_recipe
from dartune.report.judged import judged
from dartune.report.results import read_results
from dartune.run import DONE, STARTED, changes, lost_outputs, read_jsonl
from dartune.status import status_lines
from dartune.train_arms import evaluation_stage, train_stage

SHOWN_CHANGES = 3


@dataclass(frozen=True)
class Finished:
    """A run folder with a report."""

    name: str
    folder: Path
    results: dict[str, Any]

    @cached_property
    def asked(self) -> dict[str, dict[str, dict[int, dict[str, float | None]]]]:
        """arm -> suite -> seed -> question id -> 1.0 where it is right, None without a verdict."""
        found: dict[str, dict[str, dict[int, dict[str, float | None]]]] = {}
        for arm in self.results["arms"]:
            for seed in self.results["seeds"]:
                for row in read_jsonl(self.folder / "stages" / evaluation_stage(arm, seed) / "records.jsonl"):
                    by_seed = found.setdefault(arm, {}).setdefault(row["suite"], {})
                    right = row["correct"]
                    by_seed.setdefault(seed, {})[row["id"]] = None if right is None else float(right)
        return found

    @cached_property
    def records(self) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
        """As `asked`, of the questions that the results are about: those with a verdict in every arm."""
        return judged(self.asked, lambda right: right)[0]

    @cached_property
    def config(self) -> Config:
        """The settings that the results were measured with."""
        return Config.model_validate(self.results["config"])

    def learning_rate(self, arm: str, seed: int) -> float:
        """The one that dev accuracy chose."""
        return self.results["learning_rates"][arm][str(seed)]["chosen"]

    def model_stage(self, arm: str, seed: int) -> str:
        """The stage that keeps a trained arm's chosen model."""
        return train_stage(arm, seed, self.learning_rate(arm, seed))

    def stage(self, name: str) -> Path:
        return self.folder / "stages" / name

    def done(self, stage: str) -> dict[str, Any]:
        """What a complete stage says of itself: `inputs`, `cost`, and `files` with their sizes in bytes.

        Raises:
            InputError: it is not complete, or its files are not those that it left.
        """
        done = read_json(self.stage(stage) / DONE)
        if done is None:
            raise InputError(f"the stage {stage} of {self.folder} is not complete; {self._end_it}")
        if lost := lost_outputs(self.stage(stage), done):
            raise InputError(f"{self.stage(stage) / lost[0]} is missing or was changed; {self._end_it}")
        return done

    def model_name(self, address: str) -> str:
        """What to call a model of the config in public."""
        return model_name(address, is_folder=not self.from_hub(address))

    def from_hub(self, address: str) -> bool:
        """Whether a model came from the Hub: stages note such a one by its id, a folder by its content's hash."""
        return bool(HUB_ID.fullmatch(address.removeprefix("hub:"))) and any(
            isinstance(known, str) and (known == address or known.startswith(f"{address}/"))
            for mark in self.folder.glob(f"stages/*/{DONE}")
            for value in (read_json(mark) or {"inputs": {}})["inputs"].values()
            for known in (value if isinstance(value, list) else [value])
        )

    @property
    def _end_it(self) -> str:
        return f"end the run first: dartune run {self.folder / 'config.resolved.yaml'}"

    def problems(self) -> list[str]:
        """What keeps the report from being about what the stages hold now."""
        found = []
        if lock.is_held(self.folder):
            found.append(f"{self.folder} is in use by {lock.holder(self.folder)}; wait for it")
        settings = read_recipe(self.folder / "config.resolved.yaml").values
        if changed := [text for text in changes(self.results["config"], settings) if not text.startswith(FILLED_IN)]:
            shown = ", ".join(changed[:SHOWN_CHANGES])
            found.append(f"{self.folder}: settings were changed since its report ({shown}); {self._end_it}")
        under_way = sorted(mark.parent.name for mark in self.folder.glob(f"stages/*/{STARTED}"))
        if under_way := [name for name in under_way if not (self.stage(name) / DONE).exists()]:
            found.append(f"{self.folder}: {', '.join(under_way)} not complete; {self._end_it}")
        return found


FILLED_IN = "target.other "
"""A setting that the lab may choose, so that the report has it and the recipe has not."""


def opened(folder: Path) -> Finished:
    """The finished run in `folder`.

    Raises:
        InputError: there is none, or it was taken up again since; all that is wrong is listed.
    """
    status_lines(folder)  # says so where there is no run
    run = Finished(folder.name, folder, read_results(folder / "report" / "results.json"))
    if problems := run.problems():
        raise InputError("this run is not finished", problems)
    return run
