"""Which hacks a rewrite commits, by the catalogue's names: a gate says that something is wrong, a sign says what.

Signs are read for training metrics and the report, never paid for: what stops a hack is its gate. A rewrite may show
several; one that passes every gate shows none.
"""

from __future__ import annotations

from collections.abc import Mapping

from dartune.rewards.gates import required_names
from dartune.rewards.hacks import HACKS, split
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.leaks import leak_kind, leaks
from dartune.rewards.quantities import required_quantities
from dartune.rewards.text import mentions, nested_boxes, spelled_numbers, words

FEW_WORDS = 3
LONG_WORD = 4
_BY_GATE = {
    "own_names": "invented_entities",
    "true_sums": "silent_wrong_step",
    "no_loop": "repetition_loop",
    "not_copied": "question_copied",
    "informative": "filler",
    "language": "language_switch",
}
_ORDER = {hack.name: place for place, hack in enumerate(HACKS)}


def committed(item: GateInput, gates: Mapping[str, bool], thresholds: GateThresholds) -> tuple[str, ...]:
    """Names of the hacks that `item.rewrite` commits, in the catalogue's order.

    Args:
        gates: the verdict on it of every gate that fits its task (`run_gates`).
    """
    if not item.rewrite.strip():
        return ("empty",)
    found = {_BY_GATE[name] for name in _BY_GATE if not gates.get(name, True)}
    if not gates["finished"]:
        found.add("truncated")
    if not gates.get("quantities", True):
        found.add(_missing_steps(item))
    if not gates.get("follows", True):
        found.add("garbage_reasoning")
    if not gates.get("entities", True):
        found.add(_missing_names(item))
    if not gates["no_leak"]:
        said = leaks(item.rewrite, item.question, item.solution, thresholds.leak_phrases, thresholds.instruction)
        found |= {leak_kind(phrase) for phrase in said}
    if not gates["length"]:
        found.add("too_long" if len(item.token_ids) > (item.expected_tokens or 0) else "too_short")
    if item.finish == "stop" and not (gates["one_answer"] and gates["correct_answer"]):
        found |= _answer_tricks(item, gates)
    return tuple(sorted(found, key=_ORDER.__getitem__))


def _missing_steps(item: GateInput) -> str:
    """What stands in the quantities' place: nothing, little, a text for any row, nonsense, or some of them."""
    reasoning, _ = split(item.rewrite)
    told = words(reasoning)
    if set(required_quantities(item)) & set(spelled_numbers(reasoning)):
        return "dropped_intermediates"
    if len(told) <= FEW_WORDS:
        return "too_short" if told else "bare_answer"
    return "garbage_reasoning" if _facts(item.question) & _facts(reasoning) else "template_collapse"


def _facts(text: str) -> set[str]:
    """The numbers and the longer words of a text."""
    return {*spelled_numbers(text), *(word for word in words(text) if len(word) >= LONG_WORD)}


def _missing_names(item: GateInput) -> str:
    """One name in everybody's place, or names left out."""
    needed = required_names(item)
    present = set(needed) & mentions(item.rewrite)
    alone = words(item.rewrite).count(present.pop()) if len(present) == 1 else 0
    return "merged_entities" if alone >= len(needed) > 1 else "dropped_entities"


def _answer_tricks(item: GateInput, gates: Mapping[str, bool]) -> set[str]:
    if item.task.blocks:
        return {"several_answers" if gates["correct_answer"] else "wrong_answer"}
    stated = [answer.text for answer in item.task.stated(item.rewrite)]
    gold = item.task.gold(item)
    if nested_boxes(item.rewrite) and not nested_boxes(item.solution):
        return {"nested_box"}
    if not gates["correct_answer"]:
        right = [item.task.same(text, gold) for text in stated] if gold else []
        return {"first_box"} if any(right[:-1]) and not right[-1] else {"wrong_answer"}
    if any(item.task.same(text, stated[-1]) is False for text in stated[:-1]):
        return {"several_answers"}
    return {"early_answer"}
