"""Written sums, checked: `12 + 3 = 24` in a rewrite is a wrong step, however natural the target finds it."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"[$£€]?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_SIGN = r"(?:[+\-*×/÷]|(?<=\s)x(?=\s)|\\times|\\cdot|\\div)"
# Not a part of something longer: brackets, powers, percentages, mixed numbers, fractions as results.
_BEFORE = r"(?<![\w.,(+\-*/×÷^%}])(?<![(+\-*/×÷^%}\d] )(?<!times )(?<!cdot )"
_AFTER = r"(?![\d%/]|[.,]\d|\s*[+\-*/×÷^%(\\]|\s\d|\sx\s)"
_SUM = re.compile(rf"{_BEFORE}({_NUMBER}(?:\s*{_SIGN}\s*{_NUMBER})+)\s*=\s*({_NUMBER}){_AFTER}")
_TOKEN = re.compile(rf"{_NUMBER}|{_SIGN}")
_TIMES = {"*", "×", "x", r"\times", r"\cdot"}


def false_sums(text: str) -> set[str]:
    """The sums `a + b = c` (also - * and /) that do not hold, without their spaces.

    A sum that is part of a longer expression is not judged. With decimals or a quotient, a result within one unit of
    its last digit holds, whichever way it was rounded; a sum of whole numbers is exact.
    """
    return {re.sub(r"\s", "", match[0]) for match in _SUM.finditer(text) if not _holds(match[1], match[2])}


def _number(written: str) -> Fraction:
    return Fraction(written.lstrip("$£€").replace(",", ""))


def _holds(expression: str, result: str) -> bool:
    value = _value(expression)
    if value is None:
        return True
    exact = not re.search(r"\.\d|/|÷|\\div", f"{expression}{result}")
    unit = Fraction(1, 10 ** len(result.partition(".")[2]))
    return value == _number(result) if exact else abs(value - _number(result)) < unit


def _value(expression: str) -> Fraction | None:
    """Value of numbers joined by + - * /, products and quotients first; None where something is divided by zero."""
    first, *rest = _TOKEN.findall(expression)
    total, sign, product = Fraction(0), 1, _number(first)
    for operator, written in zip(rest[::2], rest[1::2], strict=True):
        number = _number(written)
        if operator in _TIMES:
            product *= number
        elif operator in "+-":
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, number
        elif number:
            product /= number
        else:
            return None
    return total + sign * product
