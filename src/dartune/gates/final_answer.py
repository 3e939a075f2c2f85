"""Gates on the final answer: the answer is stated once, at the end, after the reasoning, and is correct.

The two gates, `one_answer` and `correct_answer`, take verdicts of the answer checker that `registry.run_gates` collects
in one batch, because comparing notation can need a process call. The rest of the module finds where a text gives its
answer, and whether it gives the answer before the reasoning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from dartune.answers.closing_sentence import closing_number
from dartune.answers.equality import last_number, normalise, parse_number, same_plain
from dartune.gates.gate_input import GateInput
from dartune.text.features import (
    StatedAnswer,
    equation_results,
    in_digits,
    nested_boxes,
    numbers,
    numbers_at,
    spelled_numbers,
    stated_answers,
    without_notes,
    words,
)

# Words without a number that may follow the answer: `\boxed{60} dollars in all`. More than a unit is text after the
# answer.
UNIT_WORDS = 4

# Spelled numbers below this value are everyday words (`the two of them`), so they do not count as an early answer.
LEAST_SPELLED_ANSWER = 13
# `10.2 or 4.8` in a closing sentence, but not `240 - 60, or 180`, where a calculation is followed by its result.
_ALTERNATIVES = re.compile(
    r"(?<![-+*/×÷·−=] )(?<![-+*/×÷·−=\d.])[$£€]?\d[\d.]*[^\s.!?\d]{0,12}\s{1,3}or\s{1,3}[$£€]?\d"
)
# `4x`, `2(10 - x)`: a coefficient that equals the answer does not state the answer.
_COEFFICIENT = re.compile(r"[\d.,]+\s?(?:\(|\\?[a-z](?![a-z]))")
# An equals sign at the end of a text, with opening markup such as `= $\boxed{` between it and the next number.
_EQUALS_BEFORE = re.compile(r"=[\s$£€{*(-]*(?:\\[a-z]{2,9}\s?\{[\s$*-]*)?$")
# Characters before a number in which `_EQUALS_BEFORE` is searched: enough for ordinary markup, at a bounded cost.
_EQUALS_CONTEXT = 24


def has_gold_answer(item: GateInput) -> bool:
    """Return whether the row has a gold answer, either in `answer` or stated in its solution."""
    return item.task.gold(item) is not None


def candidates(item: GateInput) -> list[str]:
    """Return the texts that may count as the rewrite's answer.

    If the rewrite states an answer, this is the last stated one. Otherwise it is the number (or label, or line) at the
    end of the rewrite. If the source does not state an answer either and its own last number is not the gold answer,
    every number of the closing sentence is a candidate: the rewrite's form need not be stricter than its source's.
    """
    stated = item.task.stated(item.rewrite)
    if stated:
        return [stated[-1].text]
    if not item.task.of_numbers:
        return [] if item.task.stated(item.solution) else [item.task.implicit_answer(item.rewrite)]
    gold, source_number = item.task.gold(item), last_number(item.solution)
    texts = [last_number(item.rewrite), closing_number(item.rewrite)]
    if gold and source_number and not item.task.stated(item.solution) and same_plain(source_number, gold) is False:
        closing = _closing_sentence(item.rewrite)
        texts = [last_number(closing), *numbers(closing)]
    # A gold answer in notation (`2\sqrt{3}`) is not one number, so the texts' endings are compared.
    if gold and parse_number(gold) is None and _ending(item.rewrite).endswith(_ending(gold)):
        texts.insert(0, gold)
    return [text for text in texts if text]


def _ending(text: str) -> str:
    """Return a text without white space, delimiters and closing punctuation, to compare what it ends with."""
    text = normalise(text).replace("\\sqrt", "√")
    return re.sub(r"\\[()\[\]]|\\boxed|[\s$*{}]", "", text).rstrip(".!?")


def _closing_sentence(text: str) -> str:
    """Return the last sentence of the last line."""
    line = text.rstrip(" .!?\n").rsplit("\n", 1)[-1]
    return line.rsplit(". ", 1)[-1]


def _count_trailing_words(text: str, stated: Sequence[StatedAnswer]) -> int:
    """Count the words and numbers after the last stated answer."""
    return sum(word.isalnum() for word in words(text[stated[-1].stop :])) if stated else 0


def _has_reasoning_between(text: str, stated: Sequence[StatedAnswer]) -> bool:
    """Return whether reasoning with numbers stands between two stated answers."""
    return any(numbers(text[answer.stop : later.cue]) for answer, later in pairwise(stated))


def _answers_early(item: GateInput) -> bool:
    """Return whether the rewrite gives its answer before any calculation, and question and source do not.

    An answer that is known beforehand comes from the demonstration, and the calculations after it justify it.
    """
    stated = stated_answers(item.rewrite)
    answer = re.sub(r"\s", "", stated[-1].text if stated else item.task.gold(item) or "")
    question_numbers = spelled_numbers(item.question)
    source_results = [number for number in equation_results(item.solution) if number not in question_numbers]
    value = numbers(answer)[0] if parse_number(answer) and len(numbers(answer)) == 1 else None
    if not answer or (value is not None and value in question_numbers):
        return False
    # The result of the first step may stand just before its equation (`24, since 48 / 2 = 24`). It is early only if it
    # precedes all other numbers.
    if value is not None and source_results[:1] == [value]:
        return _opens_with(item.rewrite, value) and not _opens_with(item.solution, value)
    if value is not None:
        texts = (in_digits(without_notes(text), LEAST_SPELLED_ANSWER) for text in (item.rewrite, item.solution))
        rewrite_early, source_early = (_value_before_results(text, value, source_results) for text in texts)
        return rewrite_early and not source_early
    in_rewrite = _text_before_results(item.rewrite, answer, source_results)
    return in_rewrite and not _text_before_results(item.solution, answer, source_results)


def _opens_with(text: str, value: str) -> bool:
    """Return whether a number precedes all other numbers and also stands after an equals sign later."""
    text = in_digits(without_notes(text), LEAST_SPELLED_ANSWER)
    placed = list(numbers_at(text))  # (character position, number)
    first = placed[:1] and placed[0][1] == value and not _after_equals(text, placed[0][0])
    return bool(first) and any(number == value and _after_equals(text, place) for place, number in placed[1:])


def _value_before_results(text: str, value: str, source_results: Sequence[str]) -> bool:
    """Return whether a number stands before everything that is worked out, and once more after it.

    "Worked out" means the source's other results after an equals sign. If the text has none of them, it means the first
    equation, and in a text without equations those results at any place.
    """
    placed = list(numbers_at(text))  # (character position, number)
    places = [place for place, number in placed if number == value and not _COEFFICIENT.match(text, place)]
    other_results = [place for place, number in placed if number in source_results and number != value]
    results_at = [place for place in other_results if _after_equals(text, place)]
    starts = results_at or ([text.index("=")] if "=" in text else other_results)
    return len(places) > 1 and bool(starts) and places[0] < starts[0] and not _after_equals(text, places[0])


def _after_equals(text: str, place: int) -> bool:
    return bool(_EQUALS_BEFORE.search(text, max(0, place - _EQUALS_CONTEXT), place))


def _text_before_results(text: str, answer: str, source_results: Sequence[str]) -> bool:
    """Return whether `answer` stands before the first equation of another result, and once more after it.

    This is `_value_before_results` for answers that are not one number, such as fractions in LaTeX.
    """
    # Without spaces the answer is found in any layout; "|" keeps neighbouring numbers from joining.
    plain = re.sub(r"(?<=[\d}])\s+(?=[\d\\])", "|", text)
    plain = re.sub(r"\s", "", plain)
    places = [match.start() for match in re.finditer(rf"(?<![\d.,]){re.escape(answer)}(?!\d|[.,]\d)", plain)]
    other_results = [number for number in dict.fromkeys(source_results) if number != answer]
    equation_places = [plain.find(f"={number}") for number in other_results]
    first = min((place for place in equation_places if place >= 0), default=plain.find("="))
    return len(places) > 1 and 0 <= places[0] < first and (plain[places[0] - 1] if places[0] else "") != "="


def _is_at_end(item: GateInput) -> bool:
    """Return whether the rewrite's answer is in one place, at the end, with no more text after it than allowed."""
    if item.task.blocks:
        return _is_one_block(item)
    stated, source = stated_answers(item.rewrite), stated_answers(item.solution)
    if not stated:
        hedged = item.task.of_numbers and _ALTERNATIVES.search(_closing_sentence(item.rewrite))
        return bool(item.rewrite.strip()) and not hedged and not (item.task.of_numbers and _answers_early(item))
    text_after = item.rewrite[stated[-1].stop :]
    # Text with a number after the answer could be a second answer, so it gets no allowance beyond the source's own.
    allowed = max(_count_trailing_words(item.solution, source), 0 if numbers(text_after) else UNIT_WORDS)
    if source and _count_trailing_words(item.rewrite, stated) > allowed:
        return False
    # A box inside a box can show one answer to the checker and another to the reader.
    if nested_boxes(item.rewrite) and not nested_boxes(item.solution):
        return False
    early = _has_reasoning_between(item.rewrite, stated) or (item.task.of_numbers and _answers_early(item))
    return _has_reasoning_between(item.solution, source) or not early


