"""Write the report of a run, at its end or later from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dartune.answers.checker import AnswerChecker
from dartune.config.load import load_config
from dartune.config.plugins import load_part
from dartune.errors import InputError
from dartune.report.collect import collect
from dartune.report.page import SectionMaker, write_report
from dartune.report.results import build_results
from dartune.report.summary import summarise
from dartune.run.folder import FINISH_HINT, RunFolder
from dartune.stages.context import StageContext
from dartune.stages.prepare import prepare_run


def write_run_report(context: StageContext, sections: Sequence[SectionMaker] = ()) -> str:
    """Write `report/results.json` and the page from the outputs of the stages; return the summary as text."""
    results = build_results(**collect(context))
    return summarise(results, write_report(context.run_folder.folder / "report", results, sections))


def rebuild_report(folder: Path, sections: Sequence[str] = ()) -> str:
    """Write the report of a finished run folder again; return the summary as text.

    Args:
        sections: paths `module:function` of user-defined sections (`report.page.Section`).

    Raises:
        InputError: a section cannot be imported, a stage has not finished, or the data have changed since the run.
    """
    makers = [load_part(name, {}, "--section") for name in sections]
    config = load_config(folder / "config.resolved.yaml")
    with RunFolder(folder) as run_folder, AnswerChecker() as checker:
        data, models = prepare_run(config)
        if run_folder.noted_inputs("data") != {"data": data.fingerprint}:
            raise InputError(f"{config.data.path} has changed since this run was made; {FINISH_HINT.format(folder)}")
        return write_run_report(StageContext(models.config, run_folder, checker, data, models), makers)
