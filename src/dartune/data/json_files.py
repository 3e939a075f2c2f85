"""JSON files: one object per line, a list of objects, or one object that holds the list; read piece by piece."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dartune.data.opened import BYTE_ORDER_MARK, DAMAGED, RawRow, opened, text_rows

HEAD = 1 << 20
"""Bytes that are looked at to tell the forms of JSON apart, and that are read at once."""
SLACK = 16
"""An error so near to the end of what was read may be the end of a piece: longer than `-Infinity` or `\\uD83D`."""
SPACE = re.compile(r"[ \t\r\n]*")
SPEAKERS = ("role", "from")
"""Keys that only the messages of a conversation have."""
OWN_FIELDS = "question solution prompt completion problem instruction answer messages conversations output".split()
"""Keys of an object that is a row itself, not a frame around the list of rows."""


@text_rows
def json_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Rows of a `.json` or `.jsonl` file in any of the forms, whichever its ending promises."""
    form = _form(path)
    if form == "lines":
        yield from _lines(path)
        return
    with opened(path) as file:
        stream = _Stream(file)
        try:
            yield from _values(stream, path.name, notes)
        except Broken as error:
            place = f"{path.name} line {error.line}" + (f", row {error.row}" if error.row else "")
            yield RawRow(place, f"invalid JSON {error.what}; rest unread".replace("JSON :", "JSON:"))
        except UnicodeDecodeError as error:
            yield RawRow(path.name, f"invalid UTF-8 at byte {stream.bytes + error.start + 1}; save the file as UTF-8")


def _form(path: Path) -> str:
    """`lines`, `list` or `object`: what a file holds, by its first bytes."""
    with opened(path) as file:
        text = file.read(HEAD).removeprefix(BYTE_ORDER_MARK).lstrip()
    line, newline, rest = text.partition(b"\n")
    if text[:1] not in (b"[", b"{"):
        return "lines"
    whole = _parsed(line) if newline or len(text) < HEAD - 3 else None
    if text[:1] == b"[":
        return "lines" if isinstance(whole, list) and rest.strip() else "list"
    if whole is not None:
        frame = isinstance(whole, dict) and not rest.strip() and any(map(_is_rows, whole.values()))
        return "object" if frame and not any(map(_of_row, whole, whole.values())) else "lines"
    cut = line.rstrip()[-1:] in (b"[", b"{", b",", b":") if newline else len(text) >= HEAD - 3
    return "object" if cut else "lines"


def single_object(path: Path) -> frozenset[str] | None:
    """The keys of the one object that a file holds, without a list of rows in it; None where it holds anything else."""
    try:
        with opened(path) as file:
            text = file.read(HEAD)
    except (*DAMAGED, OSError):  # reading its rows tells why
        return None
    whole = _parsed(text.removeprefix(BYTE_ORDER_MARK)) if len(text) < HEAD else None
    frame = isinstance(whole, dict) and any(map(_is_rows, whole.values()))
    return frozenset(whole) if isinstance(whole, dict) and not frame else None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _may_be_row(value[0])


def _of_row(key: str, value: Any = None) -> bool:
    """Whether an object with this key is a row itself."""
    return key.lower() in OWN_FIELDS or (isinstance(value, list) and _is_conversation(value))


def _may_be_row(value: Any) -> bool:
    """An object that is no message of a conversation; or a whole conversation."""
    if isinstance(value, list):
        return _is_conversation(value)
    return isinstance(value, dict) and not any(name in value for name in SPEAKERS)


def _is_conversation(value: Any) -> bool:
    is_message = [isinstance(one, Mapping) and any(name in one for name in SPEAKERS) for one in value]
    return bool(is_message) and all(is_message)


def _lines(path: Path) -> Iterator[RawRow]:
    with opened(path) as lines:
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
    return _row(content, "a JSON object")


@dataclass(frozen=True, slots=True)
class Doubled:
    """A JSON object that names something twice, of which JSON readers would take the last silently."""

    name: str


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Doubled:
    content = dict(pairs)
    for value in content.values():  # a message that names `role` twice is a row's trouble
        held = value if isinstance(value, list) else (value,)
        if inner := next((one for one in held if isinstance(one, Doubled)), None):
            return inner
    if len(content) == len(pairs):
        return content
    names = [name for name, _ in pairs]
    return Doubled(next(name for name in names if names.count(name) > 1))


