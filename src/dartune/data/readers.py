"""Where rows come from: a file, a folder of files, what `datasets` saved, or the Hub."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dartune.data.json_files import json_rows, single_object
from dartune.data.opened import GZIP, RawRow, Reader, kind_of, too_deep, unreadable
from dartune.data.tables import csv_rows, parquet_rows
from dartune.errors import InputError, MachineError
from dartune.redaction import shown

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
MOST_NAMED = 50
"""Files of a folder that one message names."""
FORMATS = f"{', '.join(READERS)} (texts also as .gz)"


def read_rows(path: str | Path, split: str, notes: list[str] | None = None) -> Iterator[RawRow]:
    """Rows of a file, a folder or a Hub data set; only `hub:` uses the network.

    Args:
        notes: what is not read (files of a folder, keys beside a list of rows) is added to it, by the end of the rows.

    Raises:
        InputError: nothing is there, or it has no such split or format.
        MachineError: the Hub cannot be reached.
    """
    notes = [] if notes is None else notes
    try:
        rows = _rows_of(path, split, notes)
    except OSError as error:
        raise InputError(f"{shown(path)} {unreadable(error)}") from error
    return map(_sound, rows)


def _sound(row: RawRow) -> RawRow:
    """The row with a one-line place; a row that is nested too deeply becomes an error."""
    deep = not isinstance(row.content, str) and too_deep(row.content)
    return RawRow(shown(row.place), "is nested too deeply" if deep else row.content)


def _rows_of(path: str | Path, split: str, notes: list[str]) -> Iterator[RawRow]:
    if str(path).startswith("hub:"):
        return _hub_rows(str(path), split)
    try:
        path = Path(path).expanduser()
        is_folder = path.is_dir()
    except (ValueError, RuntimeError) as error:  # a NUL in the path; no home folder of that name
        raise InputError(f"{shown(path)} is no path: {error}") from error
    if is_folder:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved_rows(path, split)
        files = _files_of_split(path, split, notes)
        return (row for file in files for row in _rows_within(path, file, notes))
    if not path.exists():
        raise InputError(f"{shown(path)} does not exist; give a file, a folder, or hub:<owner>/<name>")
    if kind_of(path) not in READERS:
        ending = "".join(path.suffixes[-2:]) if path.suffix.lower() == GZIP else path.suffix
        hint = "; put the format into the name, such as data.jsonl.gz" if kind_of(path) == "" else ""
        raise InputError(f"{shown(path)}: the format {ending or '(no ending)'!r} is not read; use {FORMATS}{hint}")
    return READERS[kind_of(path)](path, notes)


def _rows_within(folder: Path, file: Path, notes: list[str]) -> Iterator[RawRow]:
    """Rows of a folder's file, whose places begin with its path from the folder on."""
    inside = file.relative_to(folder).as_posix().removesuffix(file.name)
    return (RawRow(inside + row.place, row.content) for row in READERS[kind_of(file)](file, notes))


def _files_of_split(folder: Path, split: str, notes: list[str]) -> list[Path]:
    """The data files whose name or subfolder says `split`; all of them where no name says any split."""
    files, others = _contents(folder)
    unread = [f"{shown(name)} ({why})" for name, why in others.items()]
    more = f" and {len(unread) - MOST_NAMED} more" if len(unread) > MOST_NAMED else ""
    named = f"{', '.join(unread[:MOST_NAMED])}{more}"
    if not files:
        found = f"; not read: {named}" if unread else ""
        raise InputError(f"{shown(folder)} holds no data files; expected {FORMATS} or a saved `datasets` folder{found}")
    if unread:
        notes.append(f"{shown(folder)}: not read: {named}")
    files = _without_descriptions(folder, files, notes)
    said = {file: _split_of(file.relative_to(folder), split) for file in files}
    chosen = [file for file in files if said[file] == split]
    if not chosen and any(said.values()):
        names = ", ".join(sorted({name for name in said.values() if name}))
        raise InputError(f"{shown(folder)} has no split {split!r}, only {names}; set data.split")
    for file in files if chosen else ():
        if file not in chosen:
            name = shown(file.relative_to(folder).as_posix())
            if said[file]:
                why = f"data.split is {split!r}, and its name says {said[file]!r}"
            else:
                why = (
                    f"names of other files say {split!r}, its name says no split; rename it, or the others, to read it"
                )
            notes.append(f"{shown(folder)}: the file {name} is not read: {why}")
    return chosen or files


