"""The registry of gates, and how they are run.

A gate is a function of one row that returns whether the rewrite passes. Each gate stops one way of raising the
alignment score without a better solution. Gates compare the rewrite with the row's own source: what the source itself
does is allowed in its rewrite. They read natural English and text in which every token is separated by spaces. The
docstring of each gate lists what it rejects, its cost, and its known false positives and misses; `docs/rewards.md` has
the same as a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dartune.answers.checker import AnswerChecker
from dartune.answers.closing_sentence import solution_part
from dartune.answers.task_families import MATH
from dartune.gates.final_answer import correct_answer, one_answer, pairs_to_compare
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.leaks import find_leaks
from dartune.gates.quantities import CALCULATION, equations, quantity_coverage, reasoning
from dartune.gates.wording import copied_share, filler_share, same_language
from dartune.text.equations import false_equations
from dartune.text.features import (
    count_thinking_blocks,
    ngram_repeats,
    numbers,
    opening_names,
    repeated_ngram_share,
    repeated_sentence_share,
    sentence_repeats,
    tandem_repeats,
    without_thinking,
    words,
    words_as_written,
)
from dartune.text.features import entities as proper_names
from dartune.text.languages import CAPITALISED_NOUNS, gold_with_points, language_of, number_normaliser

# Length (in words and marks) of the n-grams whose repetitions are counted.
LOOP_NGRAM = 4
# Upper bound of the share of words in repeated sentences. Beyond it, a text repeats itself.
REPEATED_SHARE = 0.25
# Upper bound of the share of words in runs of ten that occurred before. Sentence boundaries do not matter here.
RETOLD_SHARE = 0.35
# An n-gram that makes up less than this share of a text is not a loop. A fixed count alone would reject long texts,
# which repeat common phrases.
LOOP_SHARE = 0.1


def finished(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite is not empty, ends by itself, and has as many blocks of thinking as the source.

    Rejects text cut at the token limit (its likely first part would score well), empty text (short and therefore
    likely), thinking that does not end or is left out, and text that goes on with another question or turn. No cost.
    False positives: none. If honest rewrites are cut, raise `mapper.max_new_tokens`.
    """
    not_empty = bool(without_thinking(item.rewrite).strip())
    same_thinking = count_thinking_blocks(item.rewrite) == count_thinking_blocks(item.solution)
    continues = _continues_after_solution(item.rewrite) and not _continues_after_solution(item.solution)
    return item.finish == "stop" and not_empty and same_thinking and not continues


def _continues_after_solution(text: str) -> bool:
    return solution_part(text) != without_thinking(text)


