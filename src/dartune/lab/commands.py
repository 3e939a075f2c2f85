"""What `dartune lab show` and `dartune lab build` do."""

from __future__ import annotations

import argparse
import shutil

from dartune.errors import InputError
from dartune.lab.build import CHECKPOINTS, MODELS, RECIPES, build_one
from dartune.progress import Progress


def build(options: argparse.Namespace) -> str:
    """Pretrain every lab model, or the one of `--only`; an interrupted build continues.

    Raises:
        InputError: there is no such model, or --steps is of no use.
    """
    if options.only and options.only not in MODELS:
        raise InputError(f"the lab has no model {options.only!r}: it has {', '.join(MODELS)}")
    if options.steps is not None and (options.steps < 1 or not options.folder):
        raise InputError("--steps takes 1 or more, and needs --output: the models in the package stay what they are")
    folder = options.folder or CHECKPOINTS
    for name in [options.only] if options.only else MODELS:
        work = folder / f".{name}.build"
        steps = options.steps or RECIPES[name].steps
        with Progress(steps, f"lab {name}") as progress:
            build_one(name, folder, work, steps, lambda step, row, bar=progress: bar.advance_to(step, loss=row["loss"]))
        shutil.rmtree(work)
    return f"Built in {folder}. See what they can do: dartune lab show"


def show(options: argparse.Namespace) -> str:
    from dartune.lab.measure import report

    return report(options.questions, options.folder or CHECKPOINTS)
