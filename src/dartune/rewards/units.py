"""Units of measurement in one spelling: `60 miles per hour` and `60 mph`, `5 kilograms` and `5 kg`."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NAMES = {
    "kg": "kilogram kilo",
    "g": "gram",
    "mg": "milligram",
    "lb": "pound",
    "oz": "ounce",
    "km": "kilometer kilometre",
    "m": "meter metre",
    "cm": "centimeter centimetre",
    "mm": "millimeter millimetre",
    "mi": "mile",
    "yd": "yard",
    "ft": "foot feet",
    "in": "inch inche",
    "l": "liter litre",
    "ml": "milliliter millilitre",
    "gal": "gallon",
    "h": "hr hour",
    "min": "minute",
    "s": "sec second",
    "f": "fahrenheit",
    "c": "celsius",
}
_SHORT = {name: short for short, names in _NAMES.items() for name in names.split()}
_PHRASES = tuple(
    (re.compile(rf"\b(?:{pattern})(?![\w^])"), short)
    for pattern, short in (
        (r"mi(?: per |/| an )h", "mph"),
        (r"km(?: per |/| an )h|kph|kmh", "km/h"),
        (r"m(?: per |/| a )s", "m/s"),
        (r"(?:square|sq) (\w+)", r"\1^2"),
        (r"(?:cubic|cu) (\w+)", r"\1^3"),
    )
)
_CHANGES_UNIT = frozenset("per a an each every of squared cubed square cubic times / and more fewer less".split())
"""Words behind a unit that make another one of it: `5 miles per hour`."""


def unit_name(words: Sequence[str]) -> str:
    """The words behind a number as one unit: singular, its parts abbreviated; empty without words."""
    if words and words[0] in ("a", "an"):  # half an hour
        words = words[1:]
    unit = " ".join(_short(word) for word in words)
    for pattern, short in _PHRASES:
        unit = pattern.sub(short, unit)
    return unit


def _short(word: str) -> str:
    parts = [part if len(part) < 3 else part.rstrip("s") for part in word.split("/")]
    return "/".join(_SHORT.get(part, part) for part in parts)


def same_unit(one: str, other: str) -> bool:
    """Whether two units of `unit_name` may mean the same: alike, or one goes on where the other ends.

    `72 clips` and `72 clips in April`, but not `5 miles` and `5 miles per hour`.
    """
    short, long = sorted((one.split(), other.split()), key=len)
    if long[: len(short)] != short:
        return False
    return len(long) == len(short) or not short or long[len(short)] not in _CHANGES_UNIT
