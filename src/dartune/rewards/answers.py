"""Gates on the final answer: it is stated once, at the end, after the reasoning, and is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from dartune.rewards.closing import closing_number
from dartune.rewards.items import GateInput
from dartune.rewards.text import (
    StatedAnswer,
    in_digits,
    nested_boxes,
    numbers,
    numbers_at,
    results,
    spelled_numbers,
    stated_answers,
    without_notes,
    words,
)
from dartune.rewards.verify import last_number, normalise, parse_number, same_plain

UNIT_WORDS = 4
"""As many words without a number may follow the answer: `\\boxed{60} dollars in all`."""

TELLING = 13
"""Spelled numbers from here on are told by their value; smaller ones are everyday words (`the two of them`)."""
_ALTERNATIVES = re.compile(
    r"(?<![-+*/×÷·−=] )(?<![-+*/×÷·−=\d.])[$£€]?\d[\d.]*[^\s.!?\d]{0,12}\s{1,3}or\s{1,3}[$£€]?\d"
)
"""`10.2 or 4.8` in a closing sentence, but not `240 - 60, or 180`."""
_COEFFICIENT = re.compile(r"[\d.,]+\s?(?:\(|\\?[a-z](?![a-z]))")
"""`4x`, `2(10 - x)`."""
_EQUALS_BEFORE = re.compile(r"=[\s$£€{*(-]*(?:\\[a-z]{2,9}\s?\{[\s$*-]*)?$")


def checkable(item: GateInput) -> bool:
    """Whether the row has a gold answer at all, stated or explicit."""
    return item.task.gold(item) is not None


def candidates(item: GateInput) -> list[str]:
    """What may count as the rewrite's answer: the last one it states.

    Where it announces none, the number (label, line) that it ends on counts; and where the source announces none
    either and its own last number is not the answer, any number of the closing sentence.
    """
    stated = item.task.stated(item.rewrite)
    if stated:
        return [stated[-1].text]
    if not item.task.of_numbers:
        return [] if item.task.stated(item.solution) else [item.task.unannounced(item.rewrite)]
    gold, own = item.task.gold(item), last_number(item.solution)
    found = [last_number(item.rewrite), closing_number(item.rewrite)]
    if gold and own and not item.task.stated(item.solution) and same_plain(own, gold) is False:
        closing = _closing_sentence(item.rewrite)
        found = [last_number(closing), *numbers(closing)]
    if gold and parse_number(gold) is None and _ending(item.rewrite).endswith(_ending(gold)):
        found.insert(0, gold)
    return [one for one in found if one]


def _ending(text: str) -> str:
    """A text without white space, delimiters and closing marks, to see what it ends on."""
    text = normalise(text).replace("\\sqrt", "√")
    return re.sub(r"\\[()\[\]]|\\boxed|[\s$*{}]", "", text).rstrip(".!?")


def _closing_sentence(text: str) -> str:
    """The last line's last sentence."""
    line = text.rstrip(" .!?\n").rsplit("\n", 1)[-1]
    return line.rsplit(". ", 1)[-1]


def _trailing_words(text: str, stated: Sequence[StatedAnswer]) -> int:
    """Words and numbers behind the last stated answer."""
    return sum(word.isalnum() for word in words(text[stated[-1].stop :])) if stated else 0


def _early(text: str, stated: Sequence[StatedAnswer]) -> bool:
    """Whether reasoning with numbers stands between the first stated answer and the last."""
    return any(numbers(text[one.stop : other.cue]) for one, other in pairwise(stated))


def _foretold(item: GateInput) -> bool:
    """Whether the rewrite has its answer before anything is worked out, where question and source do not."""
    stated = stated_answers(item.rewrite)
    answer = re.sub(r"\s", "", stated[-1].text if stated else item.task.gold(item) or "")
    given = spelled_numbers(item.question)
    worked_out = [number for number in results(item.solution) if number not in given]
    value = numbers(answer)[0] if parse_number(answer) and len(numbers(answer)) == 1 else None
    if not answer or (value is not None and value in given):
        return False
    if value is not None and worked_out[:1] == [value]:  # the first step's result may be told before its equation
        return _opens_with(item.rewrite, value) and not _opens_with(item.solution, value)
    if value is not None:
        texts = (in_digits(without_notes(text), TELLING) for text in (item.rewrite, item.solution))
        rewrite, source = (_first_told(text, value, worked_out) for text in texts)
        return rewrite and not source
    return _tells_first(item.rewrite, answer, worked_out) and not _tells_first(item.solution, answer, worked_out)