def _row(value: Any, wanted: str) -> dict[str, Any] | str:
    """What a JSON value is as a row; a list of messages is a conversation."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Doubled):
        return f"names {value.name!r} twice"
    if isinstance(value, list) and _is_conversation(value):
        return {"messages": value}
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return f"must be {wanted}, not {names.get(type(value), 'a number')}"


class _Stream:
    """JSON values of a file one after the other; of the text, no more is held than the value at hand."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(object_pairs_hook=_once_each)
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted, self._column = 1, 0, 0
        self.bytes = 0
        """Bytes before the piece that was read last."""

    @property
    def line(self) -> int:
        """The line of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, char: str) -> bool:
        """Go on behind `char`, if that is next."""
        found = self.peek() == char
        self._at += found
        return found

    def ahead(self) -> Any:
        """The next value, which is still to be read; None where the text that is held does not have all of it."""
        self.peek()
        try:
            return self._json.raw_decode(self._text, self._at)[0]
        except (ValueError, RecursionError):
            return None

    def value(self) -> Any:
        """The next value.

        Raises:
            Broken: it is no JSON.
        """
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                near = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - SLACK
                if near and self._more():
                    continue
                before = self._column if error.lineno == 1 else 0
                line = self.line + self._text.count("\n", self._at, error.pos)
                raise Broken(line, f"at column {error.colno + before}: {error.msg}") from error
            except RecursionError as error:
                raise Broken(self.line, ": nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise Broken(self.line, f": {error}") from error
            if end < len(self._text) or not self._more():
                self._at = end
                return value

    def _more(self) -> bool:
        """Read on, half as much again as is held; False at the end of the file."""
        if self._ended:
            return False
        line = self.line  # counts what is let go
        done, self._text = self._text[: self._at], self._text[self._at :]
        newline = done.rfind("\n")
        self._column = self._column + len(done) if newline < 0 else len(done) - newline - 1
        self._line, self._counted, self._at = line, 0, 0
        block, held = self._file.read(max(HEAD, len(self._text))), len(self._decoder.getstate()[0])
        self._text += self._decoder.decode(block, final=not block)
        self.bytes += len(block) - len(self._decoder.getstate()[0]) + held
        self._ended = not block
        return True


class Broken(Exception):
    """A value that is no JSON: after it nothing says where the next one starts."""

    def __init__(self, line: int, what: str, row: int | None = None) -> None:
        super().__init__(line, what, row)
        self.line, self.what, self.row = line, what, row


def _listed(stream: _Stream, name: str, first: tuple[int, Any] | None = None) -> Iterator[RawRow]:
    """The rows of a list; `first` is the line and the value of the one that was read already, if any was."""
    if first is None:
        stream.take("[")
        if stream.take("]"):
            return
    for row in itertools.count(1):
        stream.peek()
        try:
            line, value = first or (stream.line, stream.value())
        except Broken as error:
            raise Broken(error.line, error.what, row) from error
        first = None
        yield RawRow(f"{name} line {line}, row {row}", _row(value, "an object"))
        comma = stream.take(",")
        if stream.take("]"):
            return
        if not comma:
            raise Broken(stream.line, ": a comma or ] must follow a row", row)


def _values(stream: _Stream, name: str, notes: list[str]) -> Iterator[RawRow]:
    """A list of rows, objects over several lines each, or one object around the list of rows."""
    rows = stream.peek() == "{" and _starts_with_row(stream)
    if stream.peek() == "[":
        yield from _listed(stream, name)
        if stream.peek():
            raise Broken(stream.line, ": more text follows the list of rows")
    while stream.peek():
        line = stream.line
        if not rows and stream.take("{"):
            yield from _object(stream, name, line, notes)
        else:
            yield RawRow(f"{name} line {line}", _row(stream.value(), "a JSON object"))
        stream.take(",")  # some programs write one behind every row


def _starts_with_row(stream: _Stream) -> bool:
    """Whether the first object is a row by any of its keys, also by one behind a list of objects.

    A whole object is looked at, and its rows are read as such then; of one that does not end in what is held of the
    text, only `_object` can tell.
    """
    whole = stream.ahead()
    return isinstance(whole, dict) and any(_of_row(key, value) for key, value in whole.items())


def _object(stream: _Stream, name: str, line: int, notes: list[str]) -> Iterator[RawRow]:
    """One object: a row, or a frame whose rows are the first list of objects in it."""
    pairs: list[tuple[str, Any]] = []
    frame, columns = None, frozenset()
    while not stream.take("}"):
        if pairs or frame is not None:
            _expect(stream, ",")
        key = stream.value()
        if not isinstance(key, str):
            raise Broken(stream.line, ": a key must be text")
        _expect(stream, ":")
        is_row = frame is not None or _of_row(key) or any(_of_row(*pair) for pair in pairs)
        if is_row or not stream.take("["):
            pairs.append((key, stream.value()))
        elif stream.take("]"):
            pairs.append((key, []))
        else:
            stream.peek()
            first = stream.line, stream.value()
            if _may_be_row(first[1]):
                frame, columns = key, _keys(first[1])
                yield from _listed(stream, name, first)
            else:
                pairs.append((key, _rest_of_list(stream, first[1])))
    if frame is None:
        yield RawRow(f"{name} line {line}", _row(_once_each(pairs), "a JSON object"))
        return
    if more := [key for key, value in pairs if _is_rows(value) and _keys(value[0]) == columns]:
        names = ", ".join(map(repr, (frame, *more)))
        yield RawRow(name, f"holds several lists of rows ({names}); put each into a file of its own")
    if others := [key for key, value in pairs if value not in (None, "", [], {})]:
        notes.append(f"{name}: the rows are the list {frame!r}; not read beside it: {', '.join(map(repr, others))}")


def _keys(row: Any) -> frozenset[str]:
    return frozenset(row) if isinstance(row, dict) else frozenset()


def _rest_of_list(stream: _Stream, first: Any) -> list[Any]:
    values = [first]
    while stream.take(","):
        values.append(stream.value())
    _expect(stream, "]")
    return values


def _expect(stream: _Stream, char: str) -> None:
    if not stream.take(char):
        raise Broken(stream.line, f": {char} expected")
