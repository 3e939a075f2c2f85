"""What `dartune lab show` and `dartune lab build` do."""

from __future__ import annotations

import argparse
import re
import shutil

from dartune.errors import InputError
from dartune.lab.build import CHECKPOINTS, MODELS, RECIPES, build_one
from dartune.lab.dialects import DIALECTS
from dartune.progress import Progress


def build(options: argparse.Namespace) -> str:
    """Pretrain every lab model, or the one of `--only`; an interrupted build continues.

    Raises:
        InputError: there is no such model, or --steps is of no use.
    """
    if options.only and options.only not in MODELS:
        raise InputError(f"the lab has no model {options.only!r}: it has {', '.join(MODELS)}")
    if (options.steps is not None or options.rare) and not options.folder:
        raise InputError("--steps and --rare need --output: the models in the package stay what they are")
    if options.steps is not None and options.steps < 1:
        raise InputError("--steps: must be 1 or more")
    _rare(options.rare)
    folder = options.folder or CHECKPOINTS
    for name in [options.only] if options.only else MODELS:
        work = folder / f".{name}.build"
        steps, rare = options.steps or RECIPES[name].steps, _rare(options.rare)
        with Progress(steps, f"lab {name}") as progress:
            build_one(
                name, folder, work, steps, rare, lambda step, row, bar=progress: bar.advance_to(step, loss=row["loss"])
            )
        shutil.rmtree(work)
    return f"Built in {folder}. See what they can do: dartune lab show"


def _rare(words: list[str]) -> dict[str, float]:
    """`DIALECT=SHARE` as a mapping.

    Raises:
        InputError: an unknown dialect, or a share that is none; all are listed.
    """
    found, problems = {}, []
    for word in words:
        dialect, _, share = word.partition("=")
        if dialect not in DIALECTS:
            problems.append(f"{word}: there is no dialect {dialect!r}; there are {', '.join(DIALECTS)}")
        elif not re.fullmatch(r"0?\.\d+|[01]", share):
            problems.append(f"{word}: write a share from 0 to 1, as in {dialect}=0.1")
        else:
            found[dialect] = float(share)
    if problems:
        raise InputError("--rare cannot be used", problems)
    return found


def show(options: argparse.Namespace) -> str:
    from dartune.lab.measure import report

    return report(options.questions, options.folder or CHECKPOINTS)
