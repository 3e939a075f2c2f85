"""File formats: each reader yields raw rows one at a time, or says what is wrong with a row and goes on."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dartune.errors import InputError, MachineError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LONGEST_FIELD = 2**31 - 1
SPLIT_NAMES = ("train", "validation", "valid", "dev", "test", "eval")
HUB = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@#\s]+))?(?:@(?P<revision>[^#\s]+))?(?:#(?P<split>[\w.-]+))?"
)


class RawRow(NamedTuple):
    """A row as read: its place for messages, and its columns, or a sentence on why it cannot be read."""

    place: str
    content: dict[str, Any] | str


def read_rows(path: str | Path, split: str) -> Iterator[RawRow]:
    """Rows of a file, a folder or a Hub data set; only `hub:` uses the network.

    Raises:
        InputError: nothing is there, or it has no such split or format.
        MachineError: the Hub cannot be reached.
    """
    if str(path).startswith("hub:"):
        return _hub_rows(str(path), split)
    path = Path(path).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _saved_rows(path, split)
        files = _files_of_split(path, split)
        return (row for file in files for row in READERS[file.suffix.lower()](file))
    if not path.exists():
        raise InputError(f"{path} does not exist; give a file, a folder, or hub:<owner>/<name>")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: the format {path.suffix or '(no ending)'!r} is not read; use {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path)


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield RawRow(f"{path.name} line {number}", _parse_line(line))


def _parse_line(line: bytes) -> dict[str, Any] | str:
    try:
        content = json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=_once_each)
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"invalid JSON at column {error.colno}: {error.msg}"
    except RecursionError:
        return "invalid JSON: nested too deeply"
    except ValueError as error:
        return f"invalid JSON: {error}"
    return content if isinstance(content, dict) else _no_row(content, "a JSON object")


@dataclass(frozen=True, slots=True)
class Doubled:
    """A JSON object that names something twice, of which JSON readers would take the last silently."""

    name: str


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Doubled:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    names = [name for name, _ in pairs]
    return Doubled(next(name for name in names if names.count(name) > 1))


def _json_rows(path: Path) -> Iterator[RawRow]:
    """A list of objects; a `.json` file with one object per line is read as JSONL."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    if start != b"[":
        yield from _jsonl_rows(path)
        return
    try:
        text = path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        yield RawRow(path.name, f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8")
        return
    space, decoder = re.compile(r"[ \t\r\n]*"), json.JSONDecoder(object_pairs_hook=_once_each)
    position, line, counted = text.index("[") + 1, 1, 0
    for row in itertools.count(1):
        position = space.match(text, position).end()
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            return
        place = f"{path.name} line {line}, row {row}"  # all rows are often in one line
        try:
            content, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            # After a broken object nothing says where the next one starts.
            known = isinstance(error, json.JSONDecodeError)
            detail = f"at column {error.colno}: {error.msg}" if known else f": {error}"
            place = f"{path.name} line {getattr(error, 'lineno', line)}, row {row}"
            yield RawRow(place, f"invalid JSON {detail}; rest unread")
            return
        yield RawRow(place, content if isinstance(content, dict) else _no_row(content, "an object"))
        position = space.match(text, position).end()
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            place = f"{path.name} line {line}, row {row}"
            yield RawRow(place, "invalid JSON: a comma or ] must follow a row; rest unread")
            return


def _no_row(value: Any, wanted: str) -> str:
    if isinstance(value, Doubled):
        return f"names {value.name!r} twice"
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return f"must be {wanted}, not {names.get(type(value), 'a number')}"


def _csv_rows(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}: the header is invalid CSV: {error}") from error
        if header is None:
            return
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise InputError(f"{path}: the header names these columns twice: {', '.join(twice)}")
        while True:
            place = f"{path.name} line {reader.line_num + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(place, f"invalid CSV: {error}")
                continue
            if values:
                yield RawRow(place, _named_values(header, values))


def _named_values(header: list[str], values: list[str]) -> dict[str, Any] | str:
    if len(values) != len(header):
        return f"has {len(values)} fields, the header has {len(header)}; quote fields that contain commas"
    for name, value in zip(header, values, strict=True):
        # `surrogateescape` stands in for a byte that is no UTF-8.
        if any("\udc80" <= char <= "\udcff" for char in value):
            return f"{name}: invalid UTF-8; save the file as UTF-8"
    return dict(zip(header, values, strict=True))


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for index in range(batch.num_rows):
                number += 1
                yield RawRow(f"{path.name} row {number}", _arrow_row(batch, index))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # a column name may be no Unicode
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _arrow_row(batch: Any, index: int) -> dict[str, Any] | str:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1} of a field"
    except (ValueError, ArithmeticError) as error:  # such as a date in the year 300 000
        return f"has a value that Python cannot hold: {error}"


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The data files whose name or subfolder says `split`; all of them where no name says any split."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in READERS and _is_data(file, folder))
    if not files:
        raise InputError(f"{folder} holds no data files; expected {', '.join(READERS)} or a saved `datasets` folder")
    said = {file: _split_of(file.relative_to(folder), split) for file in files}
    chosen = [file for file in files if said[file] == split]
    if not chosen and any(said.values()):
        names = ", ".join(sorted({name for name in said.values() if name}))
        raise InputError(f"{folder} has no split {split!r}, only {names}; set data.split")
    return chosen or files


def _is_data(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    return not any(part.startswith((".", "_")) for part in parts) and file.name != "dataset_info.json"


def _split_of(file: Path, split: str) -> str | None:
    words = [word for part in file.with_suffix("").parts for word in re.split(r"[^A-Za-z0-9]+", part)]
    return next((name for name in (split, *SPLIT_NAMES) if name in words), None)


def _saved_rows(folder: Path, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read as a saved `datasets` folder: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise InputError(f"{folder} has no split {split!r}, only {', '.join(saved)}; set data.split")
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


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
