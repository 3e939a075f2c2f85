"""Reads demonstrations from files, folders and the Hub; reports all bad rows at once, by place and field."""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from dartune.data.layouts import PublicLayout, recognised
from dartune.data.readers import RawRow, read_rows
from dartune.data.records import Demonstration
from dartune.data.rows import Rows, Spool, demonstration
from dartune.errors import InputError, Problems

logger = logging.getLogger(__name__)

LOOKED_AT = 100
"""So many readable rows are looked at for one that fits a layout."""
FIELDS = ("question", "solution", "answer", "id", "prompt", "completion", "messages")
LAYOUTS = {
    "question/solution": ("question", "solution"),
    "prompt/completion": ("prompt", "completion"),
    "messages": ("messages",),
}
# Names seen in public data sets, only used to propose a column map.
USUAL_NAMES = {
    "question": ("question", "problem", "instruction", "query", "prompt", "input"),
    "solution": ("solution", "reasoning", "rationale", "response", "output", "completion", "answer"),
    "answer": ("final_answer", "result", "expected_answer", "target", "answer"),
}


def load_demonstrations(
    path: str | Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Rows[Demonstration]:
    """Reads and checks a data set, row by row into a temporary file: its size is no matter of memory.

    Args:
        path: a .jsonl, .json, .csv or .parquet file; a folder of such files or one written by
            `datasets.save_to_disk`; or `hub:<owner>/<name>[:<config>][@<revision>][#<split>]`, the only form
            that uses the network.
        split: which split of a folder, or of a Hub data set whose address names none.
        columns: our field -> their column, for any of `FIELDS`.
        limit: read the first so many rows only.

    Raises:
        InputError: with one line per bad row in `.problems` (of the first 1000; the last line counts the others); no
            row is ever left out silently.
    """
    rows = read_rows(path, split)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} holds no rows; expected one demonstration per row, see docs/data-format.md")
    rows, example = _telling(chain([first], rows), dict(columns or {}))
    public = recognised(example) if example is not None and not columns and not _fitting(set(example)) else None
    if public:
        rows = (row._replace(content=_tidied(row.content, public)) for row in rows)
        return _collect(rows, public.base, {"id": "id", **public.fields}, limit, path)
    layout, fields = choose_layout(example, dict(columns or {}), path) if example is not None else (None, {})
    return _collect(rows, layout, fields, limit, path)


def _tidied(content: dict[str, Any] | str, public: PublicLayout) -> dict[str, Any] | str:
    complete = not isinstance(content, str) and all(column in content for column in public.fields.values())
    return public.tidy(content) if complete else content


def _fitting(fields: Iterable[str]) -> list[str]:
    return [layout for layout, needed in LAYOUTS.items() if set(needed) <= set(fields)]


