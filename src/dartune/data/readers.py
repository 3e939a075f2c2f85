"""Reads rows from a file, a folder of files, a saved `datasets` folder, or the Hub."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dartune.data.file_encoding import GZIP, RawRow, Reader, format_suffix, too_deep, unreadable
from dartune.data.json_files import json_rows, single_object
from dartune.data.tables import csv_rows, parquet_rows
from dartune.errors import InputError, MachineError
from dartune.run.redaction import shown

SPLIT_NAMES = ("train", "validation", "valid", "dev", "test", "eval")
HUB = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@#\s]+))?(?:@(?P<revision>[^#\s]+))?(?:#(?P<split>[\w.-]+))?"
)
READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
    ".ndjson": json_rows,
    ".tsv": csv_rows,
}
DESCRIPTION = "dataset_info.json"
"""A file that `datasets` writes beside the data."""
MAX_LISTED_FILES = 50
"""Files of a folder that one message lists."""
FORMATS = f"{', '.join(READERS)} (text formats also as .gz)"


def read_rows(path: str | Path, split: str, notes: list[str] | None = None) -> Iterator[RawRow]:
    """Yields the rows of a file, a folder or a Hub data set. Only `hub:` uses the network.

    Args:
        notes: notes about skipped input (files of a folder, keys beside a list of rows) are appended to this list. It
            is complete once all rows have been read.

    Raises:
        InputError: the path does not exist, has no such split, or has an unsupported format.
        MachineError: the Hub cannot be reached.
    """
    notes = [] if notes is None else notes
    try:
        rows = _rows_of(path, split, notes)
    except OSError as error:
        raise InputError(f"{shown(path)} {unreadable(error)}") from error
    return map(_sanitize, rows)


def _sanitize(row: RawRow) -> RawRow:
    """Returns the row with a place on one line. A row that is nested too deeply becomes an error."""
    deep = not isinstance(row.content, str) and too_deep(row.content)
    return RawRow(shown(row.place), "is nested too deeply" if deep else row.content)


def _rows_of(path: str | Path, split: str, notes: list[str]) -> Iterator[RawRow]:
    if str(path).startswith("hub:"):
        return _hub_rows(str(path), split)
    try:
        path, own_split = split_of_path(Path(path).expanduser())
        is_folder = path.is_dir()
    except (ValueError, RuntimeError) as error:  # a NUL in the path; an unknown user in `~user`
        raise InputError(f"{shown(path)} is not a valid path: {error}") from error
    if own_split == "":
        raise InputError(f"{shown(path)}#: the split after # is empty; write {shown(path)}#<split>, or remove the #")
    if own_split is not None and not is_folder:
        raise InputError(f"{shown(path)} is a file, which has no splits; remove #{shown(own_split)} behind it")
    if is_folder:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved_rows(path, split, own_split)
        files = _files_of_split(path, split, own_split, notes)
        return (row for file in files for row in _rows_of_member(path, file, notes))
    if not path.exists():
        raise InputError(f"{shown(path)} does not exist; give a file, a folder, or hub:<owner>/<name>")
    if not path.is_file():  # reading a named pipe would wait for a writer
        raise InputError(f"{shown(path)} is neither a regular file nor a folder; write its content to a file")
    if format_suffix(path) not in READERS:
        suffix = "".join(path.suffixes[-2:]) if path.suffix.lower() == GZIP else path.suffix
        hint = "; put the format into the name, such as data.jsonl.gz" if format_suffix(path) == "" else ""
        raise InputError(f"{shown(path)}: the format {suffix or '(no suffix)'!r} is not read; use {FORMATS}{hint}")
    return READERS[format_suffix(path)](path, notes)


def split_of_path(path: Path) -> tuple[Path, str | None]:
    """Returns a path without its `#<split>`, and the split. A path that exists as written has none.

    The split is empty for a path that ends with `#`.
    """
    before, _, split = str(path).rpartition("#")
    if not before or "/" in split or path.exists() or not Path(before).exists():
        return path, None
    return Path(before), split


def _rows_of_member(folder: Path, file: Path, notes: list[str]) -> Iterator[RawRow]:
    """Yields the rows of a file in a folder. Their places begin with the file's path relative to the folder."""
    parent = file.relative_to(folder).as_posix().removesuffix(file.name)
    return (RawRow(parent + row.place, row.content) for row in READERS[format_suffix(file)](file, notes))


def _files_of_split(folder: Path, default: str, own_split: str | None, notes: list[str]) -> list[Path]:
    """Returns the data files whose name or subfolder contains the split, or all files if no name contains any split.

    Args:
        default: the split if the path names none.
        own_split: the split that the path names.

    Raises:
        InputError: there are no data files, or none of the split. A folder without splits has the default split only.
    """
    split = own_split or default
    files, skipped = _contents(folder)
    unread = [f"{shown(name)} ({reason})" for name, reason in skipped.items()]
    more = f" and {len(unread) - MAX_LISTED_FILES} more" if len(unread) > MAX_LISTED_FILES else ""
    listing = f"{', '.join(unread[:MAX_LISTED_FILES])}{more}"
    if not files:
        not_read = f"; not read: {listing}" if unread else ""
        raise InputError(
            f"{shown(folder)} holds no data files; expected {FORMATS} or a saved `datasets` folder{not_read}"
        )
    if unread:
        notes.append(f"{shown(folder)}: not read: {listing}")
    files = _without_descriptions(folder, files, notes)
    split_by_file = {file: _split_of(file.relative_to(folder), split) for file in files}
    chosen = [file for file in files if split_by_file[file] == split]
    if not chosen and any(split_by_file.values()):
        names = ", ".join(sorted({name for name in split_by_file.values() if name}))
        raise InputError(f"{shown(folder)} has no split {split!r}, only {names}; write {shown(folder)}#<split>")
    if not chosen and split != default:
        names = [shown(file.relative_to(folder).as_posix()) for file in files]
        more = f" and {len(names) - MAX_LISTED_FILES} more" if len(names) > MAX_LISTED_FILES else ""
        raise InputError(
            f"{shown(folder)} has no split {split!r}: its files are {', '.join(names[:MAX_LISTED_FILES])}{more}; "
            f"remove #{shown(split)} to read all of them"
        )
    for file in files if chosen else ():
        if file not in chosen:
            name = shown(file.relative_to(folder).as_posix())
            if split_by_file[file]:
                reason = f"the split is {split!r}, and its name contains {split_by_file[file]!r}"
            else:
                reason = (
                    f"names of other files contain {split!r}, its name contains no split; rename it, or the others, to "
                    "read it"
                )
            notes.append(f"{shown(folder)}: the file {name} is not read: {reason}")
    return chosen or files


