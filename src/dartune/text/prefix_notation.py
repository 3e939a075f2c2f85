"""Converts prefix notation (`- * 8 3 4 = 20`), which some word-problem datasets use, to infix notation."""

from __future__ import annotations

import re

_TOKEN = r"(?:[-+*/×÷]|-?\d[\d.,]*(?:/\d+)?)"
_PREFIX = re.compile(rf"(?m)^[ \t]*([-+*/×÷](?:[ \t]+{_TOKEN})+)(?=[ \t]*(?:=|$))")
_OPERATORS = frozenset("-+*/×÷")
# `- 2 1/2 = 2.5`: a list mark and a mixed number as likely as a subtraction, so it is not converted.
_LISTED_MIXED_NUMBER = re.compile(r"[-+*]\s+\d+\s+\d+/\d+")


def with_infix(text: str) -> str:
    """Convert each line's prefix calculation to infix notation, with brackets around nested ones: `(8 * 3) - 4 = 20`.

    A calculation is converted only if it is complete, starts its line and extends to an equals sign or the line's end.
    """

    def convert(match: re.Match[str]) -> str:
        ambiguous = _LISTED_MIXED_NUMBER.fullmatch(match[1].strip())
        return match[0] if ambiguous else _infix(match[1].split()) or match[0]

    return _PREFIX.sub(convert, text)


def _infix(tokens: list[str]) -> str | None:
    """Return the calculation in infix notation; None if operators and numbers do not match."""
    stack: list[tuple[str, bool]] = []  # (expression, whether it needs brackets as an operand)
    for token in reversed(tokens):
        if token not in _OPERATORS:
            stack.append((token, "/" in token))
            continue
        if len(stack) < 2:
            return None
        left, right = (f"({text})" if nested else text for text, nested in (stack.pop(), stack.pop()))
        stack.append((f"{left} {token} {right}", True))
    return stack[0][0] if len(stack) == 1 else None
