"""Clean-up of text before it is shown or written: secrets are redacted, control characters are escaped."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
"""Names of environment variables whose values are secrets."""
SHORTEST_SECRET = 8
"""Shorter values are not redacted: they occur in ordinary text (`KEY=1`), which would become unreadable."""
SECRET_PATTERNS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Tokens of well-known services, and `user:password` in a URL."""
HIDDEN = "***"


def redacted(text: str) -> str:
    """Return the text with every secret replaced by `***`."""
    secrets = {value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST_SECRET}
    # Longest first: a secret that contains another one must not leave its remainder behind.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return SECRET_PATTERNS.sub(HIDDEN, text)


def shown(name: object, longest: int | None = None) -> str:
    """Return an external name, such as a file's or a row's, on one line, with control characters escaped.

    Line breaks are escaped as well, because they could forge a log line.

    Args:
        longest: maximum number of characters; a longer name is truncated and its length appended.
    """
    text = str(name)
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str) -> str:
    """Escape control characters other than \\n and \\t, so that external text cannot control the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)
