"""Matrix of runs: every combination of the values listed in the config's `matrix`."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from dartune.config.recipe import Recipe, explain
from dartune.config.schema import Config
from dartune.errors import InputError

CANNOT_RUN = "the matrix cannot be run"


def combinations(config: Config) -> list[tuple[str, Config]]:
    """Return (name, config) of every combination, in the order of the keys; each has its own folder in `output`.

    Raises:
        InputError: a key or a value is invalid, or two combinations have the same name.
    """
    keys, values = list(config.matrix), list(config.matrix.values())
    runs, problems = [], []
    for combination in itertools.product(*values):
        name = "-".join(map(_short_name, combination))
        settings = config.model_dump(mode="json") | {"matrix": {}, "output": f"{config.output}/{name}"}
        for key, value in zip(keys, combination, strict=True):
            *parents, last = key.split(".")
            section: Any = settings
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                problems.append(f"matrix: there is no key {key}")
                continue
            section[last] = value
        try:
            runs.append((name, Config.model_validate(settings)))
        except ValidationError as error:
            problems += [f"matrix, {name}: {line}" for line in explain(error, Recipe(), Config)]
    problems += [f"matrix: two combinations are called {name}" for name in _repeated(name for name, _ in runs)]
    if problems:
        raise InputError(CANNOT_RUN, list(dict.fromkeys(problems)))
    return runs


def matrix_error(problems_by_cell: Mapping[str, Sequence[str]]) -> InputError | None:
    """Return the problems of all cells as one error, or None if there are none.

    Cells with the same problems share one list.
    """
    cells_by_problems: dict[tuple[str, ...], list[str]] = {}
    for name, problems in problems_by_cell.items():
        if problems:
            cells_by_problems.setdefault(tuple(problems), []).append(name)
    lines = [
        line
        for problems, names in cells_by_problems.items()
        for line in (f"{', '.join(names)}:", *(f"  {problem}" for problem in problems))
    ]
    return InputError(CANNOT_RUN, lines) if lines else None


def _short_name(value: Any) -> str:
    """Return the last component of a value, usable in a folder name: `lab:values` -> `values`."""
    text = re.split(r"[:/]", str(value).rstrip("/"))[-1]
    return re.sub(r"[^A-Za-z0-9._]+", "_", text) or "empty"


def _repeated(names: Iterable[str]) -> list[str]:
    counts = Counter(names)
    return sorted(name for name in counts if counts[name] > 1)
