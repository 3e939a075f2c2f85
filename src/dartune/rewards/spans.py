"""Spans of a text: where its braces close, and what of a span is the answer rather than its wrapping."""

from __future__ import annotations

import re

_BEFORE = " \t\n*_\"'“”:}"
_AFTER = " \t\n*_\"'“”.,;:!?"


def closing_braces(text: str) -> dict[int, int]:
    """Position of each `{` that is closed -> position of its `}`."""
    closing: dict[int, int] = {}
    still_open: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            still_open.append(match.start())
        elif match[0] == "}" and still_open:
            closing[still_open.pop()] = match.start()
    return closing


def trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without white space, emphasis, quotes, maths delimiters and closing punctuation; None if empty."""
    before = None
    while start < end and (start, end) != before:
        before = start, end
        start += len(text[start:end]) - len(text[start:end].lstrip(_BEFORE))
        end -= len(text[start:end]) - len(text[start:end].rstrip(_AFTER))
        pair = text[start : start + 2], text[max(start, end - 2) : end]
        if pair in ((r"\(", r"\)"), (r"\[", r"\]")) and text.find(pair[1], start, end) == end - 2:
            start, end = start + 2, end - 2
        elif pair[1].endswith("$") and pair[1] != r"\$":
            start, end = start + (pair[0][:1] == "$"), end - 1
    return (start, end) if start < end else None
