"""Numbers as text for people: in progress lines, messages, tables, reports and data cards.

A share is a fraction of 1. An interval is a mapping with `estimate`, `low` and `high`, which are shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = "-"
"""Stands for a value that was not measured."""


def thousands(value: float) -> str:
    """Return a count with separated thousands: `12,345`."""
    return f"{value:,.0f}"


def decimals(value: float | None, places: int = 3) -> str:
    """Return a number with a fixed number of decimal places."""
    return MISSING if value is None else f"{value:.{places}f}"


def significant(value: Any) -> str:
    """Return a measurement: separated thousands for large numbers and integers, three significant digits otherwise.

    A value that is not a number is returned as text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING if value is None else str(value)
    return thousands(value) if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def percent(share: float | None) -> str:
    """Return a share in percent, without the sign: `12.3`."""
    return MISSING if share is None else f"{100 * share:.1f}"


def percent_of(part: float, total: float) -> str:
    """Return `part` in percent of `total`, with the sign: `12.3%`."""
    return f"{100 * part / total:.1f}%" if total else MISSING


def rounded_percent(share: float) -> str:
    """Return a share in whole percent, with the sign: `12%`."""
    return f"{share:.0%}"


def percent_interval(interval: Mapping[str, float]) -> str:
    """Return an estimate in percent with its bounds: `12.3 [10.1, 14.5]`."""
    return f"{percent(interval['estimate'])} [{percent(interval['low'])}, {percent(interval['high'])}]"


def points(share: float) -> str:
    """Return a difference in percentage points with its sign; zero is +0.0, never -0.0."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def points_interval(interval: Mapping[str, float]) -> str:
    """Return a difference in percentage points with its bounds: `+1.2 [-0.3, +2.7]`."""
    return f"{points(interval['estimate'])} [{points(interval['low'])}, {points(interval['high'])}]"


def seconds_text(seconds: float) -> str:
    """Return the seconds of one stage or attempt: `12.3 s`."""
    return f"{seconds:.1f} s"


def duration(seconds: float) -> str:
    """Return a measured duration in seconds, minutes or hours: `42 s`, `12.3 min`, `2.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def estimated_duration(seconds: float) -> str:
    """Return an estimated duration in whole units, or two digits if it is short: `0.52 s`, `12 min`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def gigabytes(size: float) -> str:
    """Return a number of bytes in gigabytes: `1.23 GB`."""
    return f"{size / 1e9:.3g} GB"


def flops(count: float) -> str:
    """Return a number of floating point operations: `1.2e+15`."""
    return f"{count:.1e}"
