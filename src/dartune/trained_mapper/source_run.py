"""The run whose mapper is applied to new rows: its settings and stages, and whether they still belong together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dartune.config.arms import adaptations, with_dependencies
from dartune.config.load import RECORD, load_config
from dartune.config.recipe import FLAG_NAMES, drop_removed_keys, read_recipe
from dartune.config.schema import Config
from dartune.data.records import Demonstration
from dartune.data.row_store import Rows, demonstration_from_dict, open_rows
from dartune.errors import InputError
from dartune.models.adapter_files import is_adapter
from dartune.run.files import read_json
from dartune.run.folder import DONE, FINISH_HINT, changes, lost_outputs
from dartune.run.status import status_lines
from dartune.stages.names import mapper_stage, probe_stage, synthesis_stage, warmup_stage

if TYPE_CHECKING:
    from dartune.stages.models import RunModels

ADAPTATION = "dart"
DATA_STAGE = "data"
CHANGEABLE = ("data.path", "data.columns", "data.where", "data.task", "target.path", "mapper.path")
"""Keys that may differ from the run, besides those of `execution`: how the new rows are read, and where the run's own
models are now. All others belong to the mapper as it was trained."""
FLAGS = (
    "--data",
    "--output",
    "--seed",
    "--force",
    "--data.columns",
    "--data.where",
    "--data.task",
    "--target",
    "--mapper.path",
)
"""The flags of `dartune adapt`, besides the keys of `execution`."""


@dataclass(frozen=True)
class SourceRun:
    """A run with a complete synthesis by a trained mapper.

    Args:
        config: the run's settings with the flags of the call; `mapper.path` is the model that the stage of the mapper
            builds on, or that stage's own model if it is a full one.
        initial_mapper, data_path: `mapper.path` and `data.path` of the run.
        records: stage name -> record of the complete stage (`DONE`).
    """

    folder: Path
    seed: int
    config: Config
    initial_mapper: str | None
    data_path: str
    records: Mapping[str, Mapping[str, Any]]

    @property
    def mapper(self) -> str:
        return mapper_stage(ADAPTATION, self.seed)

    @property
    def synthesis(self) -> str:
        return synthesis_stage(ADAPTATION, self.seed)

    @property
    def probe(self) -> str:
        return probe_stage(ADAPTATION)

    def stage_folder(self, stage: str) -> Path:
        return self.folder / "stages" / stage

    def key(self, stage: str) -> str:
        return self.records[stage]["key"]

    def training_rows(self) -> Rows[Demonstration]:
        return open_rows(self.stage_folder(DATA_STAGE) / "train.jsonl", demonstration_from_dict)

    def suites(self) -> dict[str, Rows[Demonstration]]:
        """The rows of each test suite of the run."""
        paths = sorted(self.stage_folder(DATA_STAGE).glob("suite-*.jsonl"))
        return {path.stem.removeprefix("suite-"): open_rows(path, demonstration_from_dict) for path in paths}

    def model_differences(self, models: RunModels) -> list[str]:
        """What has changed in the models, the template and the system prompt since the run, one line each."""
        target = self.config.target.path
        parts = (
            f"the files of the target {target}",
            f"the tokenizer, the chat template, target.system_prompt or target.thinking of {target}",
            "target.dtype",
        )
        then, now = (
            fingerprint.rsplit("/", 2)
            for fingerprint in (self.records[self.probe]["inputs"]["target"], models.target_fingerprint)
        )
        lines = [part for part, before, after in zip(parts, then, now, strict=True) if before != after]
        start = self.records[self.mapper]["inputs"]["start"]
        # A full mapper and a warm-up are files of the run, and their records were checked when it was opened.
        if models.mapper_path not in (models.target_path, *map(str, self._own_models())) and (
            models.mapper_fingerprint != start
        ):
            lines.append(
                f"the files of the initial mapper {models.mapper_path}, which the trained mapper is an adapter of"
            )
        return lines

    def _own_models(self) -> list[Path]:
        return [self.stage_folder(stage) / "model" for stage in (self.mapper, warmup_stage(ADAPTATION))]


def open_source_run(folder: Path, flags: Mapping[str, str], seed: int | None = None) -> SourceRun:
    """Read the settings and the records of a run.

    Args:
        flags: dotted key -> value, for keys in `CHANGEABLE` and of `execution`.
        seed: a seed of the run; None: the first one.

    Raises:
        InputError: there is no run with a complete synthesis, its stages do not belong together, or a flag cannot be
            used; all reasons are listed.
    """
    unusable = f"the mapper of {folder} cannot be applied"
    try:
        status_lines(folder)  # raises if this is not a run folder
    except InputError as error:
        raise InputError(unusable, [error.message, *error.problems]) from error
    if not (folder / RECORD).exists():
        hint = "give the output of `dartune run`"
        raise InputError(unusable, [f"{folder} is not the folder of a run: it has no {RECORD}; {hint}"])
    values = read_recipe(folder / RECORD).values
    drop_removed_keys(values, recorded=True)
    seeds, mapper_values = values.get("seeds") or [0], values.get("mapper") or {}
    fixed_flags = _fixed_flags(flags)
    problems = list(fixed_flags.values())
    if seed is not None and seed not in seeds:
        raise InputError(unusable, [f"--seed {seed}: the run has {', '.join(map(str, seeds))}", *problems])
    seed = int(seeds[0]) if seed is None else seed
    if not _trains_mapper(values.get("arms") or ()):
        arms = ", ".join(values["arms"])
        no_mapper = f"{folder} has no trained mapper: its arms are {arms}; run it again with the arm {ADAPTATION}"
        raise InputError(unusable, [no_mapper, *problems])
    warmed = bool(mapper_values.get("format_steps"))
    stages = [DATA_STAGE, probe_stage(ADAPTATION), mapper_stage(ADAPTATION, seed), synthesis_stage(ADAPTATION, seed)]
    records, incomplete = _records(folder, [*stages, *([warmup_stage(ADAPTATION)] if warmed else [])])
    if incomplete:
        raise InputError(unusable, [*incomplete, *problems])
    model = folder / "stages" / mapper_stage(ADAPTATION, seed) / "model"
    warm = folder / "stages" / warmup_stage(ADAPTATION) / "model" if warmed else None
    own = warm if is_adapter(model) else model
    if own and "mapper.path" in flags:
        problems.append("--mapper.path: the mapper of this run needs no other model; leave the flag out")
    # The run's suites need not exist any more, and arms other than dart need nothing here.
    own_values = {"evaluate.suites": "{}", "arms": ADAPTATION} | ({"mapper.path": str(own)} if own else {})
    overrides = {flag: text for flag, text in flags.items() if flag not in fixed_flags} | own_values
    try:
        # A condition on the run's rows is none on the new rows, which may not have its columns.
        config = load_config(folder / RECORD, {"data.where": "null"} | overrides)
    except InputError as error:
        raise InputError(unusable, [*error.problems, *problems]) from error
    problems += [*_stale_stages(folder, stages, records), *_changed_settings(folder, stages, records, config)]
    if config.execution.server and config.mapper.path:
        problems.append(
            "execution.server: a server samples from adapters of the target, and the mapper of this run is none; add "
            "--execution.server null"
        )
    if problems:
        raise InputError(unusable, problems)
    return SourceRun(folder, seed, config, mapper_values.get("path"), values["data"]["path"], records)


def _fixed_flags(flags: Mapping[str, str]) -> dict[str, str]:
    """The flags that a call cannot give, each with the problem."""
    problems = {}
    for flag in flags:
        if FLAG_NAMES.get(flag, flag) in CHANGEABLE or flag.startswith("execution."):
            continue
        close = difflib.get_close_matches(f"--{flag}", FLAGS, n=1, cutoff=0.75)
        problems[flag] = f"--{flag} cannot be changed: the settings of the run apply, with which the mapper was trained"
        problems[flag] += f"; did you mean {close[0]}?" if close else f". Flags: {', '.join(FLAGS)}, keys of execution"
    return problems


def _trains_mapper(arms: Sequence[str]) -> bool:
    try:
        return ADAPTATION in adaptations(with_dependencies(arms))
    except InputError:  # a user-defined arm that cannot be imported here; the records decide
        return True


def _records(folder: Path, stages: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The records of the complete stages, and a problem for each of the others."""
    records, problems, hint = {}, [], FINISH_HINT.format(folder)
    for stage in stages:
        record = read_json(folder / "stages" / stage / DONE)
        if record is None:
            problems.append(f"the stage {stage} is not complete; {hint}")
        elif lost := lost_outputs(folder / "stages" / stage, record):
            problems.append(f"{folder / 'stages' / stage / lost[0]} is missing or was changed; {hint}")
        else:
            records[stage] = record
    return records, problems


