"""Reads JSON files: one object per line, a list of objects, or one object that contains the list of rows.

Files are parsed incrementally, so that a long list in one line needs no more memory than its longest row.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dartune.data.file_encoding import BYTE_ORDER_MARK, DAMAGED, RawRow, open_bytes, text_rows

HEAD = 1 << 20
"""Bytes used to detect the form of a JSON file, and bytes per read."""
SLACK = 16
"""A parse error this close to the end of the buffer may come from a token cut by the buffer's end. No token that can
be cut this way is longer: `-Infinity`, `\\uD83D`."""
SPACE = re.compile(r"[ \t\r\n]*")
SPEAKERS = ("role", "from")
"""Keys that identify a message of a conversation."""
OWN_FIELDS = "question solution prompt completion problem instruction answer messages conversations output".split()
"""Keys that show that an object is a row, not a container with the list of rows."""


@text_rows
def json_rows(path: Path, notes: list[str]) -> Iterator[RawRow]:
    """Yields the rows of a `.json` or `.jsonl` file. The form is detected from the content, not from the suffix."""
    form = _detect_form(path)
    if form == "lines":
        yield from _lines(path)
        return
    with open_bytes(path) as file:
        stream = _Stream(file)
        try:
            yield from _values(stream, path.name, notes)
        except InvalidJson as error:
            place = f"{path.name} line {error.line}" + (f", row {error.row}" if error.row else "")
            reason = f"invalid JSON {error.reason}; the rest of the file was not read"
            yield RawRow(place, reason.replace("JSON :", "JSON:"))
        except UnicodeDecodeError as error:
            yield RawRow(path.name, f"invalid UTF-8 at byte {stream.bytes + error.start + 1}; save the file as UTF-8")


def _detect_form(path: Path) -> str:
    """Returns `lines`, `list` or `object`, detected from the first bytes of a file."""
    with open_bytes(path) as file:
        text = file.read(HEAD).removeprefix(BYTE_ORDER_MARK).lstrip()
    line, newline, rest = text.partition(b"\n")
    if text[:1] not in (b"[", b"{"):
        return "lines"
    # A read that returns (nearly) HEAD bytes may have cut the first line; up to 3 bytes are the byte order mark.
    value = _parsed(line) if newline or len(text) < HEAD - 3 else None
    if text[:1] == b"[":
        return "lines" if isinstance(value, list) and rest.strip() else "list"
    if value is not None:
        is_container = isinstance(value, dict) and not rest.strip() and any(map(_is_list_of_rows, value.values()))
        return "object" if is_container and not any(map(_is_row_field, value, value.values())) else "lines"
    continues = line.rstrip()[-1:] in (b"[", b"{", b",", b":") if newline else len(text) >= HEAD - 3
    return "object" if continues else "lines"


def single_object(path: Path) -> frozenset[str] | None:
    """Returns the keys if the file holds exactly one object and that object has no list of rows; otherwise None."""
    try:
        with open_bytes(path) as file:
            text = file.read(HEAD)
    except (*DAMAGED, OSError):  # reported when the rows are read
        return None
    value = _parsed(text.removeprefix(BYTE_ORDER_MARK)) if len(text) < HEAD else None
    is_container = isinstance(value, dict) and any(map(_is_list_of_rows, value.values()))
    return frozenset(value) if isinstance(value, dict) and not is_container else None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_list_of_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and _may_be_row(value[0])


def _is_row_field(key: str, value: Any = None) -> bool:
    """Returns whether an object with this key is a row, as opposed to a container with the list of rows."""
    return key.lower() in OWN_FIELDS or (isinstance(value, list) and _is_conversation(value))


def _may_be_row(value: Any) -> bool:
    """Returns whether a value is a complete conversation, or an object other than a message of a conversation."""
    if isinstance(value, list):
        return _is_conversation(value)
    return isinstance(value, dict) and not any(name in value for name in SPEAKERS)


def _is_conversation(value: Any) -> bool:
    is_message = [isinstance(entry, Mapping) and any(name in entry for name in SPEAKERS) for entry in value]
    return bool(is_message) and all(is_message)


def _lines(path: Path) -> Iterator[RawRow]:
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                yield RawRow(f"{path.name} line {number}", _parse_line(line))


def _parse_line(line: bytes) -> dict[str, Any] | str:
    try:
        content = json.loads(line.decode("utf-8").rstrip("\r\n"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        return f"invalid UTF-8 at byte {error.start + 1}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return f"invalid JSON at column {error.colno}: {error.msg}"
    except RecursionError:
        return "invalid JSON: nested too deeply"
    except ValueError as error:
        return f"invalid JSON: {error}"
    return _row_content(content, "a JSON object")


@dataclass(frozen=True, slots=True)
class RepeatedKey:
    """A JSON object with a repeated key. `json.loads` would silently keep the last value."""

    name: str


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any] | RepeatedKey:
    content = dict(pairs)
    # An inner object with a repeated key makes the row that contains it invalid, so the marker moves outwards.
    for value in content.values():
        elements = value if isinstance(value, list) else (value,)
        if inner := next((element for element in elements if isinstance(element, RepeatedKey)), None):
            return inner
    if len(content) == len(pairs):
        return content
    names = [name for name, _ in pairs]
    return RepeatedKey(next(name for name in names if names.count(name) > 1))


def _row_content(value: Any, expected: str) -> dict[str, Any] | str:
    """Returns a JSON value as the content of a row. A list of messages becomes a conversation."""
    if isinstance(value, dict):
        return value
    if isinstance(value, RepeatedKey):
        return f"names {value.name!r} twice"
    if isinstance(value, list) and _is_conversation(value):
        return {"messages": value}
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return f"must be {expected}, not {names.get(type(value), 'a number')}"


class _Stream:
    """Reads the JSON values of a file one after the other and buffers no more text than the current value."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder(object_pairs_hook=_unique_keys)
        self._text, self._position, self._ended = "", 0, False
        # Line number at `_counted`, and the column at which the buffer starts in its line.
        self._line, self._counted, self._column = 1, 0, 0
        self.bytes = 0
        """Bytes before the most recent block."""

    @property
    def line(self) -> int:
        """The line of the next character."""
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def peek(self) -> str:
        """Returns the next character that is not white space, or an empty text at the end of the file."""
        while True:
            space = SPACE.match(self._text, self._position)
            assert space is not None  # the pattern also matches the empty string
            self._position = space.end()
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                return ""

    def take(self, char: str) -> bool:
        """Consumes `char` if it is the next character; returns whether it was."""
        matches = self.peek() == char
        self._position += matches
        return matches

    def peek_value(self) -> Any:
        """Returns the next value without consuming it, or None if the buffer does not contain all of it."""
        self.peek()
        try:
            return self._json.raw_decode(self._text, self._position)[0]
        except (ValueError, RecursionError):
            return None

    def value(self) -> Any:
        """Consumes and returns the next value.

        Raises:
            InvalidJson: the next value is not valid JSON.
        """
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - SLACK
                if incomplete and self._read_more():
                    continue
                offset = self._column if error.lineno == 1 else 0
                line = self.line + self._text.count("\n", self._position, error.pos)
                raise InvalidJson(line, f"at column {error.colno + offset}: {error.msg}") from error
            except RecursionError as error:
                raise InvalidJson(self.line, ": nested too deeply") from error
            except ValueError as error:  # a number of thousands of digits
                raise InvalidJson(self.line, f": {error}") from error
            # A number that ends with the buffer may continue in the next block.
            if end < len(self._text) or not self._read_more():
                self._position = end
                return value

    def _read_more(self) -> bool:
        """Drops the consumed text and reads a block as long as the rest; returns False at the end of the file.

        The block grows with the buffered value, because parsing starts again after every block: constant blocks would
        take quadratic time for a long value.
        """
        if self._ended:
            return False
        line = self.line  # counts the lines of the text that is dropped
        consumed, self._text = self._text[: self._position], self._text[self._position :]
        newline = consumed.rfind("\n")
        self._column = self._column + len(consumed) if newline < 0 else len(consumed) - newline - 1
        self._line, self._counted, self._position = line, 0, 0
        block, pending = self._file.read(max(HEAD, len(self._text))), len(self._decoder.getstate()[0])
        self._text += self._decoder.decode(block, final=not block)
        self.bytes += len(block) - len(self._decoder.getstate()[0]) + pending
        self._ended = not block
        return True


