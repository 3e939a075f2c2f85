"""Look up built-in parts by name, and user-defined ones by a dotted path `module:name`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dartune.errors import InputError

T = TypeVar("T")
USER_DEFINED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""A dotted path to a user-defined part."""


class Registry(dict[str, T]):
    """Built-in parts by name. A key `module:name` that is not in it is imported on first use.

    Args:
        parts: the built-in parts.
        key: config key that the names come from, for error messages.
        kind: type that a user-defined part must have.
    """

    def __init__(self, parts: Mapping[str, T], key: str, kind: type[T]):
        super().__init__(parts)
        self.key, self.kind = key, kind

    def __missing__(self, name: str) -> T:
        if not USER_DEFINED.fullmatch(name):
            raise KeyError(name)
        part = import_part(name, self.key)
        if not isinstance(part, self.kind):
            raise InputError(f"{self.key}: {name} is of type {type(part).__name__}, not {self.kind.__name__}")
        self[name] = part
        return part


def plain_name(name: str) -> str:
    """Return a part's name without its module: `my_arms:terse` is `terse`."""
    return name.rpartition(":")[2]


def load_part(name: str, built_in: Mapping[str, Callable], key: str) -> Callable:
    """Return the function called `name`. A path `module:function` is imported, also from the working directory.

    Args:
        name: name of a built-in part, or `module:function`.
        built_in: the built-in parts by name.
        key: config key that `name` comes from, for error messages.

    Raises:
        InputError: there is no such part, module or function.
    """
    if name in built_in:
        return built_in[name]
    if ":" not in name:
        raise InputError(
            f"{key}: there is no {name!r}; there are {', '.join(built_in)}, or a path of your own: module:name"
        )
    function = import_part(name, key)
    if not callable(function):
        raise InputError(f"{key}: {name} is not a function")
    return function


def import_part(name: str, key: str) -> Any:
    """Return what a path `module:name` refers to; modules are also looked for in the working directory.

    Raises:
        InputError: there is no such module, or it has no such name.
    """
    module_name, _, attribute = name.partition(":")
    working_directory = str(Path.cwd())
    if working_directory not in sys.path:
        # Appended, so that installed packages take precedence over files in the working directory.
        sys.path.append(working_directory)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"{key}: cannot import {module_name!r} ({error}); looked in {working_directory} and the environment"
        ) from error
    except (Exception, SystemExit) as error:  # the user's code runs at import and may raise anything
        raise InputError(f"{key}: importing {module_name!r} fails with {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise InputError(f"{key}: {module_name} has no {attribute!r}")
    return getattr(module, attribute)
