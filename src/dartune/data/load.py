"""Reads demonstrations from files, folders and the Hub; reports all bad rows at once, by place and field."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any

from dartune.data.layouts import PublicLayout, recognised
from dartune.data.readers import RawRow, read_rows
from dartune.data.records import Demonstration
from dartune.errors import InputError

logger = logging.getLogger(__name__)

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
) -> list[Demonstration]:
    """Reads and checks a data set.

    Args:
        path: a .jsonl, .json, .csv or .parquet file; a folder of such files or one written by
            `datasets.save_to_disk`; or `hub:<owner>/<name>[:<config>][@<revision>][#<split>]`, the only form
            that uses the network.
        split: which split of a folder, or of a Hub data set whose address names none.
        columns: our field -> their column, for any of `FIELDS`.
        limit: read the first so many rows only.

    Raises:
        InputError: with one line per bad row in `.problems`; no row is ever left out silently.
    """
    rows = read_rows(path, split)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} holds no rows; expected one demonstration per row, see docs/data-format.md")
    rows, example = _first_readable(chain([first], rows))  # the layout shows in it
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
    # A column given to one field is not read again for the field that happens to have its name.
    given = set(columns.values())
    # Rows may lack the answer or the id, so the first row's columns do not decide about these two.
    fields = {name: name for name in FIELDS if name in (*names, "answer", "id") and name not in given}
    fields |= columns
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


def _first_readable(rows: Iterator[RawRow]) -> tuple[Iterator[RawRow], dict[str, Any] | None]:
    """All rows, and the content of the first that can be read."""
    passed = []
    for row in rows:
        passed.append(row)
        if not isinstance(row.content, str):
            return chain(passed, rows), row.content
    return iter(passed), None


def _collect(
    rows: Iterator[RawRow], layout: str | None, fields: dict[str, str], limit: int | None, path: str | Path
) -> list[Demonstration]:
    demonstrations: list[Demonstration] = []
    problems: list[str] = []
    seen: dict[str, tuple[str, str]] = {}  # id -> where, hash of the text
    repeated: list[str] = []
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            break
        if isinstance(row.content, str):
            problems.append(f"{row.place}: {row.content}")
            continue
        found, complaints = parse_row(row.content, layout or "", fields)
        problems += [f"{row.place}: {complaint}" for complaint in complaints]
        if found is None:
            continue
        text = _text_hash(found)
        name = found.id or text[:16]
        if name in seen:
            place, earlier = seen[name]
            if earlier != text:
                problems.append(f"{row.place}: id: {name!r} is already used in {place}; ids must be unique")
                continue
            repeated.append(f"{row.place} repeats {place}")
            name = _next_free(name, seen)
        seen[name] = (row.place, text)
        demonstrations.append(replace(found, id=name))
    if problems:
        kept = f"; {len(demonstrations)} others are good" if demonstrations else ""
        raise InputError(f"{path}: {len(problems)} problems in the data{kept}; correct or remove these rows", problems)
    if repeated:
        logger.warning("%s: %d rows repeat an earlier one (kept): %s", path, len(repeated), "; ".join(repeated[:3]))
    return demonstrations


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


def _next_free(name: str, seen: Mapping[str, Any]) -> str:
    number = 2
    while f"{name}-{number}" in seen:
        number += 1
    return f"{name}-{number}"