def _contents(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Returns the data files of a folder and its subfolders, and the reason for each path that is not read.

    Raises:
        InputError: a subfolder cannot be read, or a link is broken.
    """
    files, skipped, problems = [], {}, []

    def on_error(error: OSError) -> None:
        problems.append(f"{shown(error.filename)} {unreadable(error)}")

    for parent, folders, names in os.walk(folder, onerror=on_error):
        for name in sorted(folders):
            path = Path(parent, name)
            if path.is_symlink() or _is_hidden(name):
                skipped[f"{path.relative_to(folder).as_posix()}/"] = "a link" if path.is_symlink() else "hidden"
                folders.remove(name)
        for name in names:
            path = Path(parent, name)
            if path.is_symlink() and not path.exists():
                problems.append(f"{shown(path)} is a link to a file that does not exist; correct or remove it")
            elif reason := _skip_reason(path):
                skipped[path.relative_to(folder).as_posix()] = reason
            elif format_suffix(path) in READERS and name != DESCRIPTION:
                files.append(path)
    if problems:
        raise InputError(f"{shown(folder)} cannot be read completely", sorted(problems))
    return sorted(files), dict(sorted(skipped.items()))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _skip_reason(path: Path) -> str | None:
    """Returns why a file is not read. None for data files, and for README and description files, which need no note."""
    if path.name == DESCRIPTION or path.name.startswith("README"):
        return None
    if _is_hidden(path.name):
        return "hidden"
    if not path.is_file():
        return "not a regular file"
    return None if format_suffix(path) in READERS else "format"


def _without_descriptions(folder: Path, files: list[Path], notes: list[str]) -> list[Path]:
    """Drops `.json` files that hold a single object with other columns than the rows, such as `meta.json`."""
    if len(files) == 1:
        return files
    objects = {
        file: keys for file in files if format_suffix(file) == ".json" and (keys := single_object(file)) is not None
    }
    if not objects:
        return files
    row_files = [file for file in files if file not in objects]
    columns = _first_columns(row_files[0]) if row_files else frozenset(Counter(objects.values()).most_common(1)[0][0])
    descriptions = {file for file, keys in objects.items() if 2 * len(keys & columns) < len(columns)}
    for file in files:
        if file in descriptions:
            name = shown(file.relative_to(folder).as_posix())
            reason = "it holds one object without the other files' columns"
            notes.append(f"{shown(folder)}: the file {name} is not read: {reason}")
    return [file for file in files if file not in descriptions]


def _first_columns(file: Path) -> frozenset[str]:
    rows = READERS[format_suffix(file)](file, [])
    return next((frozenset(row.content) for row in rows if not isinstance(row.content, str)), frozenset())


def _split_of(file: Path, split: str) -> str | None:
    """Returns the split that a path names. The requested split takes precedence if the path names several."""
    names = (*file.parts[:-1], file.name.partition(".")[0])
    words = [word for part in names for word in re.split(r"[^A-Za-z0-9]+", part)]
    lower = {word.lower() for word in words}
    return next((name for name in (split, *SPLIT_NAMES) if name in words or name in lower), None)


def _saved_rows(folder: Path, default: str, own_split: str | None) -> Iterator[RawRow]:
    import datasets

    split = own_split or default
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library does not validate these files, so any exception can occur
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{shown(folder)} has a dataset_dict.json or state.json, but cannot be read as a saved `datasets` folder "
            f"({reason}); if these files are yours, rename them; else save the data set again"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            splits = ", ".join(map(str, saved))
            raise InputError(f"{shown(folder)} has no split {split!r}, only {splits}; write {shown(folder)}#<split>")
        saved = saved[split]
    elif split not in (default, str(saved.split)):
        raise InputError(
            f"{shown(folder)} has no split {split!r}: it was saved without splits; remove #{shown(split)} to read all "
            "rows"
        )
    return _numbered(saved, folder.name)


def _hub_rows(address: str, split: str) -> Iterator[RawRow]:
    import datasets
    from datasets.exceptions import DatasetsError

    match = HUB.fullmatch(address)
    if match is None:
        raise InputError(
            f"{address!r} is not a Hub address; write hub:<owner>/<name>[:<config>][@<revision>][#<split>]"
        )
    split = match["split"] or split
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], revision=match["revision"], split=split)
    except ConnectionError as error:
        raise MachineError(f"{address}: the Hub cannot be reached: {error}") from error
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(f"{address} (split {split!r}) cannot be loaded: {error}") from error
    return _numbered(loaded, address)


def _numbered(rows: Iterable[Any], name: str) -> Iterator[RawRow]:
    return (RawRow(f"{name} row {number}", row) for number, row in enumerate(rows, start=1))
