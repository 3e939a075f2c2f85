"""What messages must not show: secrets (of the environment, or what looks like one), and control characters."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
"""Environment variables whose values are secrets."""
SHORTEST = 8
LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Tokens of well-known services, and user and password in an address."""
HIDDEN = "***"


def redacted(text: str) -> str:
    """The text with `***` in place of every secret."""
    values = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return LOOKS.sub(HIDDEN, text)


def shown(name: object, longest: int | None = None) -> str:
    """A name from outside, such as a file's or a row's, in one line: a line break in it would forge a line of its own.

    Args:
        longest: of a longer name the beginning is shown.
    """
    text = str(name)
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str) -> str:
    """Text from outside must not steer the terminal: control characters are spelled out, \\n and \\t stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
