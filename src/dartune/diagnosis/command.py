"""`dartune diagnose`: measure a few rows in the run's folder, and say what to do with the data."""

from __future__ import annotations

from pathlib import Path

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.schema import Config
from dartune.diagnosis.recommend import OPTIONS, recommend
from dartune.errors import InputError
from dartune.run.folder import RunFolder
from dartune.stages.names import DIAGNOSIS
from dartune.stages.prepare import WriteData, start

ROWS = 64
"""Rows that are measured by default."""


def diagnose(config: Config, rows: int, flags: list[str]) -> str:
    """Diagnose the data of `config` for its target and return the text; the page is in `diagnosis/` of the run folder.

    Args:
        rows: training rows to measure.
        flags: the command's recipe and flags, for the `dartune run` that the text recommends.

    Raises:
        InputError: the data, a model or a setting is unusable; everything found is listed.
    """
    if config.matrix:
        raise InputError("diagnose measures one data set and one target, and the recipe has a matrix; remove it")
    with distributed.process_group(), RunFolder(Path(config.output)) as folder, AnswerChecker() as checker:
        context = start(config, folder, checker)
        # Imported here because they load torch: problems of the data are reported without it.
        from dartune.diagnosis.page import diagnosis_text, write_page
        from dartune.diagnosis.stage import Diagnose, load_diagnosis
        from dartune.planning.estimate import Planner

        context.execute(WriteData(context))
        context.execute(Diagnose(context, rows))
        planner = Planner(context)
        if not distributed.is_main():
            return ""
        findings, limits, measured = load_diagnosis(context.folder(DIAGNOSIS))
        costs = {name: planner.estimate(option.arms) for name, option in OPTIONS.items() if option.arms}
        recommendation = recommend(findings)
        others = [flag for flag in flags if not flag.startswith("--arms=")]
        command = [*others, "--arms", ",".join(OPTIONS[recommendation.option].arms)]
        page = write_page(
            folder.folder / DIAGNOSIS,
            config.name,
            findings,
            recommendation,
            limits,
            costs,
            measured,
            command,
            context.models.renderer.decode,
        )
        return diagnosis_text(findings, recommendation, limits, costs, command, page)
