"""Prefix notation (`- * 8 3 4 = 20`), as published equations of word problems have it, into ordinary notation."""

from __future__ import annotations

import re

_TOKEN = r"(?:[-+*/×÷]|-?\d[\d.,]*(?:/\d+)?)"
_PREFIX = re.compile(rf"(?m)^[ \t]*([-+*/×÷](?:[ \t]+{_TOKEN})+)(?=[ \t]*(?:=|$))")
_OPERATORS = frozenset("-+*/×÷")


def with_infix(text: str) -> str:
    """The text with every line's prefix calculation in ordinary notation, nested ones in brackets: `(8 * 3) - 4 = 20`.

    Only what stands at the start of a line, up to its equals sign or its end, and is complete is changed.
    """
    return _PREFIX.sub(lambda match: _infix(match[1].split()) or match[0], text)


def _infix(tokens: list[str]) -> str | None:
    """The calculation in ordinary notation; None where operators and numbers do not match."""
    stack: list[tuple[str, bool]] = []
    for token in reversed(tokens):
        if token not in _OPERATORS:
            stack.append((token, "/" in token))
            continue
        if len(stack) < 2:
            return None
        left, right = (f"({text})" if nested else text for text, nested in (stack.pop(), stack.pop()))
        stack.append((f"{left} {token} {right}", True))
    return stack[0][0] if len(stack) == 1 else None
