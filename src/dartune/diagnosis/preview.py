"""`dartune preview`: a few rewrites beside their demonstrations, before a run is paid for."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dartune.answers.checker import AnswerChecker
from dartune.config.load import RECORD, load_config
from dartune.config.schema import Config
from dartune.errors import InputError
from dartune.report.templates import SURPRISE
from dartune.run.number_format import decimals, rounded_percent
from dartune.run.progress import Progress
from dartune.stages.names import mapper_stage, probe_stage
from dartune.stages.prepare import prepare_run

if TYPE_CHECKING:
    from rich.text import Text

    from dartune.diagnosis.measure import MeasuredRewrite, MeasuredRow
    from dartune.engines.base import Engine
    from dartune.stages.models import RunModels

SAMPLES = 3
"""Rewrites per row."""
SHADES = ("", "on grey11", "on grey19", "on grey27", "on dark_orange3", "underline on red3")
"""Styles of tokens in a terminal, from likely to unlikely (`report.templates.SURPRISE`)."""
LISTED_TOKENS = 3
"""Least likely tokens that are named below a solution."""


def preview(config: Config, count: int, mapper: Path | None) -> None:
    """Rewrite a few rows and print them to stdout.

    Args:
        count: training rows to rewrite, chosen at random.
        mapper: run folder or model folder of a trained mapper; None for the initial mapper of `config`. A run folder
            also gives the settings of mapper and reward.

    Raises:
        InputError: the data, a model or a setting is unusable; everything found is listed.
    """
    if mapper is not None and not mapper.is_dir():
        raise InputError(f"--mapper {mapper} is no folder; give a run folder or a model folder")
    run_folder = mapper if mapper is not None and (mapper / "stages").is_dir() else None
    model_folder = mapper
    if run_folder:
        model_folder = _trained_mapper(run_folder, config.seeds[0])
        # A trained mapper answers the request that it was trained with, and its rewrites pass the gates of its run.
        of_run = load_config(run_folder / RECORD)
        config = config.model_copy(update={"mapper": of_run.mapper, "reward": of_run.reward})
    with Progress(None, "data and models"):
        data, models = prepare_run(config)
    # Imported here because they load torch: problems of the data are reported without it.
    from dartune.diagnosis.measure import completions, measure, random_places
    from dartune.stages.probe import load_calibration

    places = random_places(len(data.train), count)
    with (
        tempfile.TemporaryDirectory() as scratch,
        AnswerChecker() as checker,
        _mapper(models, model_folder) as engine,
    ):
        calibration = load_calibration(run_folder / "stages" / probe_stage("dart")) if run_folder else None
        with Progress(len(places) * sum(completions(config, SAMPLES)), "preview") as progress:
            measured, reward, _ = measure(
                data.train,
                places,
                models.config,
                models,
                engine,
                checker,
                SAMPLES,
                Path(scratch),
                calibration=calibration,
                progress=progress,
            )
        _print(measured, models.renderer.decode, reward.limits(), of_run=calibration is not None)


def _trained_mapper(run_folder: Path, seed: int) -> Path:
    stages = run_folder / "stages"
    folder = stages / mapper_stage("dart", seed) / "model"
    if missing := [path for path in (folder, stages / probe_stage("dart") / "thresholds.json") if not path.exists()]:
        raise InputError(f"{run_folder} has no trained mapper of seed {seed} yet; {missing[0]} is missing")
    return folder


@contextmanager
def _mapper(models: RunModels, folder: Path | None) -> Iterator[Engine]:
    if folder is None:
        yield models.start_engine
        return
    with models.mapper(folder) as engine:
        yield engine


def _print(
    rows: Sequence[MeasuredRow], decode: Callable[[Sequence[int]], str], limits: Sequence[str], *, of_run: bool
) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table

    console = Console(file=sys.stdout, highlight=False, soft_wrap=False)
    for row in rows:
        console.rule(f"row {row['id']}", align="left")
        console.print(Padding(row["question"], (0, 2)), markup=False)
        table = Table(show_lines=True, expand=True)
        table.add_column(f"demonstration, alignment {decimals(row['alignment'], 2)}", ratio=1)
        table.add_column("rewrites", ratio=1)
        source = _shaded(row["solution"], row["tokens"], row["logprobs"], decode)
        for index, rewrite in enumerate(row["rewrites"]):
            table.add_row(source if index == 0 else "", _rewrite(rewrite, decode))
        console.print(table)
    rewrites = [item for row in rows for item in row["rewrites"]]
    accepted = sum(item["accepted"] for item in rewrites)
    origin = "those of the run" if of_run else f"measured on these {len(rows)} rows only"
    console.print(
        f"{accepted} of {len(rewrites)} rewrites are accepted ({rounded_percent(accepted / len(rewrites))}). The "
        f"thresholds of the gates are {origin}. Unlikely tokens are shaded; the least likely ones are listed with "
        "their log-probability (nats)."
    )
    for limit in limits:
        console.print(f"warning: {limit}", markup=False)


def _rewrite(rewrite: MeasuredRewrite, decode: Callable[[Sequence[int]], str]) -> Text:
    """A rewrite with its verdict."""
    from rich.text import Text

    verdict = "accepted" if rewrite["accepted"] else f"rejected by {', '.join(rewrite['failed'])}"
    figures = f", alignment {decimals(rewrite['alignment'], 2)}, reward {decimals(rewrite['reward'], 2)}\n"
    head = Text(verdict, style="green" if rewrite["accepted"] else "red") + Text(figures)
    return head + _shaded(rewrite["text"], rewrite["ids"], rewrite["logprobs"], decode)


def _shaded(
    solution: str, ids: Sequence[int], logprobs: Sequence[float], decode: Callable[[Sequence[int]], str]
) -> Text:
    """A solution with its tokens shaded by surprise, and the least likely ones listed below."""
    from rich.text import Text

    from dartune.report.rewrite_examples import tokens_with_logprobs

    tokens = tokens_with_logprobs(decode, ids, logprobs)
    text = Text()
    for token, logprob in tokens:
        text.append(token, style=SHADES[sum(-logprob >= bound for bound in SURPRISE)])
    lowest = sorted((token for token in tokens if token[0].strip()), key=lambda token: token[1])[:LISTED_TOKENS]
    listed = ", ".join(f"{token.strip()} {logprob:.1f}" for token, logprob in lowest)
    return (text if text.plain.strip() else Text(solution)) + Text(f"\n{listed}", style="dim")
