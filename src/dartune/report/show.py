"""`dartune show`: prompts as the model receives them, or the rewrites of a run."""

from __future__ import annotations

from pathlib import Path

from dartune.config.load import load_config
from dartune.config.schema import Config
from dartune.data.quality import show_rows
from dartune.errors import InputError
from dartune.report.rewrite_examples import format_rewrites
from dartune.stages.prepare import prepare_run

SHOWN_ROWS = 3


def show(subject: Config | Path, what: str) -> str:
    """Return the first rendered rows of a recipe's data, or the first rewrites of a run folder, as text.

    Raises:
        InputError: rewrites were requested, but `subject` is not a run folder with rewrites.
    """
    if what == "rewrites":
        if not isinstance(subject, Path):
            raise InputError("`show rewrites` needs a run folder, for example runs/lab")
        return format_rewrites(subject)
    config = load_config(subject / "config.resolved.yaml") if isinstance(subject, Path) else subject
    data, models = prepare_run(config)
    return show_rows(data.train, models.renderer, SHOWN_ROWS)
