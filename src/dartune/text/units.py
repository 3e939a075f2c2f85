"""Units of measurement: normalised names (`miles per hour` -> `mph`) and conversion (`3.3 m` = `330 cm`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

_TABLE = {
    "length": (
        ("mm", 1, "millimeter millimetre"),
        ("cm", 10, "centimeter centimetre"),
        ("m", 1000, "meter metre"),
        ("km", 1_000_000, "kilometer kilometre"),
        ("in", Fraction("25.4"), "inch inche"),
        ("ft", Fraction("304.8"), "foot feet"),
        ("yd", Fraction("914.4"), "yard"),
        ("mi", Fraction(1_609_344), "mile"),
    ),
    "mass": (
        ("mg", 1, "milligram"),
        ("g", 1000, "gram"),
        ("kg", 1_000_000, "kilogram kilo"),
        ("oz", Fraction("28349.523125"), "ounce"),
        ("lb", Fraction("453592.37"), "pound"),
    ),
    "volume": (("ml", 1, "milliliter millilitre"), ("l", 1000, "liter litre")),
    "volume in US units": (("cup", 1, ""), ("pint", 2, "pt"), ("quart", 4, "qt"), ("gal", 16, "gallon")),
    "time": (
        ("s", 1, "sec second"),
        ("min", 60, "minute"),
        ("h", 3600, "hr hour"),
        ("day", 86_400, ""),
        ("week", 604_800, ""),
    ),
    "long time": (("month", 1, ""), ("year", 12, "yr")),
    "money": (("cent", 1, "¢"), ("dollar", 100, "$")),
    "temperature": (("f", None, "fahrenheit"), ("c", None, "celsius")),
}
"""Dimension -> (short name, size in the smallest unit, other names); size None where no factor converts the unit."""
_SHORT = {name: short for units in _TABLE.values() for short, _, names in units for name in names.split()}
_SIZES = {short: (dimension, Fraction(size)) for dimension, units in _TABLE.items() for short, size, _ in units if size}
CONVERTED = frozenset(_SIZES)
"""Short names of the units that can be converted."""
MEASURES = frozenset((*_SHORT, *_SIZES, *"ton dozen pair percent".split())) - {"$", "¢"}
"""Units that are multiples of other units or of a number."""
_TWO_MEASURES = re.compile(
    r"(?<![\w.,$])(\d+(?:\.\d+)?)\s?([a-z]+)(?:,?\sand\s|,\s|\s)?(\d+(?:\.\d+)?)\s?([a-z]+)\b", re.IGNORECASE
)
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
"""Words behind a unit that change it into another unit: `5 miles per hour`."""


def unit_name(words: Sequence[str]) -> str:
    """Return the words behind a number as one unit, singular and abbreviated; empty without words."""
    if words and words[0] == "of":  # a third of an hour
        words = words[1:] if words[1:2] and words[1] in ("a", "an") else words
    if words and words[0] in ("a", "an"):  # half an hour
        words = words[1:]
    unit = " ".join(_short(word) for word in words)
    for pattern, short in _PHRASES:
        unit = pattern.sub(short, unit)
    return unit


def _short(word: str) -> str:
    """Return the singular, abbreviated form of a unit's word: `kilometers/hours` -> `km/h`."""
    parts = [part if len(part) < 3 else part.rstrip("s") for part in word.split("/")]
    return "/".join(_SHORT.get(part, part) for part in parts)


def in_smallest_unit(value: Fraction, unit: str) -> tuple[str, Fraction] | None:
    """Convert a value with a unit from `unit_name` to (dimension, value in its smallest unit); None if impossible."""
    if unit not in _SIZES:
        return None
    dimension, size = _SIZES[unit]
    return dimension, value * size


def in_one_unit(text: str) -> str:
    """Convert measures in two units to the smaller unit: `5 feet 6 inches` -> `66 inches`."""

    def convert(match: re.Match[str]) -> str:
        names = [_short(match[group].lower()) for group in (2, 4)]
        if names == ["h", "m"]:  # `2h 30m`
            names = ["h", "min"]
        large, small = map(_SIZES.get, names)
        if not large or not small or large[0] != small[0] or large[1] <= small[1]:
            return match[0]
        value = Fraction(match[1]) * large[1] / small[1] + Fraction(match[3])
        return f"{value.numerator} {names[1]}" if value.denominator == 1 else match[0]

    # Twice: `2 hours 5 minutes 30 seconds` has three units.
    return _TWO_MEASURES.sub(convert, _TWO_MEASURES.sub(convert, text))


def same_unit(first: str, second: str) -> bool:
    """Return whether two units from `unit_name` may be the same: they are equal, or one continues the other.

    `72 clips` and `72 clips in April` are the same; `5 miles` and `5 miles per hour` are not.
    """
    short, long = sorted((first.split(), second.split()), key=len)
    if long[: len(short)] != short:
        return False
    return len(long) == len(short) or not short or long[len(short)] not in _CHANGES_UNIT
