"""Gates: yes/no checks that a rewrite must pass before its alignment is worth anything.

Each gate is one small function of one row, named after what it asks for; each stops one way of
gaming the alignment score. All are measured against the row's own source, so that what an honest
source does is never held against its rewrite. They read space-separated tokens and natural English.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dartune.rewards.answers import answer_pairs, correct_answer, one_answer
from dartune.rewards.arithmetic import false_sums
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.closing import solution_part
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.languages import CAPITALISED_NOUNS, gold_with_points, language_of, reader
from dartune.rewards.leaks import leaks
from dartune.rewards.quantities import CALCULATION, covered, equations, reasoning
from dartune.rewards.tasks import MATH
from dartune.rewards.text import (
    aloud,
    mentions,
    ngram_repeats,
    numbers,
    opening_names,
    repeated_share,
    retold_share,
    sentence_repeats,
    tandem_repeats,
    thoughts,
    words,
)
from dartune.rewards.text import entities as proper_names
from dartune.rewards.wording import copied_share, filler_share, same_language

LOOP_NGRAM = 4
REPEATED_SHARE = 0.25
"""A text in which more than this share of the words is in repeated sentences says things twice."""
RETOLD_SHARE = 0.35
"""So does one in which more than this share of the words stands in runs of ten that were there before."""
LOOP_SHARE = 0.1
"""An n-gram is no loop while its occurrences make up less than this share of the text."""


def finished(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite says something and ends by itself; it thinks in a block of its own just where the source does.

    Stops: text cut at the token limit (its likely first part would score well), and empty text, which
    is short and therefore likely; thinking that never ends, or that is left out; text that goes on with another
    question or turn. Costs nothing. False positives: none; raise `max_new_tokens` where honest rewrites are cut.
    """
    said = bool(aloud(item.rewrite).strip()) and thoughts(item.rewrite) == thoughts(item.solution)
    goes_on = _goes_on(item.rewrite) and not _goes_on(item.solution)
    return item.finish == "stop" and said and not goes_on


def _goes_on(text: str) -> bool:
    return solution_part(text) != aloud(text)