def _stale_stages(folder: Path, stages: Sequence[str], records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A problem for every stage that was made from an earlier state of the stage before it."""
    data, probe, mapper, synthesis = stages
    links = [(probe, DATA_STAGE, data), (mapper, "probe", probe), (synthesis, "mapper", mapper)]
    if (warmup := warmup_stage(ADAPTATION)) in records:
        links.append((mapper, "start", warmup))
    return [
        f"the stage {before} was run again since {stage} was made; {FINISH_HINT.format(folder)}"
        for stage, name, before in links
        if records[stage]["inputs"][name] != records[before]["key"]
    ]


def _changed_settings(
    folder: Path, stages: Sequence[str], records: Mapping[str, Mapping[str, Any]], config: Config
) -> list[str]:
    """A problem if the settings in the folder are not those that the stages were made with."""
    _, probe, mapper, synthesis = stages
    # Where the model lies now is no setting of the mapper: its content is compared.
    settings = config.mapper.model_dump(mode="json", exclude={"path"})
    now = {
        probe: {"reward": config.reward.model_dump(mode="json")},
        mapper: {"mapper": settings},
        synthesis: {"synthesise": config.synthesise.model_dump(mode="json")},
    }
    differences = []
    for stage, sections in now.items():
        for name, section in sections.items():
            recorded = records[stage]["inputs"][name]
            # A key that only one side has belongs to another version of dartune, which gave it its default.
            keys = [key for key in recorded if key in section]
            differences += changes({key: recorded[key] for key in keys}, {key: section[key] for key in keys}, name)
    if not differences:
        return []
    return [
        f"settings were changed since its mapper was trained ({', '.join(differences)}); {FINISH_HINT.format(folder)}"
    ]
