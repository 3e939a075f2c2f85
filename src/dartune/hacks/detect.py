"""Detection of hacks: which hacks of the catalogue a rewrite commits.

A gate tells that something is wrong with a rewrite; the hack's name tells what. Names are used in training metrics and
the report and never change the reward, because the gates already reject the rewrite. A rewrite may commit several
hacks. One that passes every gate commits none.
"""

from __future__ import annotations

from collections.abc import Mapping

from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.leaks import find_leaks, leak_kind
from dartune.gates.quantities import required_quantities
from dartune.gates.registry import required_names
from dartune.hacks.catalogue import HACKS, split
from dartune.text.features import nested_boxes, spelled_numbers, words, words_as_written

# Reasoning with at most this many words counts as none.
FEW_WORDS = 3
# Words shorter than this (articles, pronouns) do not show that a text is about its question.
LONG_WORD = 4
# Gates that reject one hack only.
_HACK_BY_GATE = {
    "own_names": "invented_entities",
    "true_sums": "silent_wrong_step",
    "no_loop": "repetition_loop",
    "not_copied": "question_copied",
    "informative": "filler",
    "language": "language_switch",
}
_ORDER = {hack.name: place for place, hack in enumerate(HACKS)}


def detect_hacks(item: GateInput, gates: Mapping[str, bool], thresholds: GateThresholds) -> tuple[str, ...]:
    """Return the names of the hacks that `item.rewrite` commits, in the catalogue's order.

    Args:
        gates: the verdict of every gate that applies to the task family (`run_gates`).
    """
    # An empty text fails most gates, and their names would add nothing.
    if not item.rewrite.strip():
        return ("empty",)
    hacks = {hack for gate, hack in _HACK_BY_GATE.items() if not gates.get(gate, True)}
    if not gates["finished"]:
        hacks.add("truncated")
    if not gates.get("quantities", True):
        hacks.add(_name_missing_steps(item))
    if not gates.get("follows", True):
        hacks.add("garbage_reasoning")
    if not gates.get("entities", True):
        hacks.add(_name_missing_entities(item))
    if not gates["no_leak"]:
        phrases = find_leaks(
            item.rewrite, item.question, item.solution, thresholds.leak_phrases, thresholds.instruction
        )
        hacks |= {leak_kind(phrase) for phrase in phrases}
    if not gates["length"]:
        hacks.add("too_long" if len(item.token_ids) > (item.expected_tokens or 0) else "too_short")
    # A truncated text has no answer because it is cut, which is not a trick with answers.
    if item.finish == "stop" and not (gates["one_answer"] and gates["correct_answer"]):
        hacks |= _name_answer_tricks(item, gates)
    return tuple(sorted(hacks, key=_ORDER.__getitem__))


def _name_missing_steps(item: GateInput) -> str:
    """Return the hack of a rewrite without the required quantities, by what it has in their place."""
    reasoning, _ = split(item.rewrite)
    reasoning_words = words(reasoning)
    if set(required_quantities(item)) & set(spelled_numbers(reasoning)):
        return "dropped_intermediates"
    if len(reasoning_words) <= FEW_WORDS:
        return "too_short" if reasoning_words else "bare_answer"
    # Garbage uses the question's words; a template shares nothing with the row.
    return "garbage_reasoning" if _facts(item.question) & _facts(reasoning) else "template_collapse"


def _facts(text: str) -> set[str]:
    """Return the numbers and the longer words of a text."""
    return {*spelled_numbers(text), *(word for word in words(text) if len(word) >= LONG_WORD)}


def _name_missing_entities(item: GateInput) -> str:
    """Return whether one name replaces all others, or names are left out."""
    required = required_names(item)
    present = set(required) & words_as_written(item.rewrite)
    # A single remaining name that occurs as often as there are required names stands in place of the others.
    occurrences = words(item.rewrite).count(present.pop()) if len(present) == 1 else 0
    return "merged_entities" if occurrences >= len(required) > 1 else "dropped_entities"


def _name_answer_tricks(item: GateInput, gates: Mapping[str, bool]) -> set[str]:
    """Return the hack of a rewrite that fails a gate on the final answer."""
    if item.task.blocks:
        return {"several_answers" if gates["correct_answer"] else "wrong_answer"}
    stated = [answer.text for answer in item.task.stated(item.rewrite)]
    gold = item.task.gold(item)
    if nested_boxes(item.rewrite) and not nested_boxes(item.solution):
        return {"nested_box"}
    if not gates["correct_answer"]:
        correct = [item.task.same(text, gold) for text in stated] if gold else []
        return {"first_box"} if any(correct[:-1]) and not correct[-1] else {"wrong_answer"}
    if any(item.task.same(text, stated[-1]) is False for text in stated[:-1]):
        return {"several_answers"}
    return {"early_answer"}
