"""`dartune adapt` and `load_mapper`: the trained mapper of a run rewrites new rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.answers.checker import AnswerChecker
from dartune.config.load import RECORD
from dartune.config.schema import Config
from dartune.data.records import Demonstration
from dartune.data.run_records import AdaptedRow
from dartune.errors import InputError
from dartune.models.adapter_files import is_adapter
from dartune.rewards.reward import load_reward_parts
from dartune.run.folder import RunFolder
from dartune.run.redaction import printable
from dartune.stages.data import Data, Sources
from dartune.stages.length_limits import too_long
from dartune.trained_mapper.new_rows import overlap, read_new_rows, rows_as_data
from dartune.trained_mapper.source_run import SourceRun, open_source_run

logger = logging.getLogger(__name__)


class TrainedMapper:
    """The trained mapper of a run with the models it needs. Made by `load_mapper`."""

    def __init__(self, run: SourceRun, *, force: bool = False) -> None:
        """Load the models.

        Args:
            force: use the mapper although the target or its template changed since the run; a warning says what did.

        Raises:
            InputError: a model cannot be loaded, or changed since the run; all reasons are listed.
        """
        # Imported here because it loads torch, which takes seconds; problems of run and data are reported without it.
        from dartune.stages.models import RunModels

        self.run, self.models = run, RunModels(run.config)
        self.models.check()
        differences = self.run.model_differences(self.models)
        if differences and not force:
            raise InputError(
                f"the mapper of {run.folder} was trained for another target or template, and the run's thresholds "
                "belong to it; restore what changed, or go on with --force (force=True in Python)",
                [f"changed since the run: {line}" for line in differences],
            )
        for line in differences if distributed.is_main() else ():
            logger.warning("changed since the run: %s", printable(line))
        if differences and (unfit := self._unfit_layers()):
            listed = ", ".join(unfit[:3]) + (f" and {len(unfit) - 3} more" if len(unfit) > 3 else "")
            raise InputError(
                f"the mapper of {run.folder} cannot be applied to {self.models.mapper_path}, not even with --force",
                [f"its adapter has layers that this model lacks or has in another size: {listed}"],
            )

    def _unfit_layers(self) -> list[str]:
        """The layers of the mapper, if it is an adapter, that do not fit the model that it would be attached to."""
        from dartune.models.lora import unfit_layers

        folder = self.run.stage_folder(self.run.mapper) / "model"
        return unfit_layers(self.models.start_engine.model, folder) if is_adapter(folder) else []

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> list[AdaptedRow]:
        """Rewrite rows that are in memory; progress goes to stderr.

        Every row is judged on its own, by the thresholds of the run. Samples depend on a row's position, so the same
        list gives the same rewrites.

        Args:
            rows: each with `question` and `solution`, and optionally `answer` and `id`; the other layouts of
                docs/data-format.md are read as well.

        Returns:
            One adapted row per row, in order. `solution` is the text to train on; `provenance` says what it is
            (`rewrite`, `own`, `natural`, `original` or `dropped`).

        Raises:
            InputError: a row cannot be used; all problems are listed.
        """
        with tempfile.TemporaryDirectory(prefix="dartune-") as folder:
            path = rows_as_data(rows, Path(folder))
            if not path.stat().st_size:
                return []
            data = self.run.config.data.model_copy(update={"path": str(path), "columns": {}, "where": None})
            config = self.run.config.model_copy(update={"data": data})
            sources = read_new_rows(config)
            for line in sources.warnings():
                logger.warning("%s", printable(_without_path(line, path)))
            problems = [_without_path(line, path) for line in sources.problems() or self.too_long(sources.rows)]
            if problems:
                raise InputError("the rows cannot be rewritten", problems)
            with RunFolder(Path(folder) / "adapted") as run_folder:
                return list(self.adapt(sources.rows, config, run_folder))

    def too_long(self, rows: Sequence[Demonstration]) -> list[str]:
        """Problems of rows that do not fit into the context of the models."""
        models = self.models
        contexts = models.contexts[models.target_path], models.contexts[models.mapper_path]
        return too_long(self.run.config, Data(rows, (), {}), models.renderer, *contexts)

    def adapt(self, rows: Sequence[Demonstration], config: Config, folder: RunFolder) -> Sequence[AdaptedRow]:
        """Bring a folder with the stages data, probe and synthesise up to date; returns the adapted rows.

        Args:
            config: that of the run, with the `data` section of the rows.
        """
        from dartune.data.row_store import open_rows
        from dartune.stages.probe import load_calibration
        from dartune.stages.synthesise import decide_on_originals
        from dartune.trained_mapper.stages import NewRowsContext, ProbeNewRows, RewriteNewRows, WriteNewRows

        run = self.run
        with AnswerChecker() as checker:
            context = NewRowsContext(
                config,
                folder,
                checker,
                Data(rows, (), {}),
                self.models,
                calibration=load_calibration(run.stage_folder(run.probe)),
                originals=decide_on_originals(open_rows(run.stage_folder(run.synthesis) / "rows.jsonl")),
                origin=run,
            )
            context.execute(WriteNewRows(context))
            context.execute(ProbeNewRows(context))
            return open_rows(context.execute(RewriteNewRows(context)) / "rows.jsonl")


def load_mapper(
    run: str | Path,
    *,
    seed: int | None = None,
    force: bool = False,
    overrides: Mapping[str, str] | None = None,
) -> TrainedMapper:
    """Load the trained mapper of a run.

    Args:
        run: a run folder; its synthesis must be complete.
        seed: a seed of the run; None: the first one.
        force: use the mapper although the target or its template changed since the run.
        overrides: keys of `execution` and other flags of `dartune adapt`, as in `{"execution.device": "cpu"}`.

    Raises:
        InputError: the run has no such mapper, or its models changed; all reasons are listed.
    """
    folder = Path(run)
    # The run's own data need not exist any more; a copy of its rows does.
    own = {"data.path": str(folder / "stages" / "data" / "train.jsonl")}
    return TrainedMapper(open_source_run(folder, own | dict(overrides or {}), seed), force=force)


def adapt(
    folder: Path,
    data: str,
    output: Path,
    *,
    flags: Mapping[str, str] | None = None,
    seed: int | None = None,
    force: bool = False,
) -> str:
    """Rewrite a data set with the trained mapper of a run, or continue; returns the summary, empty on all ranks but 0.

    Args:
        folder: the run folder.
        data: file, folder or Hub address, read like `data.path`.
        output: folder for the adapted rows; the same call continues in it.
        flags: dotted key -> value as text, for keys that may differ from the run's.

    Raises:
        InputError: the run, the data or the output cannot be used; all reasons are listed.
        MachineError: this machine cannot go on.
    """
    from dartune.trained_mapper.summary import summary

    with distributed.process_group():
        try:
            run = open_source_run(folder, {"data": data, **(flags or {})}, seed)
        except InputError as error:
            raise InputError(error.message, [*error.problems, *_output_problems(output)]) from error
        if problems := _output_problems(output):
            raise InputError("these rows cannot be rewritten", problems)
        with RunFolder(output) as run_folder:
            sources = _read(run)
            shared = overlap(sources.rows, run)
            for line in shared.lines():
                run_folder.log(line)
            mapper = TrainedMapper(run, force=force)
            if problems := mapper.too_long(sources.rows):
                raise InputError("these rows cannot be rewritten", problems)
            mapper.adapt(sources.rows, run.config, run_folder)
            return summary(run, output, shared) if distributed.is_main() else ""


def _read(run: SourceRun) -> Sources:
    """The rows at `data.path`; warnings are logged.

    Raises:
        InputError: the data or a part of the reward cannot be used.
    """
    sources = read_new_rows(run.config)
    for line in sources.warnings() if distributed.is_main() else ():
        logger.warning("%s", printable(line))
    if problems := [*sources.problems(), *load_reward_parts(run.config.reward)[1]]:
        raise InputError("these rows cannot be rewritten", problems)
    return sources


def _output_problems(output: Path) -> list[str]:
    """Why the output folder cannot be used. A run folder could be locked, and its stages would be overwritten."""
    return [f"--output {output} is the folder of a run; choose a new folder"] if (output / RECORD).exists() else []


def _without_path(line: str, path: Path) -> str:
    """A message about rows in memory: `row 3` instead of a line of the temporary file."""
    return line.replace(str(path), "the rows").replace(f"{path.name} line ", "row ")
