"""The commands `dartune lab show` and `dartune lab build`."""

from __future__ import annotations

import argparse
import re
import shutil

from dartune.errors import InputError
from dartune.lab.build import CHECKPOINTS, MODELS, RECIPES, build_one
from dartune.lab.dialects import DIALECTS
from dartune.run.progress import Progress


def build(options: argparse.Namespace) -> str:
    """Pretrain all lab models, or only the one named by `--only`; an interrupted build resumes.

    Raises:
        InputError: the model is unknown, or an option has an invalid value.
    """
    if options.only and options.only not in MODELS:
        raise InputError(f"the lab has no model {options.only!r}; available: {', '.join(MODELS)}")
    if (options.steps is not None or options.rare) and not options.folder:
        raise InputError("--steps and --rare need --output: the models in the package are not replaced by variants")
    if options.steps is not None and options.steps < 1:
        raise InputError("--steps: must be 1 or more")
    _sampling_weights(options.rare)
    folder = options.folder or CHECKPOINTS
    for name in [options.only] if options.only else MODELS:
        work = folder / f".{name}.build"
        steps, rare = options.steps or RECIPES[name].steps, _sampling_weights(options.rare)
        with Progress(steps, f"lab {name}") as progress:
            build_one(
                name, folder, work, steps, rare, lambda step, row, bar=progress: bar.advance_to(step, loss=row["loss"])
            )
        shutil.rmtree(work)
    return f"Built in {folder}. To measure the models, run: dartune lab show"


def _sampling_weights(arguments: list[str]) -> dict[str, float]:
    """Parse the `DIALECT=WEIGHT` arguments of `--rare`.

    Raises:
        InputError: an unknown dialect or an invalid weight; all invalid arguments are listed.
    """
    weights, problems = {}, []
    for argument in arguments:
        dialect, _, weight = argument.partition("=")
        if dialect not in DIALECTS:
            problems.append(f"{argument}: unknown dialect {dialect!r}; available: {', '.join(DIALECTS)}")
        elif not re.fullmatch(r"0?\.\d+|[01]", weight):
            problems.append(f"{argument}: the weight must be between 0 and 1, for example {dialect}=0.1")
        else:
            weights[dialect] = float(weight)
    if problems:
        raise InputError("invalid value of --rare", problems)
    return weights


def show(options: argparse.Namespace) -> str:
    """Measure the lab models and return the tables as Markdown."""
    from dartune.lab.measure import report

    with Progress(None, "lab show"):
        return report(options.questions, options.folder or CHECKPOINTS)