class InvalidJson(Exception):
    """Invalid JSON. Reading stops there, because the start of the next value is unknown."""

    def __init__(self, line: int, reason: str, row: int | None = None) -> None:
        super().__init__(line, reason, row)
        self.line, self.reason, self.row = line, reason, row


def _list_rows(stream: _Stream, name: str, first: tuple[int, Any] | None = None) -> Iterator[RawRow]:
    """Yields the rows of a list. `first` is the line and the value of the first row if it was read already."""
    if first is None:
        stream.take("[")
        if stream.take("]"):
            return
    for row in itertools.count(1):
        stream.peek()
        try:
            line, value = first or (stream.line, stream.value())
        except InvalidJson as error:
            raise InvalidJson(error.line, error.reason, row) from error
        first = None
        yield RawRow(f"{name} line {line}, row {row}", _row_content(value, "an object"))
        comma = stream.take(",")
        if stream.take("]"):
            return
        if not comma:
            raise InvalidJson(stream.line, ": a comma or ] must follow a row", row)


def _values(stream: _Stream, name: str, notes: list[str]) -> Iterator[RawRow]:
    """Yields the rows of a list, of objects that span several lines, or of one object that contains the list."""
    starts_with_row = stream.peek() == "{" and _starts_with_row(stream)
    if stream.peek() == "[":
        yield from _list_rows(stream, name)
        if stream.peek():
            raise InvalidJson(stream.line, ": more text follows the list of rows")
    while stream.peek():
        line = stream.line
        if not starts_with_row and stream.take("{"):
            yield from _object_rows(stream, name, line, notes)
        else:
            yield RawRow(f"{name} line {line}", _row_content(stream.value(), "a JSON object"))
        stream.take(",")  # some programs write a comma after every row


