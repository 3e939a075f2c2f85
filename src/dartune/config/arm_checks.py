"""What is wrong with an arm that a user defines: values, contradictions, other arms that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dartune.config.arms import ADAPTATIONS, ARMS, BUILT_IN, GROUPS, Arm

ROWS = (None, "demonstrations", "own", "greedy", "gold", *ADAPTATIONS)
USES: dict[str, tuple[str, Callable[[Arm], bool]]] = {
    "loss": ("rows", lambda arm: bool(arm.rows)),
    "share": ("rows", lambda arm: bool(arm.rows)),
    "trains_as_much_as": ("rows", lambda arm: bool(arm.rows)),
    "gains_as_much_as": ("rows", lambda arm: bool(arm.rows)),
    "low_rates": ("rows or a teacher", lambda arm: bool(arm.rows or arm.teacher)),
    "teacher_update": ("a teacher", lambda arm: bool(arm.teacher)),
    "times": ("a budget", lambda arm: bool(arm.budget)),
    "renewed": ("a start, and the rows 'own' or 'dart'", lambda arm: bool(arm.start) and arm.rows in ("own", "dart")),
    "keep_original": ("the rows of an adaptation", lambda arm: arm.rows in ADAPTATIONS),
    "select": ("the rows of an adaptation", lambda arm: arm.rows in ADAPTATIONS),
    "augment": ("the rows of an adaptation", lambda arm: arm.rows in ADAPTATIONS),
}
"""Field -> what it needs to have an effect, in words and as a condition."""


def arm_problems(arm: Arm) -> list[str]:
    """Every reason why an arm cannot be used, one line each; empty if it can."""
    wrong = _wrong_types(arm)
    wrong |= _wrong_values(arm, set(wrong))
    return list(wrong.values()) or [*_contradictions(arm), *_other_arms(arm)]


def _wrong_types(arm: Arm) -> dict[str, str]:
    """Field -> what is wrong with the type of its value."""
    messages = {}
    for name, kind in get_type_hints(Arm).items():
        try:
            TypeAdapter(kind).validate_python(getattr(arm, name), strict=True)
        except ValidationError as error:
            messages[name] = f"{name} is {getattr(arm, name)!r}: {error.errors()[0]['msg'].lower()}"
    return messages


def _wrong_values(arm: Arm, mistyped: set[str]) -> dict[str, str]:
    """Field -> what is wrong with its value, apart from the range of a field that has the wrong type."""
    allowed: dict[str, tuple[Any, ...]] = {
        "rows": ROWS,
        "loss": ("ce", "dft", "asft", "stm"),
        "teacher": (None, "target", "mapper"),
        "budget": (None, "tokens", "seconds"),
        "group": GROUPS,
    }
    for name in ("start", "trains_as_much_as", "gains_as_much_as"):
        allowed[name] = (None, *BUILT_IN)
    messages = {
        name: f"{name} is {getattr(arm, name)!r} but should be one of {', '.join(map(repr, values))}"
        for name, values in allowed.items()
        if getattr(arm, name) not in values
    }
    ranges: dict[str, tuple[Callable[[Any], bool], str]] = {
        "share": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "select": (lambda value: value is None or 0 < value <= 1, "above 0 and at most 1"),
        "teacher_update": (lambda value: 0 <= value <= 1, "between 0 and 1"),
        "times": (lambda value: value >= 1, "at least 1"),
    }
    for name, (holds, expected) in ranges.items():
        if name not in mistyped and not holds(getattr(arm, name)):
            messages[name] = f"{name} is {getattr(arm, name)} but should be {expected}"
    return messages


def _contradictions(arm: Arm) -> list[str]:
    methods = [name for name in ("rows", "budget", "teacher") if getattr(arm, name)]
    if len(methods) > 1:
        return [f"{' and '.join(methods)} are set, but an arm has one method of training; keep one"]
    if not methods:
        return ["rows, budget or teacher must be set; an arm without training exists: base"]
    defaults = {field.name: field.default for field in fields(Arm)}
    return [
        f"{name} has no effect without {what}; remove it, or set that"
        for name, (what, applies) in USES.items()
        if getattr(arm, name) != defaults[name] and not applies(arm)
    ]


def _other_arms(arm: Arm) -> list[str]:
    """Other arms that this one names, but that have no model, or no rows to count."""
    messages = []
    for name in ("start", "gains_as_much_as", "trains_as_much_as"):
        other = getattr(arm, name)
        if other in BUILT_IN and not ARMS[other].trained:
            messages.append(f"{name} is {other!r}, which is not trained; name an arm that is, or leave it out")
        elif other in BUILT_IN and name == "trains_as_much_as" and not ARMS[other].rows:
            messages.append(f"{name} is {other!r}, which is not trained on rows; name an arm that is")
    return messages
