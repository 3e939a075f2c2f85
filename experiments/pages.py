"""Measured parts of documents: what stands between `<!-- measured: NAME -->` and `<!-- end -->` comes from results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_PART = re.compile(r"(<!-- measured: (?P<name>[\w-]+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The document with every measured part as `parts` has it.

    Raises:
        KeyError: the document wants a part that is not there.
    """
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match['name']].strip()}\n\n{match[4]}", text)


def fill(path: Path, parts: Mapping[str, str]) -> None:
    path.write_text(filled(path.read_text("utf-8"), parts), encoding="utf-8")


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
