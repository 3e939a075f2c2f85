"""Written sums, checked: `12 + 3 = 24` in a rewrite is a wrong step, however natural the target finds it."""

from __future__ import annotations

import re

# Whole numbers with + - * only: fractions and decimals are written and rounded in too many honest ways.
_NUMBER = r"\d+(?:,\d{3})*"
_SIGN = r"[+\-*×]"
# Not a part of something longer: brackets, powers, percentages, fractions.
_SUM = re.compile(
    rf"(?<![\d.,(+\-*/×÷^%])(?<![(+\-*/×÷^%] )({_NUMBER}(?:\s*{_SIGN}\s*{_NUMBER})+)\s*=\s*({_NUMBER})"
    rf"(?![\d%/]|[.,]\d|\s*[+\-*/×÷^])"
)
_TOKEN = re.compile(rf"{_NUMBER}|{_SIGN}")


def false_sums(text: str) -> set[str]:
    """The sums `a + b = c` (also - and *) of whole numbers that do not hold, without their spaces.

    A sum that is part of a longer expression is not judged.
    """
    return {re.sub(r"\s", "", match[0]) for match in _SUM.finditer(text) if _value(match[1]) != _whole(match[2])}


def _whole(number: str) -> int:
    return int(number.replace(",", ""))


def _value(expression: str) -> int:
    """Value of whole numbers joined by + - *, products first."""
    first, *rest = _TOKEN.findall(expression)
    total, sign, product = 0, 1, _whole(first)
    for operator, number in zip(rest[::2], rest[1::2], strict=True):
        if operator in "*×":
            product *= _whole(number)
        else:
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, _whole(number)
    return total + sign * product
