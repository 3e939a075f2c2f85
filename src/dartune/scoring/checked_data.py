"""The data and the target of `dartune score`, checked together before anything is computed."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dartune import distributed
from dartune.config.schema import Config
from dartune.data.file_encoding import RawRow
from dartune.data.readers import read_rows
from dartune.data.records import Demonstration
from dartune.data.row_filter import RowFilter
from dartune.data.row_store import select_rows
from dartune.data.table_writer import FORMATS, column_types, write_problems
from dartune.errors import InputError
from dartune.models.model_files import file_problems
from dartune.run.redaction import printable, shown
from dartune.stages import data as run_data

if TYPE_CHECKING:
    from dartune.stages.models import RunModels

logger = logging.getLogger(__name__)

SAMPLED_ROWS = 64
"""Rows whose questions the target solves itself. With the default of 4 samples each, the standard error of
`alignment_percentile` is at most 0.03; `reward.own_samples` sets the number of samples."""
SUBSET_SEED = 0


@dataclass(frozen=True)
class CheckedData:
    """Rows that can be scored, and the target.

    Args:
        read: every row of the data.
        chosen: indices of the rows to score, (rows,) int64, ascending; `data.limit` of them, chosen at random.
        types: Arrow types of the data's own columns.
    """

    config: Config
    read: Sequence[Demonstration]
    chosen: np.ndarray
    types: dict[str, Any]
    models: RunModels

    @property
    def rows(self) -> Sequence[Demonstration]:
        """The rows to score."""
        return select_rows(self.read, self.chosen)

    @property
    def sampled(self) -> list[Demonstration]:
        """A random subset of the rows to score, whose questions the target solves itself."""
        count = min(SAMPLED_ROWS, len(self.chosen)) if self.config.reward.own_samples else 0
        return [self.rows[i] for i in sorted(random.Random(SUBSET_SEED).sample(range(len(self.chosen)), count))]

    def contents(self) -> Iterator[dict[str, Any]]:
        """The rows to score with their own columns, read again from the data.

        Raises:
            InputError: the data changed since they were checked.
        """
        rows, position = self.rows, 0
        for index, (place, content) in enumerate(_raw_rows(self.config, self.read)):
            if position < len(rows) and index == self.chosen[position]:
                known = rows[position].place
                if isinstance(content, str) or (known != place and not known.startswith(f"{place} (")):
                    break
                yield content
                position += 1
        if position < len(rows):
            raise InputError(f"{shown(self.config.data.path)} changed while it was scored; repeat the command")


def checked_data(config: Config, output: Path, added: Sequence[str]) -> CheckedData:
    """Check settings, data and target.

    Args:
        output: the file that will be written.
        added: names of the columns that will be added.

    Raises:
        InputError: all problems.
    """
    # Other models and the suites of a recipe are not needed, so they are neither checked nor loaded.
    config = config.model_copy(
        update={
            "arms": ("base",),
            "mapper": config.mapper.model_copy(update={"path": None}),
            "target": config.target.model_copy(update={"other": None}),
            "evaluate": config.evaluate.model_copy(update={"suites": {}}),
        }
    )
    problems, data_problems, sources = _setting_problems(config, output), [], run_data.Sources()
    try:
        sources = run_data.read(config)
        data_problems += sources.problems()
        for line in sources.warnings() if distributed.is_main() else ():
            logger.warning("%s", printable(line))
    except InputError as error:
        data_problems += error.problems or [error.message]
    types: dict[str, Any] = {}
    if not data_problems and output.suffix in FORMATS:
        types, column_problems = _column_types(config, sources, output, added)
        problems += column_problems
    chosen = np.arange(len(sources.rows))
    if config.data.limit is not None and config.data.limit < len(chosen):
        chosen = np.array(sorted(random.Random(SUBSET_SEED).sample(range(len(chosen)), config.data.limit)))
    checked = None
    try:
        if data_problems:
            problems += file_problems(run_data.model_paths(config).values())
        else:
            checked = CheckedData(config, sources.rows, chosen, types, _loaded_target(config))
            problems += _too_long(checked)
    except InputError as error:
        problems += error.problems or [error.message]
    if problems or data_problems or checked is None:
        raise InputError("the data cannot be scored", [*data_problems, *problems])
    return checked


def _setting_problems(config: Config, output: Path) -> list[str]:
    from dartune.rewards.reward import alignment_score

    problems = []
    if output.suffix not in FORMATS:
        problems.append(f"--output {output}: the name must end with {', '.join(FORMATS)}")
    elif output.is_dir():
        problems.append(f"--output {output} is a folder; name a file in it")
    elif output.exists() and Path(config.data.path).exists() and output.samefile(config.data.path):
        problems.append(f"--output {output} is the data itself; name another file")
    if config.matrix:
        problems.append("matrix: one data set is scored under one target; remove this key")
    try:
        alignment_score(config.reward)
    except InputError as error:
        problems.append(error.message)
    return problems


def _column_types(
    config: Config, sources: run_data.Sources, output: Path, added: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The Arrow types of the data's own columns, and the reasons why they cannot be written to `output`."""
    file = None if sources.parts else Path(config.data.path)
    contents = (row.content for row in _raw_rows(config, sources.rows) if not isinstance(row.content, str))
    types, problems = column_types(contents, file)
    if output.suffix == ".jsonl":
        problems = []  # a JSON value needs no type that all rows share
    problems += write_problems(output, types)
    if problems:
        problems[-1] += "; .jsonl holds any values" if output.suffix != ".jsonl" else "; use .parquet"
    repeated = [name for name in added if name in types]
    if repeated:
        names = ", ".join(map(repr, repeated))
        problems.append(f"{config.data.path} has columns of the names that are added: {names}; rename or remove them")
    return types, problems


def _loaded_target(config: Config) -> RunModels:
    # Imported here because it loads torch, which takes seconds; problems of the data are reported without it.
    from dartune.stages.models import RunModels

    models = RunModels(config)
    models.check()
    return models


def _too_long(data: CheckedData) -> list[str]:
    """The rows that do not fit into the target's context."""
    from dartune.stages.length_limits import Use, over

    use = Use("question and solution", None, data.rows, lambda row: row.question, None)
    line = over(use, data.models.renderer, data.models.contexts[data.models.target_path])
    return [line] if line else []


def _raw_rows(config: Config, read: Sequence[Demonstration]) -> Iterator[RawRow]:
    """Every row with its own columns; rows that are generated have those of a demonstration."""
    if run_data.is_file(config.data.path) or config.data.path.startswith("hub:"):
        rows, where = read_rows(config.data.path, "train"), config.data.where
        return RowFilter(config.data.path, where).apply(rows) if where else rows
    names = ("id", "question", "solution", "answer")
    return (RawRow(row.place, {name: getattr(row, name) for name in names}) for row in read)
