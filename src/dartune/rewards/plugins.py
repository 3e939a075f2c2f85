"""Parts of a reward by name: ours, or one's own by dotted path, `module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dartune.errors import InputError


def part(name: str, ours: Mapping[str, Callable], key: str) -> Callable:
    """The part called `name`; a dotted path is imported, the folder dartune is run in included.

    Raises:
        InputError: there is no such part, module or function, with the config's `key`.
    """
    if name in ours:
        return ours[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise InputError(
            f"{key}: there is no {name!r}; there are {', '.join(ours)}, or a path of your own: module:name"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module_name), attribute, None)
    except ImportError as error:
        raise InputError(
            f"{key}: cannot import {module_name!r} ({error}); looked in {here} and the environment"
        ) from error
    if not callable(found):
        raise InputError(f"{key}: {module_name} has no function {attribute!r}")
    return found