def _is_one_block(item: GateInput) -> bool:
    """Return whether the rewrite has one program or tagged answer, or at most as many as the source.

    No more text may follow it than follows the source's.
    """
    stated, source = item.task.stated(item.rewrite), item.task.stated(item.solution)
    if not stated:
        return not source
    allowed = max(_count_trailing_words(item.solution, source), UNIT_WORDS)
    return len(stated) <= max(1, len(source)) and _count_trailing_words(item.rewrite, stated) <= allowed


def pairs_to_compare(item: GateInput) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the pairs of answers that the checker must compare.

    Returns:
        (earlier stated answer, last stated answer) pairs, and (candidate, gold answer) pairs.
    """
    stated = [answer.text for answer in item.task.stated(item.rewrite)]
    gold = item.task.gold(item)
    # Two blocks (programs) may differ in their text and both be correct, so they are only counted (`_is_one_block`).
    against_last = [] if item.task.blocks else [(answer, stated[-1]) for answer in dict.fromkeys(stated[:-1])]
    return against_last, [] if gold is None else [(candidate, gold) for candidate in candidates(item)]


def one_answer(item: GateInput, verdicts: dict[tuple[str, str], bool | None]) -> bool:
    """Pass if the rewrite has one final answer, at its end; repeating the same answer is allowed.

    Rejects several answers of which one is correct, the correct answer in the first box only, an answer before the
    reasoning, and text after the answer. As many words may follow the answer as in the source. Numbers need no process
    call.
    False positives: partial answers in boxes of their own; a number equal to the answer in an opening remark.
    Misses: an answer hinted at in words; spelled numbers below 13.
    """
    against_last, _ = pairs_to_compare(item)
    return _is_at_end(item) and all(verdicts[pair] for pair in against_last)


def correct_answer(item: GateInput, verdicts: dict[tuple[str, str], bool | None]) -> bool:
    """Pass if the last answer equals the gold answer. A row without a gold answer passes (see `has_gold_answer`).

    Rejects wrong solutions. Only mathematical notation and programs need a process call. An answer on which the checker
    failed does not pass, but `registry.find_unjudged` reports the row, so that its reward is missing and not zero.
    False positives: answers in a form that neither exact numbers nor math-verify equate (`44%` for `44`).
    Misses: a correct number with a wrong unit.
    """
    _, against_gold = pairs_to_compare(item)
    return not has_gold_answer(item) or any(verdicts[pair] for pair in against_gold)
