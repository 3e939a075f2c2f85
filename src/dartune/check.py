"""What `dartune check` says: all that is worth knowing about data, models and settings, also where no run can start."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dartune.answers.checker import AnswerChecker
from dartune.answers.grading import find_contradictions
from dartune.config.arms import adaptations
from dartune.config.matrix import combinations, matrix_error
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.quality import QualityReport, check_report
from dartune.data.records import Demonstration
from dartune.errors import SHOWN_PROBLEMS, InputError
from dartune.lab import source as lab
from dartune.run.number_format import thousands
from dartune.stages.data import Data
from dartune.stages.prepare import Examination, examine


def check(config: Config, *, every: bool = False) -> str:
    """Read data and models and say what was found; nothing is written.

    Args:
        every: findings name all their rows, not only the first ones.

    Raises:
        InputError: everything that keeps `config` from running, at once; what else was found is in its notes.
    """
    if config.matrix:
        return _check_matrix(config, every=every)
    examination = examine(config, every=every)
    lines = list(examination.data.notes) if examination.data else examination.sources.selections
    lines += [line for read in examination.sources.reads for line in read.facts]
    lines += [f"warning: {line}" for line in examination.sources.warnings(every=every, repeats=False)]
    try:
        lines += _data_lines(examination, every)
    except InputError as error:  # of a user-defined task family
        examination.problems += [] if error.message in examination.problems else [error.message]
    if examination.models is not None:
        lines += [*examination.models.sampling_lines(), *examination.models.memory_lines()]
    hidden = len(examination.problems) > SHOWN_PROBLEMS
    if every and hidden:
        lines += [f"error: {problem}" for problem in examination.problems]
    elif hidden or any(re.search(r" and \d+ more\b", line) for line in (*lines, *examination.problems)):
        lines.append("`dartune check --all` names every row.")
    if examination.problems:
        raise examination.error(lines)
    if examination.data:
        lines.append(_ready_line(examination.data))
    return "\n".join(lines)


def _check_matrix(config: Config, *, every: bool) -> str:
    """Check every cell of a matrix; a problem of one cell does not hide those of another."""
    texts, problems_by_cell = [], {}
    for name, cell in combinations(config):
        try:
            text = check(cell, every=every)
        except InputError as error:
            problems_by_cell[name] = error.problems or (error.message,)
            lines = list(getattr(error, "__notes__", ()))
            if every and len(error.problems) <= SHOWN_PROBLEMS:  # longer lists are in the notes already
                lines += [f"error: {problem}" for problem in error.problems]
            text = "\n".join(lines)
        texts.append(f"{name}\n{text}\n")
    if error := matrix_error(problems_by_cell):
        if not every and error.count > SHOWN_PROBLEMS:
            texts.append("`dartune check --all` lists all problems.")
        error.add_note("\n".join(texts))
        raise error
    return "\n".join(texts)


def _ready_line(data: Data) -> str:
    """That a run can start, with the number of rows of each part."""
    tests = sum(map(len, data.suites.values()))
    return (
        f"Ready: {thousands(len(data.train))} training rows, {thousands(len(data.dev))} development rows, "
        f"{thousands(tests)} test questions; `dartune run` with the same arguments starts the run."
    )


def _data_lines(examination: Examination, every: bool) -> list[str]:
    """The report on the rows of the data, and the warnings about each suite."""
    config, sources = examination.config, examination.sources
    if not len(sources.rows):
        return []
    longest = config.mapper.max_new_tokens if adaptations(config.arms) else None
    with AnswerChecker() as checker:
        renderer = examination.models.renderer if examination.models else None
        lines = _report(sources.rows, checker, renderer, longest, trained=True).lines(every=every)
        for name, rows in () if lab.is_lab(config.data.path) else sources.suites.items():
            lines += [f"warning: suite {name}: {line}" for line in _report(rows, checker).warnings(every=every)]
    return lines


def _report(
    rows: Sequence[Demonstration],
    checker: AnswerChecker,
    renderer: Renderer | None = None,
    longest: int | None = None,
    *,
    trained: bool = False,
) -> QualityReport:
    """The report on rows that are trained on, or on those of a suite."""
    wrong, silent = find_contradictions(rows, checker)
    return check_report(
        rows, renderer, lambda row: row.answer is not None, wrong, silent, longest=longest, trained=trained
    )
