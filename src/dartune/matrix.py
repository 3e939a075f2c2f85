"""A matrix of runs: every combination of the values that the config's `matrix` lists."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from dartune.config import Config
from dartune.errors import InputError
from dartune.recipe import Recipe, explain


def cells(config: Config) -> list[tuple[str, Config]]:
    """(name, config) of every combination, in the order of the keys; each has a folder of its own in `output`.

    Raises:
        InputError: a key or a value does not belong into a config, or two combinations would have one name.
    """
    keys, values = list(config.matrix), list(config.matrix.values())
    found, problems = [], []
    for chosen in itertools.product(*values):
        name = "-".join(map(_short, chosen))
        plain = config.model_dump(mode="json") | {"matrix": {}, "output": f"{config.output}/{name}"}
        for key, value in zip(keys, chosen, strict=True):
            *parents, last = key.split(".")
            section: Any = plain
            for parent in parents:
                section = section.get(parent) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                problems.append(f"matrix: there is no key {key}")
                continue
            section[last] = value
        try:
            found.append((name, Config.model_validate(plain)))
        except ValidationError as error:
            problems += [f"matrix, {name}: {line}" for line in explain(error, Recipe(), Config)]
    names = [name for name, _ in found]
    problems += [f"matrix: two combinations are called {name}" for name in _twice(names)]
    if problems:
        raise InputError("the matrix cannot be run", list(dict.fromkeys(problems)))
    return found


def _short(value: Any) -> str:
    """The telling end of a value, fit for a folder's name: `lab:values` -> `values`."""
    text = re.split(r"[:/]", str(value).rstrip("/"))[-1]
    return re.sub(r"[^A-Za-z0-9._]+", "_", text) or "empty"


def _twice(names: Iterable[str]) -> list[str]:
    seen = list(names)
    return sorted({name for name in seen if seen.count(name) > 1})
