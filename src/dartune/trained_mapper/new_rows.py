"""New rows for a trained mapper: read like the data of a run, and compared with the rows that the run had."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dartune.config.schema import Config
from dartune.data.records import Demonstration
from dartune.data.split import questions
from dartune.errors import InputError, counted
from dartune.stages.data import Sources, read
from dartune.trained_mapper.source_run import SourceRun

FILE = "rows.jsonl"


@dataclass(frozen=True)
class Overlap:
    """How many of the new rows ask a question of the run; wording that differs in case or spacing is the same.

    Args:
        trained: questions of the training rows, which the mapper was trained on.
        tested: the same by test suite; suites without such a question are left out.
    """

    trained: int
    tested: dict[str, int]

    def lines(self) -> list[str]:
        """What the user should know, a sentence each."""
        lines = []
        if self.trained:
            lines.append(f"{_asking(self.trained)} of the run's training rows, which the mapper was trained on.")
        for suite, count in self.tested.items():
            lines.append(
                f"warning: {_asking(count)} of the run's test suite {suite}; a model that is trained on them cannot be "
                "tested on that suite."
            )
        return lines


def _asking(count: int) -> str:
    return counted(count, "new row asks a question", "new rows ask a question")


def overlap(rows: Sequence[Demonstration], run: SourceRun) -> Overlap:
    """Compare the questions of new rows with those of the run."""
    asked = questions(rows)

    def shared(others: Sequence[Demonstration]) -> int:
        return int(np.isin(asked, questions(others)).sum())

    tested = {name: shared(suite) for name, suite in run.suites().items()}
    return Overlap(shared(run.training_rows()), {name: count for name, count in tested.items() if count})


def read_new_rows(config: Config) -> Sources:
    """The rows at `data.path`, without a split; problems are part of the result."""
    try:
        return read(config)
    except InputError as error:  # the lab has no such data
        raise InputError("the data cannot be used", error.problems or [error.message]) from error


def rows_as_data(rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Write rows that are given in memory to a file, so that they are read and checked like any other data.

    Raises:
        InputError: a row cannot be written as JSON.
    """
    path, problems = folder / FILE, []
    with path.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows, start=1):
            try:
                stream.write(json.dumps(row) + "\n")
            except (TypeError, ValueError) as error:
                problems.append(f"row {number}: {error}")
    if problems:
        raise InputError("the rows cannot be rewritten", problems)
    return path
