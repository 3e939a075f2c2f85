"""Shell completion of commands, keys, their values and file names, by argcomplete.

The shell calls `dartune` at every Tab, with the command line in environment variables. Only what the word under the
cursor needs is imported, so that an answer takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_ARGCOMPLETE"
"""Environment variable by which the shell asks for completions."""
DATA_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz")
RECIPES = (".yaml", ".yml")
LAB = ("lab:",)
FILES_OF_KEYS = {"data.path": DATA_FILES, "target.path": (), "target.other": (), "mapper.path": (), "output": ()}
"""Key -> endings of the files that it can name, besides folders."""
Completer = Callable[..., Iterable[str]]
"""Called with `prefix`, the word so far, and other arguments by name."""


def shell_code(shell: str) -> str:
    """Return the code that turns completion on in a shell, for `eval` or a file of completions."""
    from argcomplete.shell_integration import shellcode

    use_defaults = True  # the shell completes file names where dartune has nothing to offer
    return shellcode(["dartune"], use_defaults, shell)


def complete(parser: argparse.ArgumentParser, configured: Sequence[str]) -> None:
    """Answer the shell with the completions of its command line, and end the process.

    Args:
        parser: parser of the command line.
        configured: commands that accept every key of the config as a flag.
    """
    import argcomplete

    verb = _verb(os.environ.get("COMP_LINE", ""))
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and verb in action.choices:
            _add_completers(action.choices[verb])
            if verb in configured:
                _add_keys(action.choices[verb])
    # Its type asks for an instance of `BaseCompleter`; argcomplete calls any function.
    nothing: Any = _nothing
    argcomplete.autocomplete(parser, always_complete_options="long", default_completer=nothing)


def _verb(line: str) -> str | None:
    """Return the command on a command line that may end within quotes."""
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    return next((word for word in words[1:] if not word.startswith("-")), None)


def _nothing(**_: Any) -> Iterable[str]:
    return ()


def _add_completers(parser: argparse.ArgumentParser) -> None:
    """Set the completers of a command's own arguments."""
    by_name: dict[str, Completer] = {
        "recipe": _recipe_or_run,
        "run": _paths,
        "runs": _paths,
        "mapper": _paths,
        "folder": _paths,
        "include": _paths,
        "output": partial(_paths, endings=DATA_FILES),
        "data": partial(_paths, endings=DATA_FILES, more=LAB),
        "fixtures": partial(_paths, endings=DATA_FILES, more=LAB),
    }
    for action in parser._actions:
        if action.dest in by_name and action.choices is None:
            action.completer = by_name[action.dest]  # type: ignore[attr-defined]
        if action.dest == "arm":
            action.completer = _arms  # type: ignore[attr-defined]


def _add_keys(parser: argparse.ArgumentParser) -> None:
    """Add every key of the config as a flag, with completers for its values."""
    from dartune.command_line.key_help import config_fields
    from dartune.config.recipe import FLAG_NAMES

    short = {key: flag for flag, key in FLAG_NAMES.items()}
    taken = {option for action in parser._actions for option in action.option_strings}
    for key, field in config_fields().items():
        flags = [flag for flag in (f"--{key}", f"--{short.get(key, key)}") if flag not in taken]
        if flags:
            # The first sentence, as shells show one line; argparse expands % in help texts.
            text = field.description.partition(". ")[0].rstrip(".").replace("%", "%%")
            action = parser.add_argument(*dict.fromkeys(flags), dest=f"key {key}", help=text)
            action.completer = _completer(key, field)  # type: ignore[attr-defined]


def _completer(key: str, field: Any) -> Completer:
    """Return what completes the value of a key."""
    if key in FILES_OF_KEYS:
        return partial(_paths, endings=FILES_OF_KEYS[key], more=() if key == "output" else LAB)
    if key == "arms":
        return _arms
    values = list(_choices(field.annotation, field.metadata))
    return partial(_words, values=values) if values else _nothing


def _choices(annotation: Any, metadata: Sequence[Any] = ()) -> Iterator[str]:
    """Yield the values that a type allows, if they can be listed."""
    for mark in metadata:
        yield from getattr(getattr(mark, "func", None), "names", ())
    if annotation is bool:
        yield from ("true", "false")
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        inner = get_args(annotation)
        for part in inner:
            yield from _choices(part, getattr(annotation, "__metadata__", ()) if part is inner[0] else ())


def _words(prefix: str, values: Sequence[str], **_: Any) -> list[str]:
    return [value for value in values if value.startswith(prefix)]


def _arms(prefix: str, **_: Any) -> list[str]:
    """Complete the last arm of a list with commas; arms that are there already are not offered again."""
    from dartune.config.arms import ARMS

    before, comma, last = prefix.rpartition(",")
    there = before.split(",")
    return [f"{before}{comma}{name}" for name in ARMS if name.startswith(last) and name not in there]


def _recipe_or_run(prefix: str, **_: Any) -> list[str]:
    """Complete a recipe: a file, or the name of a shipped one. `show` accepts run folders in its place."""
    from dartune.config.recipe import SHIPPED

    names = [path.stem for path in SHIPPED.glob("*.yaml") if path.stem.startswith(prefix)]
    return [*sorted(names), *_paths(prefix, endings=RECIPES)]


def _paths(prefix: str, endings: Sequence[str] = (), more: Sequence[str] = (), **_: Any) -> list[str]:
    """Complete a folder, a file with one of the endings, or one of `more`."""
    typed = os.path.expanduser(prefix)
    folder, name = os.path.split(typed)
    head = prefix[: len(prefix) - len(name)]
    found = []
    try:
        for path in sorted(Path(folder or ".").iterdir()):
            hidden = path.name.startswith(".") and not name.startswith(".")
            if path.name.startswith(name) and not hidden and (path.is_dir() or path.name.endswith(tuple(endings))):
                found.append(f"{head}{path.name}{'/' if path.is_dir() else ''}")
    except OSError:  # a folder that does not exist or cannot be read has no completions
        pass
    return [*found, *(word for word in more if word.startswith(prefix))]
