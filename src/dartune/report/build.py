"""Write the report of a run, at its end or later from its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune.answers.checker import AnswerChecker
from dartune.config.load import load_config
from dartune.config.plugins import USER_DEFINED, load_part
from dartune.errors import InputError
from dartune.report.page import Section, SectionMaker, write_report
from dartune.report.results import build_results
from dartune.report.summary import summarise
from dartune.run.folder import FINISH_HINT, RunFolder
from dartune.stages.context import StageContext
from dartune.stages.prepare import prepare_run


def write_run_report(context: StageContext, sections: Sequence[SectionMaker] = ()) -> str:
    """Write `report/results.json` and the page from the outputs of the stages; return the summary as text."""
    # Imported here because it loads torch: problems of the data are reported without it.
    from dartune.report.collect import collect

    results = build_results(**collect(context))
    return summarise(results, write_report(context.run_folder.folder / "report", results, sections))


def rebuild_report(folder: Path, sections: Sequence[str] = ()) -> str:
    """Write the report of a finished run folder again; return the summary as text.

    Args:
        sections: paths `module:function` of user-defined sections (`report.page.Section`).

    Raises:
        InputError: a section cannot be imported, a stage has not finished, or the data have changed since the run.
    """
    makers = [_section_maker(name) for name in sections]
    config = load_config(folder / "config.resolved.yaml")
    with RunFolder(folder) as run_folder, AnswerChecker() as checker:
        data, models = prepare_run(config)
        if run_folder.noted_inputs("data") != {"data": data.fingerprint}:
            raise InputError(f"{config.data.path} has changed since this run was made; {FINISH_HINT.format(folder)}")
        return write_run_report(StageContext(models.config, run_folder, checker, data, models), makers)


def _section_maker(path: str) -> SectionMaker:
    """The user-defined section at `module:function`; what it raises is reported as its error.

    Raises:
        InputError: there is no such function.
    """
    if not USER_DEFINED.fullmatch(path):
        raise InputError(f"--section is {path!r}, but must be module:function")
    function = load_part(path, {}, "--section")

    def make(results: Mapping[str, Any]) -> Section:
        try:
            section = function(results)
        except Exception as error:
            raise InputError(f"--section: {path} fails with {type(error).__name__}: {error}") from error
        if not isinstance(section, Section):
            raise InputError(f"--section: {path} must return a report.page.Section, not {section!r:.80}")
        return section

    return make