def _starts_with_row(stream: _Stream) -> bool:
    """Returns whether the first object is a row by any of its keys, including keys after a list of objects.

    This needs the complete object. If the buffer holds only a part of it, `_object_rows` decides key by key.
    """
    value = stream.peek_value()
    return isinstance(value, dict) and any(_is_row_field(key, field) for key, field in value.items())


def _object_rows(stream: _Stream, name: str, line: int, notes: list[str]) -> Iterator[RawRow]:
    """Yields one object as a row, or the rows of the first list of objects in it."""
    pairs: list[tuple[str, Any]] = []
    rows_key, columns = None, frozenset()
    while not stream.take("}"):
        if pairs or rows_key is not None:
            _expect(stream, ",")
        key = stream.value()
        if not isinstance(key, str):
            raise InvalidJson(stream.line, ": a key must be text")
        _expect(stream, ":")
        is_row = rows_key is not None or _is_row_field(key) or any(_is_row_field(*pair) for pair in pairs)
        if is_row or not stream.take("["):
            pairs.append((key, stream.value()))
        elif stream.take("]"):
            pairs.append((key, []))
        else:
            stream.peek()
            first = stream.line, stream.value()
            if _may_be_row(first[1]):
                rows_key, columns = key, _keys(first[1])
                yield from _list_rows(stream, name, first)
            else:
                pairs.append((key, _rest_of_list(stream, first[1])))
    if rows_key is None:
        yield RawRow(f"{name} line {line}", _row_content(_unique_keys(pairs), "a JSON object"))
        return
    if more := [key for key, value in pairs if _is_list_of_rows(value) and _keys(value[0]) == columns]:
        names = ", ".join(map(repr, (rows_key, *more)))
        yield RawRow(name, f"holds several lists of rows ({names}); put each into a separate file")
    if unread := [key for key, value in pairs if value not in (None, "", [], {})]:
        notes.append(f"{name}: the rows are the list {rows_key!r}; not read beside it: {', '.join(map(repr, unread))}")


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
        raise InvalidJson(stream.line, f": {char} expected")