def _named(names: Collection[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our field -> their column."""
    # A column given to one field is not read again for the field that happens to have its name.
    given = set(columns.values())
    # Rows may lack the answer or the id, so one row's columns do not decide about these two.
    fields = {name: name for name in FIELDS if name in (*names, "answer", "id") and name not in given}
    return fields | dict(columns)


def choose_layout(names: Iterable[str], columns: Mapping[str, str], path: str | Path) -> tuple[str, dict[str, str]]:
    """Returns the name of the layout and our field -> their column.

    Raises:
        InputError: no layout or several fit, or `columns` names what does not exist.
    """
    names = list(names)
    found = f"columns found: {', '.join(map(repr, names)) or 'none'}"
    problems = [
        f"data.columns.{ours} is no field; the fields are {', '.join(FIELDS)}" for ours in columns if ours not in FIELDS
    ]
    problems += [
        f"data.columns.{ours} names the column {theirs!r}, which does not exist"
        for ours, theirs in columns.items()
        if ours in FIELDS and theirs not in names
    ]
    if problems:
        raise InputError(f"{path}: data.columns does not fit; {found}", problems)
    fields = _named(names, columns)
    fitting = _fitting(fields)
    asked = [layout for layout in fitting if any(name in columns for name in LAYOUTS[layout])]
    if len(asked or fitting) == 1:
        return (asked or fitting)[0], fields
    if fitting:
        example = LAYOUTS[fitting[0]][0]
        raise InputError(
            f"{path} fits several layouts ({', '.join(fitting)}); {found}; say which by naming one of its "
            f"columns, for example data.columns: {{{example}: {fields[example]}}}"
        )
    raise InputError(
        f"{path} fits no layout ({', '.join(LAYOUTS)}); {found}; "
        f"name them with data.columns, for example data.columns: {_proposal(names)}"
    )


def _proposal(names: list[str]) -> str:
    lower = {name.lower(): name for name in names}
    proposal: dict[str, str] = {}
    for ours, usual in USUAL_NAMES.items():
        free = [lower[name] for name in usual if name in lower and lower[name] not in proposal.values()]
        if free:
            proposal[ours] = free[0]
        elif ours != "answer":
            proposal[ours] = "<their column>"
    return "{" + ", ".join(f"{ours}: {theirs}" for ours, theirs in proposal.items()) + "}"


def _telling(rows: Iterator[RawRow], columns: Mapping[str, str]) -> tuple[Iterator[RawRow], dict[str, Any] | None]:
    """All rows, and the content of the one the layout shows in: the first that fits one, else the first readable.

    A bad first row is then told like any other.
    """
    passed, readable = [], []
    for row in rows:
        passed.append(row)
        if isinstance(row.content, str):
            continue
        if _fits(row.content, columns):
            return chain(passed, rows), row.content
        readable.append(row.content)
        if len(readable) == LOOKED_AT:
            break
    return chain(passed, rows), readable[0] if readable else None


def _fits(row: dict[str, Any], columns: Mapping[str, str]) -> bool:
    if columns:
        return set(columns.values()) <= set(row) and bool(_fitting(_named(row, columns)))
    return bool(_fitting(row)) or recognised(row) is not None


def _collect(
    rows: Iterator[RawRow], layout: str | None, fields: dict[str, str], limit: int | None, path: str | Path
) -> Rows[Demonstration]:
    problems, repeated = Problems(), Problems()
    with Spool() as spool, _Names() as names:
        for row in islice(rows, limit):
            if isinstance(row.content, str):
                problems.add(f"{row.place}: {row.content}")
                continue
            found, complaints = parse_row(row.content, layout or "", fields)
            for complaint in complaints:
                problems.add(f"{row.place}: {complaint}")
            if found is None:
                continue
            text = _text_hash(found)
            name = found.id or text[:16]
            if known := names.get(name):
                place, earlier = known
                if earlier != text:
                    problems.add(f"{row.place}: id: {name!r} is already used in {place}; ids must be unique")
                    continue
                repeated.add(f"{row.place} repeats {place}")
                name = names.next_free(name)
            names.add(name, row.place, text)
            spool.add(asdict(replace(found, id=name)))
        if problems.count:
            kept = f"; {len(spool)} others are good" if len(spool) else ""
            raise InputError(
                f"{path}: {problems.count} problems in the data{kept}; correct or remove these rows",
                problems.lines,
                problems.count,
            )
        if repeated.count:
            shown = "; ".join(repeated.first[:3])
            logger.warning("%s: %d rows repeat an earlier one (kept): %s", path, repeated.count, shown)
        return spool.rows(demonstration)


class _Names:
    """Ids given so far, with the place and the text's hash of their rows, in a temporary database on disk."""

    def __enter__(self) -> Self:
        self._rows = sqlite3.connect("")
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute(
            "CREATE TABLE names (name TEXT PRIMARY KEY, place TEXT, text TEXT, next INTEGER) WITHOUT ROWID"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    def get(self, name: str) -> tuple[str, str] | None:
        return self._rows.execute("SELECT place, text FROM names WHERE name = ?", (name,)).fetchone()

    def add(self, name: str, place: str, text: str) -> None:
        self._rows.execute("INSERT INTO names VALUES (?, ?, ?, 2)", (name, place, text))

    def next_free(self, name: str) -> str:
        """`name` with the first number from 2 on that nobody has."""
        (number,) = self._rows.execute("SELECT next FROM names WHERE name = ?", (name,)).fetchone()
        while self.get(f"{name}-{number}"):
            number += 1
        self._rows.execute("UPDATE names SET next = ? WHERE name = ?", (number + 1, name))
        return f"{name}-{number}"


def parse_row(row: Mapping[str, Any], layout: str, fields: Mapping[str, str]) -> tuple[Demonstration | None, list[str]]:
    """One row to a demonstration (id "" where the data has none), or None and what is wrong with it."""
    complaints: list[str] = []

    def get(name: str) -> Any:
        column = fields[name]
        if column not in row:
            complaints.append(f"{column}: the field is missing")
            return None
        return row[column]

    meta: dict[str, Any] = {}
    if layout == "question/solution":
        texts = {fields[name]: get(name) for name in ("question", "solution")}
    elif layout == "prompt/completion":
        prompt, completion = get("prompt"), get("completion")
        if isinstance(prompt, list) and isinstance(completion, list):
            texts = _turns([*prompt, *completion], f"{fields['prompt']}/{fields['completion']}", meta, complaints)
        else:
            texts = {fields["prompt"]: prompt, fields["completion"]: completion}
    else:
        texts = _turns(get("messages"), fields["messages"], meta, complaints) if not complaints else {}
    already = {complaint.partition(":")[0] for complaint in complaints}
    for column, value in [*texts.items(), *meta.items()]:
        rule = _text_rule(value)
        if rule and column not in already:
            complaints.append(f"{column}: {rule}")
    answer, name = _short_text("answer", row, fields, complaints), _short_text("id", row, fields, complaints)
    if complaints:
        return None, complaints
    question, solution = texts.values()
    return Demonstration(id=name or "", question=question, solution=solution, answer=answer, meta=meta), []


def _turns(messages: Any, column: str, meta: dict[str, Any], complaints: list[str]) -> dict[str, Any]:
    """The user's and the assistant's text of a one-turn conversation; a system text goes to `meta`."""
    if messages is None and complaints:
        return {}
    if not isinstance(messages, list) or not all(
        isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in messages
    ):
        complaints.append(f"{column}: must be a list of messages, each with role and content")
        return {}
    roles = [message["role"] for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        shown = ", ".join(map(str, roles)) or "none"
        complaints.append(f"{column}: the roles must be user, assistant (a system message may come first), not {shown}")
        return {}
    if len(messages) == 3:
        meta["system"] = messages[0]["content"]
    return {f"{column}[{message['role']}]": message["content"] for message in messages[-2:]}


def _text_rule(value: Any) -> str | None:
    if value is None:
        return "is empty (null)"
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not value.strip():
        return "is empty"
    return _character_rule(value)


def _character_rule(value: str) -> str | None:
    if "\0" in value:
        return f"has a NUL character at position {value.index(chr(0))}"
    broken = next((index for index, char in enumerate(value) if "\ud800" <= char <= "\udfff"), None)
    return None if broken is None else f"has half of a surrogate pair at position {broken}, which is no valid Unicode"


def _short_text(name: str, row: Mapping[str, Any], fields: Mapping[str, str], complaints: list[str]) -> str | None:
    """An answer or id: text or a number, which becomes text; None where there is none."""
    if name not in fields:
        return None
    value = row.get(fields[name])
    if isinstance(value, float | Decimal):
        if math.isnan(value):
            return None
        # Tables store whole numbers as floats as soon as one value is missing.
        value = int(value) if math.isfinite(value) and value == int(value) else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        complaints.append(f"{fields[name]}: must be text or a number, not {type(value).__name__}")
        return None
    rule = _character_rule(value) if isinstance(value, str) else None
    if rule:
        complaints.append(f"{fields[name]}: {rule}")
    return str(value)


def _text_hash(row: Demonstration) -> str:
    content = "\0".join([row.meta.get("system", ""), row.question, row.solution, row.answer or ""])
    return hashlib.sha256(content.encode()).hexdigest()