def quantities(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite works out the source's quantities, each after the ones it depends on.

    Rejects the bare answer, omitted steps, values without steps (`24. 72.`, `24 = 24`, `May = 24`; `30 + 6 = 36` from
    numbers that occur nowhere else), and meaningless reasoning before an answer copied from the demonstration. Numbers
    of the question, 0 and 1 are not required. A result of the source that the rewrite uses before working it out does
    not count. Cost: some passes over the sentences (`text/calculations.py`).
    False positives: another way of solving; two steps merged into one in words.
    Misses: a step whose result the question gives as well; absurd reasons around correct calculations.
    """
    return quantity_coverage(item) >= thresholds.quantity_coverage


def required_names(item: GateInput) -> list[str]:
    """Return the question's names that a rewrite must use; none if there are fewer than two.

    These are the names that the source uses. All names are required if the source shows nothing about the others: it
    consists of bare values, or it calculates nothing and the rewrite states values of its own. Otherwise the steps that
    the source skips could be attributed to any name. In a language that capitalises its nouns, names cannot be
    distinguished from nouns, so none are required.
    """
    if _capitalises_nouns(item):
        return []
    names = list(dict.fromkeys(proper_names(item.question) + opening_names(item.question, item.solution)))
    used = words_as_written(item.solution) & set(names)
    source_reasoning = reasoning(item.solution)
    # The source has no words except names and the announcement of its answer.
    wordless = {word for word in words_as_written(source_reasoning) if len(word) > 1} - used <= {
        "The",
        "the",
        "Final",
        "final",
    }
    row_numbers = {*numbers(item.solution), *numbers(item.question)}
    lists_values = bool(used) and not CALCULATION.search(source_reasoning)
    adds_values = lists_values and any(number not in row_numbers for number in numbers(reasoning(item.rewrite)))
    required = names if wordless or adds_values else [name for name in names if name in used]
    return required if len(required) > 1 else []


def _min_names(item: GateInput, required: Sequence[str], coverage: float) -> float:
    """Return how many of the required names a rewrite must use.

    Two are enough if the source calculates without any name (`/ 68 2 = 34`). Such a source does not show which names
    matter, and an honest rewrite may omit a person whose number the question gives.
    """
    unnamed = not words_as_written(item.solution) & set(required)
    if unnamed and CALCULATION.search(reasoning(item.solution)):
        return min(2, len(required))
    return coverage * len(required)


def _capitalises_nouns(item: GateInput) -> bool:
    return language_of(f"{item.question}\n{item.solution}") in CAPITALISED_NOUNS


def entities(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite uses the names that it needs (`required_names`).

    Rejects one name in place of all others: the target soon finds the repeated name likely, and all numbers remain
    correct. No cost.
    False positives: a place or weekday that the source mentions and an honest rewrite does not need; "her son" in place
    of a name.
    Misses: a name on the wrong step; names that the question has only at the start of sentences and the source does not
    use; languages that capitalise their nouns or have no capitals.
    """
    required = required_names(item)
    present, inside_sentences = words_as_written(item.rewrite), set(proper_names(item.question))
    # A name known only from the start of sentences may be a common noun, which is in lower case elsewhere.
    present |= {word.capitalize() for word in present if word.capitalize() not in inside_sentences}
    return sum(name in present for name in required) >= _min_names(item, required, thresholds.entity_coverage)


def own_names(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if every name of the data set that the rewrite uses also occurs in its own row.

    Rejects invented persons: their names cost little log-probability if the numbers are correct. Cost: one set
    intersection.
    False positives: a place or weekday of other questions that an honest rewrite mentions.
    Misses: names that no question of the data set has; languages that capitalise their nouns.
    """
    if _capitalises_nouns(item):
        return True
    # Only names of the data set are checked: an unknown capitalised word may be a unit, a heading or a sentence start.
    foreign = words_as_written(item.rewrite) & thresholds.names
    return not foreign or foreign <= words_as_written(item.question) | words_as_written(item.solution)


def follows(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the target would give the answer, given only the question and the rewrite's reasoning.

    Rejects peeking: an answer that comes from the demonstration and not from the reasoning. It needs no forward pass of
    its own, because the alignment score has already scored the answer's tokens. Passes if the log-probability was not
    measured.
    False positives: answers that the target spells differently.
    Misses: with a low threshold, most wrong reasoning (`GatedReward.limits` reports this).
    """
    if thresholds.answer_logprob is None or item.answer_logprob is None:
        return True
    return item.answer_logprob >= thresholds.answer_logprob


def no_loop(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if no part of the text repeats much more often than in the source.

    Rejects loops, because after the first repetition each further one costs almost no log-probability. Six
    measures: one block back to back with itself; words in repeated sentences; words in runs of ten that occurred
    before; all calculations written twice; one sentence, or one n-gram, that occurs too often for the length of the
    text. Cost: a few passes over the words.
    False positives: tables, and long repeated additions that the source does not have.
    Misses: the same statement again in other words.
    """
    # Each measure catches loops that the others miss: the first finds short blocks in long text, the shares find a text
    # that is written twice, and the counts find a sentence or phrase that comes back between other text.
    rewrite_words, source_words = words(item.rewrite), words(item.solution)
    if tandem_repeats(rewrite_words) > tandem_repeats(source_words) + thresholds.max_repeats:
        return False
    if repeated_sentence_share(item.rewrite) > max(REPEATED_SHARE, repeated_sentence_share(item.solution)):
        return False
    if repeated_ngram_share(item.rewrite) > max(RETOLD_SHARE, repeated_ngram_share(item.solution)):
        return False
    if _calculates_twice(item.rewrite) and not _calculates_twice(item.solution):
        return False
    repeats, sentences = sentence_repeats(item.rewrite)
    if repeats > sentence_repeats(item.solution)[0] + max(thresholds.max_repeats, 2 * LOOP_SHARE * sentences):
        return False
    allowed = max(thresholds.max_repeats, LOOP_SHARE * len(rewrite_words) / LOOP_NGRAM)
    return ngram_repeats(rewrite_words, LOOP_NGRAM) <= ngram_repeats(source_words, LOOP_NGRAM) + allowed


def _calculates_twice(text: str) -> bool:
    """Return whether a text with at least two different equations writes each twice on average."""
    written = equations(text)
    distinct = {(frozenset(numbers(expression)), result) for expression, result in written}
    return len(distinct) > 1 and len(written) >= 2 * len(distinct)


def length(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite's token count is within a band around the row's expected length.

    Rejects padding with predictable words, and shortening that the coverage gates do not detect. No cost. Passes if no
    length is expected.
    False positives: an honest rewrite in a much longer or terser style than the source and the target's own samples.
    """
    if not item.expected_tokens:
        return True
    return thresholds.length_low <= len(item.token_ids) / item.expected_tokens <= thresholds.length_high


def no_leak(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite does not mention the demonstration and copies no long span of the mapper's instruction.

    Rejects solutions that refer to text the fine-tuned model will not have ("as the given solution says"). A phrase of
    the question or source is allowed. Cost: a few regular expressions.
    False positives: honest uses of a phrase, such as "as shown above" after a derivation; chatty openings.
    Misses: leaks in new words.
    """
    return not find_leaks(item.rewrite, item.question, item.solution, thresholds.leak_phrases, thresholds.instruction)


def not_copied(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if the rewrite does not repeat the question at length.

    Rejects padding with the question's own words, which cost almost nothing under a mean log-probability. Cost: one set
    of word runs.
    False positives: solutions that restate the whole question, if neither the sources nor the target's own samples do.
    Misses: copies in short pieces.
    """
    allowed = max(thresholds.question_copied, copied_share(item.question, item.solution))
    return copied_share(item.question, item.rewrite) <= allowed


def informative(item: GateInput, thresholds: GateThresholds) -> bool:
    """Pass if most of the reasoning is about this row: its numbers, names and things.

    Rejects filler that would fit any question. Cost: one pass over the sentences.
    False positives: chatty styles ("Let us take this step by step.") beyond those of sources and own samples.
    Misses: filler about the row's things.
    """
    # The topic of the source itself is the question alone; with its own words as topic it would have no filler.
    allowed = max(thresholds.filler, filler_share(item.question, item.question, item.solution))
    return filler_share(item.question, item.solution, item.rewrite) <= allowed


def language(item: GateInput, _: GateThresholds) -> bool:
    """Pass if the rewrite is in the language and the scripts of its question and source.

    Rejects a switch to a language that the target finds easier or that the other gates cannot read. Cost: about 0.1 ms.
    False positives: very short rewrites in rare vocabulary; code.
    """
    return same_language(item.question, item.solution, item.rewrite)


def true_sums(item: GateInput, _: GateThresholds) -> bool:
    """Pass if every written calculation holds, unless the source has the same one.

    Rejects a wrong step on the way to a known answer (`12 + 3 = 24`): a target that has not learnt the step can find it
    *more* natural than the correct one. Cost: regular expressions.
    False positives: none in 500 solutions of gsm_symbolic; results cut (not rounded) to one decimal.
    Misses: calculations inside longer expressions, algebra with letters, modular arithmetic, conversions of units.
    """
    return false_equations(item.rewrite) <= false_equations(item.solution)


Gate = Callable[[GateInput, GateThresholds], bool]
# Gates that read text and measured values only. Their names in the config, logs and reports are those of the functions.
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
# Gates that need verdicts of the answer checker.
ANSWER_GATES: dict[str, Callable[[GateInput, dict[tuple[str, str], bool | None]], bool]] = {
    gate.__name__: gate for gate in (one_answer, correct_answer)
}
GATE_NAMES = (*ANSWER_GATES, *PLAIN_GATES)


def _compare_answers(items: Sequence[GateInput], checker: AnswerChecker) -> dict[tuple[str, str], bool | None]:
    """Return the checker's verdict on each pair of answers of the rows; None where the check failed."""
    # One call for all rows: equal pairs are checked once, and the worker processes get them together.
    pairs = list(dict.fromkeys(pair for item in items for side in pairs_to_compare(item) for pair in side))
    (task,) = {item.task for item in items} or {MATH}
    return dict(zip(pairs, checker.check(pairs, task), strict=True))


def run_gates(inputs: Sequence[GateInput], thresholds: GateThresholds, checker: AnswerChecker) -> list[dict[str, bool]]:
    """Return, for each row, the verdicts by gate name of all gates that apply to its task family.

    All rows must be of one task family. A row's verdicts do not depend on the other rows. The answer gates read the
    text after the last block of thinking, because thinking may try several answers. Numbers of a row in another
    language are converted to English notation first.
    """
    inputs = [_in_english_notation(item) for item in inputs]
    answer_inputs = [_without_thinking(item) for item in inputs]
    verdicts = _compare_answers(answer_inputs, checker)
    return [
        {name: gate(answer_input, verdicts) for name, gate in ANSWER_GATES.items()}
        | {
            name: gate(item, thresholds)
            for name, gate in PLAIN_GATES.items()
            if name not in item.task.inapplicable_gates
        }
        for item, answer_input in zip(inputs, answer_inputs, strict=True)
    ]


def _without_thinking(item: GateInput) -> GateInput:
    return replace(item, solution=without_thinking(item.solution), rewrite=without_thinking(item.rewrite))


def _in_english_notation(item: GateInput) -> GateInput:
    """Return the row with its numbers in English notation, if its language writes them in another way."""
    read = number_normaliser(item.question, item.solution)
    # `number_normaliser` returns `str` for a row that needs no conversion.
    if read is str or not item.task.of_numbers:
        return item
    answer = item.answer and gold_with_points(item.answer, item.solution)
    question, solution, rewrite = map(read, (item.question, item.solution, item.rewrite))
    return replace(item, question=question, solution=solution, rewrite=rewrite, answer=answer)


def find_unjudged(inputs: Sequence[GateInput], checker: AnswerChecker) -> list[bool]:
    """Return, for each row, whether the answer check failed (timeout or crash).

    `correct_answer` does not pass such a row, but the answer may be correct, so its reward must be missing, not zero.
    A row with one correct candidate is not among them.
    """
    inputs = [_without_thinking(_in_english_notation(item)) for item in inputs]
    verdicts = _compare_answers(inputs, checker)
    return [
        bool(pairs) and not any(verdicts[pair] for pair in pairs) and any(verdicts[pair] is None for pair in pairs)
        for pairs in (pairs_to_compare(item)[1] for item in inputs)
    ]