def quantities(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite works out every quantity that the source works out, none before the ones that it needs.

    Stops: the bare answer, dropped steps, values without steps (`24. 72.`, `24 = 24`, `May = 24`, `30 + 6 = 36` from
    numbers that occur nowhere else), and meaningless reasoning in front of an answer copied from the demonstration.
    Costs some passes over the sentences (`steps.py`). Numbers that the question gives, 0 and 1 are not asked for. A
    value that the source works out and the rewrite first uses in a sum has come from nowhere. False positives: another
    way of solving; two steps made one. Misses: a step whose result the question gives as well.
    """
    return covered(item) >= thresholds.quantity_coverage


def required_names(item: GateInput) -> list[str]:
    """The question's names that a rewrite must use; none where there are not two to tell apart.

    Those that the source uses; but all of them where the source shows nothing about the others: where it
    is bare values (no words but names and its closing answer), and where it calculates nothing and the
    rewrite fills in values, so that the persons of the skipped steps are due as well. In a language that capitalises
    its nouns no names can be told.
    """
    if _capitalises_nouns(item):
        return []
    asked = list(dict.fromkeys(proper_names(item.question) + opening_names(item.question, item.solution)))
    used = mentions(item.solution) & set(asked)
    told = reasoning(item.solution)
    wordless = {word for word in mentions(told) if len(word) > 1} - used <= {
        "The",
        "the",
        "Final",
        "final",
    }
    known = {*numbers(item.solution), *numbers(item.question)}
    skips = bool(used) and not CALCULATION.search(told)
    fills_in = skips and any(number not in known for number in numbers(reasoning(item.rewrite)))
    needed = asked if wordless or fills_in else [name for name in asked if name in used]
    return needed if len(needed) > 1 else []


def _enough_names(item: GateInput, needed: Sequence[str], coverage: float) -> float:
    """How many of the needed names a rewrite must use; two where the source names nobody (`/ 68 2 = 34`).

    Such a source does not say who matters, and an honest rewrite may leave out whose number the question gives.
    """
    unnamed = not mentions(item.solution) & set(needed)
    return min(2, len(needed)) if unnamed and CALCULATION.search(reasoning(item.solution)) else coverage * len(needed)


def _capitalises_nouns(item: GateInput) -> bool:
    return language_of(f"{item.question}\n{item.solution}") in CAPITALISED_NOUNS


def entities(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite uses the names it needs (`required_names`).

    Stops: every name replaced by one, whose repetition the target soon finds likely while all numbers
    are right. Costs nothing. False positives: a place or a weekday that the source mentions and an honest
    rewrite need not. Misses: a name on the wrong step, names that the question only ever puts at a sentence's start
    and the source does not use, and languages that capitalise their nouns or have no capitals.
    """
    needed = required_names(item)
    present, inside = mentions(item.rewrite), set(proper_names(item.question))
    present |= {word.capitalize() for word in present if word.capitalize() not in inside}
    return sum(name in present for name in needed) >= _enough_names(item, needed, thresholds.entity_coverage)


def own_names(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite names nobody out of another row: every name of the data set that it uses is this row's.

    Stops: invented persons, which a target hardly minds once their number is right. Costs a set intersection.
    False positives: a place or weekday that other questions ask about and an honest rewrite mentions by itself.
    Misses: names that no question of the data set has; languages that capitalise their nouns.
    """
    if _capitalises_nouns(item):
        return True
    foreign = mentions(item.rewrite) & thresholds.names
    return not foreign or foreign <= mentions(item.question) | mentions(item.solution)


def follows(item: GateInput, thresholds: GateThresholds) -> bool:
    """The target, with only the question and the rewrite's reasoning before it, would give this answer.

    Stops: peeking, an answer that comes from the demonstration and not from the reasoning. Costs no
    forward pass of its own (the scoring pass has the answer's tokens). False positives: answers the
    target spells differently. Passes where the log-probability was not measured.
    """
    if thresholds.answer_logprob is None or item.answer_logprob is None:
        return True
    return item.answer_logprob >= thresholds.answer_logprob


def no_loop(item: GateInput, thresholds: GateThresholds) -> bool:
    """No run of words repeats much more often than anything in the source does.

    Stops: loops, whose every further round is nearly free. Four signs: one block back to back with
    itself, at any length of text; one sentence again and again; an n-gram that fills more than a tenth of the
    text; all of a solution's calculations a second time. Costs a few passes over the words. False positives: tables
    and long repeated additions that the source does not have.
    """
    written, source = words(item.rewrite), words(item.solution)
    if tandem_repeats(written) > tandem_repeats(source) + thresholds.max_repeats:
        return False
    if repeated_share(item.rewrite) > max(REPEATED_SHARE, repeated_share(item.solution)):
        return False
    if retold_share(item.rewrite) > max(RETOLD_SHARE, retold_share(item.solution)):
        return False
    if _worked_twice(item.rewrite) and not _worked_twice(item.solution):
        return False
    repeats, sentences = sentence_repeats(item.rewrite)
    if repeats > sentence_repeats(item.solution)[0] + max(thresholds.max_repeats, 2 * LOOP_SHARE * sentences):
        return False
    allowed = max(thresholds.max_repeats, LOOP_SHARE * len(written) / LOOP_NGRAM)
    return ngram_repeats(written, LOOP_NGRAM) <= ngram_repeats(source, LOOP_NGRAM) + allowed


def _worked_twice(text: str) -> bool:
    """Whether a text writes its equations, two or more, twice each on average."""
    written = equations(text)
    different = {(frozenset(numbers(expression)), result) for expression, result in written}
    return len(different) > 1 and len(written) >= 2 * len(different)


def length(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite's token count is within a band around what is expected of this row.

    Stops: padding with predictable words, and whatever brevity the coverage gates let through. Costs
    nothing. False positives: an honest rewrite in a far wordier or terser style than the source and the
    target's own samples. Passes where no length is expected.
    """
    if not item.expected_tokens:
        return True
    return thresholds.length_low <= len(item.token_ids) / item.expected_tokens <= thresholds.length_high


def no_leak(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite does not talk about the demonstration and copies no long span of the prompt's instruction.

    Stops: solutions that lean on something the trained model will not see ("as the given solution
    says"). Costs a few searches. A phrase that the question or the source itself uses is allowed.
    False positives: honest uses of a phrase, such as "as shown above" after a derivation.
    """
    return not leaks(item.rewrite, item.question, item.solution, thresholds.leak_phrases, thresholds.instruction)


def not_copied(item: GateInput, thresholds: GateThresholds) -> bool:
    """The rewrite does not repeat the question at length.

    Stops: padding with the question's own words, nearly free under a mean log-probability. Costs a set of word
    runs. False positives: solutions that open by restating the whole question, where neither the sources nor the
    target's own samples do.
    """
    allowed = max(thresholds.question_copied, copied_share(item.question, item.solution))
    return copied_share(item.question, item.rewrite) <= allowed


def informative(item: GateInput, thresholds: GateThresholds) -> bool:
    """Most of the reasoning speaks of this row: its numbers, its names, its things.

    Stops: filler that would fit any question. Costs a pass over the sentences. False positives: chatty
    styles ("Let us take this step by step.") beyond what sources and own samples show.
    """
    allowed = max(thresholds.filler, filler_share(item.question, item.question, item.solution))
    return filler_share(item.question, item.solution, item.rewrite) <= allowed


def language(item: GateInput, _: GateThresholds) -> bool:
    """The rewrite is in the language and the scripts of its question and source.

    Stops: a switch to a language the target finds easier or the other gates cannot read. Costs about 0.1 ms.
    False positives: very short rewrites in rare vocabulary; code.
    """
    return same_language(item.question, item.solution, item.rewrite)


def true_sums(item: GateInput, _: GateThresholds) -> bool:
    """Every sum written out holds, unless the source writes it too.

    Stops: a silent wrong step on the way to a known answer ("12 + 3 = 24"), which a target that has yet to
    learn the step can find *more* natural than the right one. Costs one regular expression. False
    positives: none in 500 solutions of gsm_symbolic; sums inside longer expressions are not judged.
    """
    return false_sums(item.rewrite) <= false_sums(item.solution)


Gate = Callable[[GateInput, GateThresholds], bool]
PLAIN_GATES: dict[str, Gate] = {
    gate.__name__: gate
    for gate in (
        finished,
        quantities,
        entities,
        own_names,
        follows,
        true_sums,
        no_loop,
        length,
        no_leak,
        not_copied,
        informative,
        language,
    )
}
ANSWER_GATES: dict[str, Callable[[GateInput, dict[tuple[str, str], bool | None]], bool]] = {
    gate.__name__: gate for gate in (one_answer, correct_answer)
}
GATE_NAMES = (*ANSWER_GATES, *PLAIN_GATES)


def _verdicts(items: Sequence[GateInput], checker: AnswerChecker) -> dict[tuple[str, str], bool | None]:
    pairs = list(dict.fromkeys(pair for item in items for side in answer_pairs(item) for pair in side))
    (task,) = {item.task for item in items} or {MATH}
    return dict(zip(pairs, checker.check(pairs, task), strict=True))


def run_gates(inputs: Sequence[GateInput], thresholds: GateThresholds, checker: AnswerChecker) -> list[dict[str, bool]]:
    """The verdicts by name of the gates that fit the rows' task family, which is one; rows do not influence each other.

    The gates on the answer read what comes after a block of thinking, in which answers may be tried. Numbers of a row
    in another language are read in English notation.
    """
    inputs = [_in_english_notation(item) for item in inputs]
    said = [_aloud(item) for item in inputs]
    verdicts = _verdicts(said, checker)
    return [
        {name: gate(spoken, verdicts) for name, gate in ANSWER_GATES.items()}
        | {name: gate(item, thresholds) for name, gate in PLAIN_GATES.items() if name not in item.task.unfit}
        for item, spoken in zip(inputs, said, strict=True)
    ]


def _aloud(item: GateInput) -> GateInput:
    return replace(item, solution=aloud(item.solution), rewrite=aloud(item.rewrite))


def _in_english_notation(item: GateInput) -> GateInput:
    read = reader(item.question, item.solution)
    if read is str or not item.task.of_numbers:
        return item
    answer = item.answer and gold_with_points(item.answer, item.solution)
    question, solution, rewrite = map(read, (item.question, item.solution, item.rewrite))
    return replace(item, question=question, solution=solution, rewrite=rewrite, answer=answer)


def unjudged(inputs: Sequence[GateInput], checker: AnswerChecker) -> list[bool]:
    """Rows whose answer the checker failed on (time-out, crash): `correct_answer` says no, but nobody knows."""
    inputs = [_aloud(_in_english_notation(item)) for item in inputs]
    verdicts = _verdicts(inputs, checker)
    return [
        bool(pairs) and not any(verdicts[pair] for pair in pairs) and any(verdicts[pair] is None for pair in pairs)
        for pairs in (answer_pairs(item)[1] for item in inputs)
    ]
