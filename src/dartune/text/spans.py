"""Character spans of a text: matching braces, and spans without white space and markup around an answer."""

from __future__ import annotations

import re

_BEFORE = " \t\n*_\"'“”:}"
_AFTER = " \t\n*_\"'“”.,;:!?"


def closing_braces(text: str) -> dict[int, int]:
    """Return the position of each closed `{` -> the position of its `}`. Escaped braces do not count."""
    closing: dict[int, int] = {}
    still_open: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            still_open.append(match.start())
        elif match[0] == "}" and still_open:
            closing[still_open.pop()] = match.start()
    return closing


def trimmed(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Shrink a span by white space, emphasis, quotes, maths delimiters and closing punctuation; None if it is empty."""
    previous = None
    while start < end and (start, end) != previous:  # wrappers may be nested: `**$5$.**`
        previous = start, end
        start += len(text[start:end]) - len(text[start:end].lstrip(_BEFORE))
        end -= len(text[start:end]) - len(text[start:end].rstrip(_AFTER))
        delimiters = text[start : start + 2], text[max(start, end - 2) : end]
        if delimiters in ((r"\(", r"\)"), (r"\[", r"\]")) and text.find(delimiters[1], start, end) == end - 2:
            start, end = start + 2, end - 2
        elif delimiters[1].endswith("$") and delimiters[1] != r"\$":
            start, end = start + (delimiters[0][:1] == "$"), end - 1
    return (start, end) if start < end else None