def _contents(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The data files in a folder and its subfolders, and what else there is, with why it is not read.

    Raises:
        InputError: a subfolder cannot be read, or a link leads nowhere.
    """
    files, others, wrong = [], {}, []

    def failed(error: OSError) -> None:
        wrong.append(f"{shown(error.filename)} {unreadable(error)}")

    for where, folders, names in os.walk(folder, onerror=failed):
        for name in sorted(folders):
            path = Path(where, name)
            if path.is_symlink() or _is_hidden(name):
                others[f"{path.relative_to(folder).as_posix()}/"] = "a link" if path.is_symlink() else "hidden"
                folders.remove(name)
        for name in names:
            path = Path(where, name)
            if path.is_symlink() and not path.exists():
                wrong.append(f"{shown(path)} is a link to a file that is not there; correct or remove it")
            elif why := _not_data(path):
                others[path.relative_to(folder).as_posix()] = why
            elif kind_of(path) in READERS and name != DESCRIPTION:
                files.append(path)
    if wrong:
        raise InputError(f"{shown(folder)} cannot be read completely", sorted(wrong))
    return sorted(files), dict(sorted(others.items()))


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _not_data(path: Path) -> str | None:
    """Why a file is not read; None for data, and for what describes data by custom."""
    if path.name == DESCRIPTION or path.name.startswith("README"):
        return None
    if _is_hidden(path.name):
        return "hidden"
    if not path.is_file():
        return "no plain file"
    return None if kind_of(path) in READERS else "format"


def _without_descriptions(folder: Path, files: list[Path], notes: list[str]) -> list[Path]:
    """The files without those `.json` that hold one object which is no row like the rows of the other files."""
    if len(files) == 1:
        return files
    objects = {file: keys for file in files if kind_of(file) == ".json" and (keys := single_object(file)) is not None}
    if not objects:
        return files
    others = [file for file in files if file not in objects]
    columns = _first_columns(others[0]) if others else frozenset(Counter(objects.values()).most_common(1)[0][0])
    left_out = {file for file, keys in objects.items() if 2 * len(keys & columns) < len(columns)}
    for file in files:
        if file in left_out:
            name = shown(file.relative_to(folder).as_posix())
            why = "it holds one object without the other files' columns"
            notes.append(f"{shown(folder)}: the file {name} is not read: {why}")
    return [file for file in files if file not in left_out]


def _first_columns(file: Path) -> frozenset[str]:
    rows = READERS[kind_of(file)](file, [])
    return next((frozenset(row.content) for row in rows if not isinstance(row.content, str)), frozenset())


def _split_of(file: Path, split: str) -> str | None:
    """The split that a path says; the one that is asked for counts first."""
    names = (*file.parts[:-1], file.name.partition(".")[0])
    words = [word for part in names for word in re.split(r"[^A-Za-z0-9]+", part)]
    lower = {word.lower() for word in words}
    return next((name for name in (split, *SPLIT_NAMES) if name in words or name in lower), None)


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # its files may hold anything, and the library does not check them
        why = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{shown(folder)} has a dataset_dict.json or state.json, but cannot be read as a saved `datasets` folder "
            f"({why}); if these files are yours, rename them; else save the data set again"
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise InputError(f"{shown(folder)} has no split {split!r}, only {', '.join(saved)}; set data.split")
        saved = saved[split]
    return _numbered(saved, folder.name)


def _hub_rows(address: str, split: str) -> Iterator[RawRow]:
    import datasets

    match = HUB.fullmatch(address)
    if match is None:
        raise InputError(f"{address!r} is no Hub address; write hub:<owner>/<name>[:<config>][@<revision>][#<split>]")
    split = match["split"] or split
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], revision=match["revision"], split=split)
    except ConnectionError as error:
        raise MachineError(f"{address}: the Hub cannot be reached: {error}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{address} (split {split!r}) cannot be loaded: {error}") from error
    return _numbered(loaded, address)


def _numbered(rows: Iterable[dict[str, Any]], name: str) -> Iterator[RawRow]:
    return (RawRow(f"{name} row {number}", row) for number, row in enumerate(rows, start=1))