def _opens_with(text: str, value: str) -> bool:
    """Whether a number stands in front of every other number, and behind an equals sign later on."""
    text = in_digits(without_notes(text), TELLING)
    found = list(numbers_at(text))
    first = found[:1] and found[0][1] == value and not _after_equals(text, found[0][0])
    return bool(first) and any(number == value and _after_equals(text, place) for place, number in found[1:])


def _first_told(text: str, value: str, worked_out: Sequence[str]) -> bool:
    """Whether a number stands in front of all that is worked out, and once more behind it.

    What is worked out are the source's other results where they follow an equals sign, else the first equation; in a
    text without any, those results wherever they stand.
    """
    found = list(numbers_at(text))
    places = [place for place, number in found if number == value and not _COEFFICIENT.match(text, place)]
    others = [place for place, number in found if number in worked_out and number != value]
    results_at = [place for place in others if _after_equals(text, place)]
    starts = results_at or ([text.index("=")] if "=" in text else others)
    return len(places) > 1 and bool(starts) and places[0] < starts[0] and not _after_equals(text, places[0])


def _after_equals(text: str, place: int) -> bool:
    return bool(_EQUALS_BEFORE.search(text, max(0, place - 24), place))


def _tells_first(text: str, answer: str, worked_out: Sequence[str]) -> bool:
    """Whether `answer` stands in front of the first equation that is not its own, and once more behind it."""
    plain = re.sub(r"(?<=[\d}])\s+(?=[\d\\])", "|", text)
    plain = re.sub(r"\s", "", plain)
    places = [match.start() for match in re.finditer(rf"(?<![\d.,]){re.escape(answer)}(?!\d|[.,]\d)", plain)]
    others = [number for number in dict.fromkeys(worked_out) if number != answer]
    firsts = [plain.find(f"={number}") for number in others]
    first = min((place for place in firsts if place >= 0), default=plain.find("="))
    return len(places) > 1 and 0 <= places[0] < first and (plain[places[0] - 1] if places[0] else "") != "="


def _at_end(item: GateInput) -> bool:
    if item.task.blocks:
        return _one_block(item)
    stated, source = stated_answers(item.rewrite), stated_answers(item.solution)
    if not stated:
        hedged = item.task.of_numbers and _ALTERNATIVES.search(_closing_sentence(item.rewrite))
        return bool(item.rewrite.strip()) and not hedged and not (item.task.of_numbers and _foretold(item))
    behind = item.rewrite[stated[-1].stop :]
    allowed = max(_trailing_words(item.solution, source), 0 if numbers(behind) else UNIT_WORDS)
    if source and _trailing_words(item.rewrite, stated) > allowed:
        return False
    if nested_boxes(item.rewrite) and not nested_boxes(item.solution):
        return False
    early = _early(item.rewrite, stated) or (item.task.of_numbers and _foretold(item))
    return _early(item.solution, source) or not early


def _one_block(item: GateInput) -> bool:
    """One program or tagged answer, or as many as the source has, and no talk behind it that the source has not."""
    stated, source = item.task.stated(item.rewrite), item.task.stated(item.solution)
    if not stated:
        return not source
    behind = _trailing_words(item.rewrite, stated) <= max(_trailing_words(item.solution, source), UNIT_WORDS)
    return len(stated) <= max(1, len(source)) and behind


def answer_pairs(item: GateInput) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs to compare: earlier stated answers with the last; candidates with the gold answer."""
    stated = [answer.text for answer in item.task.stated(item.rewrite)]
    gold = item.task.gold(item)
    own = [] if item.task.blocks else [(answer, stated[-1]) for answer in dict.fromkeys(stated[:-1])]
    return own, [] if gold is None else [(candidate, gold) for candidate in candidates(item)]


def one_answer(item: GateInput, verdicts: dict[tuple[str, str], bool | None]) -> bool:
    """One final answer (however often), at the end, never two different.

    Stops: several answers of which one is right, the right answer in the first box only, an answer in
    front of the reasoning, talk after the answer. Costs nothing for numbers. As many words may follow the
    answer as follow it in the source. False positives: partial answers in boxes of their own.
    """
    own, _ = answer_pairs(item)
    return _at_end(item) and all(verdicts[pair] for pair in own)


def correct_answer(item: GateInput, verdicts: dict[tuple[str, str], bool | None]) -> bool:
    """The last answer equals the gold answer; a row without a gold answer passes (`checkable` counts them).

    Stops: wrong solutions. Costs a process call for mathematical notation only. An answer that the
    checker could not judge does not pass; `unjudged` names such rows, whose reward is missing, not zero.
    False positives: answers in a form that neither exact numbers nor math-verify equate (`44%` for `44`).
    """
    _, against_gold = answer_pairs(item)
    return not checkable(item) or any(verdicts[pair] for pair in against_gold)
