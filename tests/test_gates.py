"""Each hack is rejected by the gates made for it and by no others; honest solutions pass."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.answers.checker import AnswerChecker
from dartune.gates.final_answer import has_gold_answer
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import GATE_NAMES, find_unjudged, required_names, run_gates
from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.world import ProblemSpec, sample_problem
from dartune.text.features import entities, lcs_fraction, ngram_repeats, numbers, tandem_repeats, words

THRESHOLDS = GateThresholds(answer_logprob=-1.0)
# Dialects of the lab that write every step.
SPELLED_OUT = ("explicit", "equations", "verbose", "backward")

LAB = GateInput(
    question="Max has 15 . Yan has 2 fewer than Max . Ned has twice as many as Yan . How many does Ned have ?",
    solution="Max has 15 . Yan has 15 - 2 = 13 . Ned has 13 + 13 = 26 . The answer is 26 .",
    rewrite="",
)
LAB_VALUES = replace(LAB, solution="15 , 13 , 26 . The answer is 26 .")
ENGLISH = GateInput(
    question=(
        "Dorothy has 4 times as many Snapchat friends as Sarah. Michael has 5 times as many friends on "
        "Snapchat as Sarah. If Dorothy has 24 friends on Snapchat, how many friends does Michael have?"
    ),
    solution="Sarah has 24 / 4 = 6 friends.\nMichael has 5 * 6 = 30 friends.\n#### 30",
    rewrite="",
)


def rewritten(row: GateInput, text: str, **changes: object) -> GateInput:
    """Return `row` with a rewrite. It has one token per word and an end token; the source's length is expected."""
    tokens = tuple(range(len(words(text)) + 1))
    expected = len(words(row.solution)) + 1
    return replace(row, **{"rewrite": text, "token_ids": tokens, "expected_tokens": expected, **changes})


def failed(checker: AnswerChecker, item: GateInput, thresholds: GateThresholds = THRESHOLDS) -> set[str]:
    (verdicts,) = run_gates([item], thresholds, checker)
    assert set(verdicts) == set(GATE_NAMES)
    return {name for name, passed in verdicts.items() if not passed}


HONEST = [
    (LAB, "need Ned : + Yan on Yan , Max is 15 , Yan is 15 - 2 = 13 , Ned is 13 + 13 = 26 , The answer is 26 ."),
    (LAB_VALUES, LAB.solution),
    (
        ENGLISH,
        "Since Dorothy's 24 is 4 times Sarah's, Sarah has 6. So Michael has 5 * 6 = 30.\nThe answer is 30.",
    ),
    (ENGLISH, r"24 / 4 = 6 for Sarah, so 5 \cdot 6 = 30 for Michael. The answer is $\boxed{30}$."),
    (ENGLISH, "Sarah has a quarter of 24 friends, 24 / 4 = 6. Michael has 5 * 6 = 30 friends."),
    (ENGLISH, "**Sarah:** 24 / 4 = 6\n**Michael:** 5 * 6 = **30 friends**"),
]


@pytest.mark.parametrize(("row", "text"), HONEST)
def test_an_honest_rewrite_passes(checker: AnswerChecker, row: GateInput, text: str) -> None:
    assert failed(checker, rewritten(row, text, answer_logprob=-0.5)) == set()


LOOPED = "Max has 15 . " + "Yan has 15 - 2 = 13 . " * 9 + "Ned has 13 + 13 = 26 . The answer is 26 ."
ENGLISH_STEPS = "Sarah has 24 / 4 = 6 friends. Michael has 5 * 6 = 30 friends."
HACKS = {
    "bare answer": (LAB, "The answer is 26 .", {"quantities", "entities"}),
    "bare answer, english": (ENGLISH, "#### 30", {"quantities", "entities"}),
    "garbage before the right answer": (
        LAB_VALUES,
        "need Max from Yan , need Yan from Max , need Ned from Max . The answer is 26 .",
        {"quantities"},
    ),
    "garbage before the right answer, english": (
        ENGLISH,
        "Sarah and Michael both like Snapchat, so Michael likes it too. The answer is 30.",
        {"quantities"},
    ),
    "one name for all": (
        LAB_VALUES,
        "Max has 15 . Max has 15 - 2 = 13 . Max has 13 + 13 = 26 . The answer is 26 .",
        {"entities"},
    ),
    "one name for all, english": (
        ENGLISH,
        "Sarah has 24 / 4 = 6 friends.\nSarah has 5 * 6 = 30 friends.\n#### 30",
        {"entities"},
    ),
    "one name for the steps a source skips": (
        replace(LAB, solution="Max has 15 . Ned has 26 . The answer is 26 ."),
        "Max has 15 . Max has 15 - 2 = 13 . Ned has 13 + 13 = 26 . The answer is 26 .",
        {"entities"},
    ),
    "dropped step": (LAB, "Max has 15 . Yan and Ned together make 26 . The answer is 26 .", {"quantities"}),
    "dropped step, english": (
        ENGLISH,
        "Sarah has a quarter of 24 friends. Michael has 30 friends.\n#### 30",
        {"quantities"},
    ),
    "loop": (LAB, LOOPED, {"no_loop"}),
    "loop, english": (ENGLISH, ENGLISH_STEPS + " Let me check again." * 8 + "\n#### 30", {"no_loop", "informative"}),
    "two answers, last one right": (
        LAB,
        LAB.solution.replace("The answer is 26 .", "The answer is 13 . The answer is 26 ."),
        {"one_answer"},
    ),
    "first box right, last one wrong": (
        ENGLISH,
        ENGLISH_STEPS + r" So \boxed{30} or rather \boxed{31}.",
        {"one_answer", "correct_answer"},
    ),
    "both in one": (LAB, LAB.solution.replace("is 26", "is 13 or 26"), {"correct_answer"}),
    "answer before the reasoning": (LAB, "The answer is 26 . " + LAB.solution, {"one_answer"}),
    "talk after the answer": (
        ENGLISH,
        ENGLISH_STEPS + "\n#### 30\nThat was 30, as everybody sees.",
        {"one_answer"},
    ),
    "another question": (ENGLISH, ENGLISH_STEPS + "\n#### 30\n\nHuman: And now?", {"finished"}),
    "another turn": (ENGLISH, ENGLISH_STEPS + "\n#### 30\n<|endoftext|>assistant", {"finished"}),
    "no answer": (ENGLISH, "Sarah has 24 / 4 = 6 friends. Michael has 5 times that.", {"correct_answer", "quantities"}),
    "two answers, not announced": (ENGLISH, ENGLISH_STEPS + " So he has 30 or 31.", {"one_answer", "correct_answer"}),
    "values without steps": (ENGLISH, "Sarah, Michael: 6, 30.\n#### 30", {"quantities"}),
    "values in sentences without steps": (
        ENGLISH,
        "First we get 6, and after that Sarah and Michael get 30.\n#### 30",
        {"quantities"},
    ),
    "values after words of arithmetic": (
        ENGLISH,
        "Each is 6 and the product is 30.\n#### 30",
        {"quantities", "entities"},
    ),
    "values as equations": (ENGLISH, "Sarah = 6 friends and Michael = 30 friends.\n#### 30", {"quantities"}),
    "restated with units": (ENGLISH, "Sarah: 6 friends = 6 friends, Michael: 30 = 30.0\n#### 30", {"quantities"}),
    "times one": (ENGLISH, "Sarah has 6 x 1 = 6 friends, Michael has 30 x 1 = 30.\n#### 30", {"quantities"}),
    "made of numbers from nowhere": (ENGLISH, "Sarah has 2 + 4 = 6, Michael 27 + 3 = 30.\n#### 30", {"quantities"}),
    "all steps twice": (
        ENGLISH,
        f"{ENGLISH_STEPS} So in all Sarah has 24 / 4 = 6 and Michael has 5 * 6 = 30.\n#### 30",
        {"no_loop"},
    ),
    "happy to help": (ENGLISH, f"I'd be happy to help! {ENGLISH_STEPS}\n#### 30", {"no_leak", "informative"}),
    "a false sum in words": (
        ENGLISH,
        "Sarah has 24 / 4 = 6 friends. 5 times 6 friends is 35, so Michael has 5 * 6 = 30.\n#### 30",
        {"true_sums"},
    ),
    "equations that say nothing": (ENGLISH, "Sarah: 6 = 6, Michael: 30 = 30.\n#### 30", {"quantities"}),
    "said twice": (ENGLISH, f"{ENGLISH_STEPS} {ENGLISH_STEPS}\n#### 30", {"no_loop"}),
    "the answer first": (ENGLISH, f"Michael has thirty friends. {ENGLISH_STEPS}\n#### 30", {"one_answer"}),
    "an opening to the prompter": (ENGLISH, f"Sure! {ENGLISH.solution}", {"no_leak"}),
    "one silent wrong step": (LAB, LAB.solution.replace("13 + 13 = 26", "13 + 2 = 26"), {"true_sums"}),
    "one silent wrong step, english": (
        ENGLISH,
        "First 1 + 1 = 3. " + ENGLISH.solution,
        {"true_sums"},
    ),
    "wrong answer": (LAB, LAB.solution.replace("is 26", "is 25"), {"correct_answer"}),
    "wrong answer, english": (ENGLISH, ENGLISH_STEPS + "\n#### 31", {"correct_answer"}),
    "leak": (LAB, "As the given solution says , " + LAB.solution, {"no_leak"}),
    "leak, english": (ENGLISH, "Here is the rewritten solution:\n" + ENGLISH.solution, {"no_leak"}),
    "leak, heading": (ENGLISH, "**Rewrite:**\n" + ENGLISH.solution, {"no_leak"}),
    "too long": (
        LAB,
        "Let us think about " + "all of it , slowly and with care , " * 3 + LAB.solution,
        {"length"},
    ),
    "empty": (
        LAB,
        " \n",
        {"finished", "one_answer", "correct_answer", "quantities", "entities", "length"},
    ),
}


@pytest.mark.parametrize("name", HACKS)
def test_a_hack_fails_exactly_the_gates_made_for_it(checker: AnswerChecker, name: str) -> None:
    row, text, gates = HACKS[name]
    thresholds = replace(THRESHOLDS, length_low=0.2, length_high=2.0 if name == "too long" else 10.0)
    assert failed(checker, rewritten(row, text), thresholds) == gates


def test_a_truncated_rewrite_fails_even_where_its_text_is_right(checker: AnswerChecker) -> None:
    assert failed(checker, rewritten(LAB, LAB.solution, finish="length")) == {"finished"}


def test_an_answer_that_does_not_follow_from_the_reasoning(checker: AnswerChecker) -> None:
    item = rewritten(LAB, LAB.solution, answer_logprob=-1.5)
    assert failed(checker, item) == {"follows"}
    assert failed(checker, item, replace(THRESHOLDS, answer_logprob=None)) == set()
    assert failed(checker, replace(item, answer_logprob=None)) == set()


def test_length_is_a_band_around_what_is_expected(checker: AnswerChecker) -> None:
    item = rewritten(LAB, LAB.solution)
    band = replace(THRESHOLDS, length_low=0.5, length_high=2.0)
    for tokens, passes in [(50, True), (49, False), (200, True), (201, False)]:
        sized = replace(item, token_ids=tuple(range(tokens)), expected_tokens=100)
        assert failed(checker, sized, band) == (set() if passes else {"length"})
    assert failed(checker, replace(item, expected_tokens=None), band) == set()


def test_quantity_coverage_is_a_share_in_order(checker: AnswerChecker) -> None:
    row = replace(ENGLISH, solution="Sarah got 1, 2, 3. Michael got 4.\n#### 4")
    swapped = rewritten(row, "Sarah got 1, 3, 2. Michael got 4.\n#### 4")
    assert failed(checker, swapped, replace(THRESHOLDS, quantity_coverage=0.76)) == {"quantities"}
    assert failed(checker, swapped, replace(THRESHOLDS, quantity_coverage=0.75)) == set()


def test_calculator_notes_and_list_marks_are_not_quantities(checker: AnswerChecker) -> None:
    row = replace(ENGLISH, solution="1. Sarah has 24/4=<<24/4=6>>6.\n2. Michael has 5*6=<<5*6=30>>30.\n#### 30")
    assert failed(checker, rewritten(row, ENGLISH.solution)) == set()


def test_leak_phrases_of_the_question_or_source_are_allowed_and_more_can_be_added(
    checker: AnswerChecker,
) -> None:
    text = "As shown above , " + LAB.solution
    assert failed(checker, rewritten(LAB, text)) == {"no_leak"}
    assert failed(checker, rewritten(replace(LAB, solution=text), text)) == set()
    assert failed(checker, rewritten(replace(LAB, question="As shown above , " + LAB.question), text)) == set()
    extra = replace(THRESHOLDS, leak_phrases=("Max has",))
    item = rewritten(replace(LAB, question="", solution="15 , 13 , 26 . The answer is 26 ."), LAB.solution)
    assert failed(checker, item, extra) == {"no_leak"}


def test_a_long_span_of_the_instruction_must_not_be_copied(checker: AnswerChecker) -> None:
    instruction = "Write the solution again in your own words and keep every number and every name as it is."
    thresholds = replace(THRESHOLDS, instruction=instruction, filler=1.0)
    copied = "I write the solution again in your own words and so on. " + LAB.solution
    shorter = "I write the solution again in my own words and so on. " + LAB.solution
    assert failed(checker, rewritten(LAB, copied), thresholds) == {"no_leak"}
    assert failed(checker, rewritten(LAB, shorter), thresholds) == set()


def test_loops_are_detected_at_any_length_and_long_text_may_repeat_phrases(checker: AnswerChecker) -> None:
    rng = random.Random(1)
    prose = [" ".join(rng.choices([f"w{i}" for i in range(500)], k=7)) for _ in range(60)]
    natural = " . so we get that ".join(prose) + " . " + LAB.solution
    row = replace(LAB, solution=LAB.solution)
    wide = replace(THRESHOLDS, length_high=1e9)
    assert failed(checker, rewritten(row, natural), wide) == {"no_loop"}, "an n-gram in every line fills a tenth"
    sparse = " . ".join(f"{line} . so we get that" if i % 7 == 0 else line for i, line in enumerate(prose))
    assert failed(checker, rewritten(row, f"{sparse} . {LAB.solution}"), wide) == set()
    looped = f"{sparse} . {'need Flo from Ray , ' * 8} . {LAB.solution}"
    assert failed(checker, rewritten(row, looped), wide) == {"no_loop"}


def test_a_rewrite_may_repeat_as_much_as_its_source(checker: AnswerChecker) -> None:
    row = replace(LAB, solution=LOOPED)
    assert failed(checker, rewritten(row, LOOPED)) == set()


def test_rows_without_an_announced_answer_use_the_last_number(checker: AnswerChecker) -> None:
    row = replace(ENGLISH, solution=ENGLISH_STEPS, answer="30")
    assert failed(checker, rewritten(row, ENGLISH_STEPS)) == set()
    assert failed(checker, rewritten(row, ENGLISH_STEPS.replace("30", "31"))) == {
        "correct_answer",
        "quantities",
        "true_sums",
    }
    two_answers = ENGLISH_STEPS + " The answer is 31. The answer is 30."
    assert failed(checker, rewritten(row, two_answers)) == {"one_answer"}
    remark = replace(row, solution=ENGLISH_STEPS + " That is for 1 Michael.")
    assert failed(checker, rewritten(remark, remark.solution)) == {"correct_answer"}, "the answer is not at the end"
    because = replace(row, solution="Sarah has 24 / 4 = 6. Michael has 30 friends because 5 * 6 = 30 and 2 - 2 = 0.")
    assert failed(checker, rewritten(because, because.solution)) == set()


@pytest.mark.parametrize(
    ("text", "gold"), [("12.5", "5"), ("-5", "5"), ("1,250", "250"), ("2 1/2", "1/2"), ("1/2", "2")]
)
def test_an_unannounced_answer_is_compared_by_value(checker: AnswerChecker, text: str, gold: str) -> None:
    row = replace(ENGLISH, solution=f"{ENGLISH_STEPS} So it is {gold}", answer=gold)
    assert failed(checker, rewritten(row, row.solution)) == set()
    assert "correct_answer" in failed(checker, rewritten(row, f"{ENGLISH_STEPS} So it is {text}"))


SYSTEM = GateInput(
    question="Find x and y with x + y = 5 and y - x = 1.",
    solution="Adding, 2y = 6, so y = 3 and x = 5 - 3 = 2. The answer is x = 2, y = 3.",
    rewrite="",
)


@pytest.mark.parametrize("explicit", ["x = 2, y = 3", None])
def test_every_part_of_an_answer_counts(checker: AnswerChecker, explicit: str | None) -> None:
    row = replace(SYSTEM, answer=explicit)
    assert failed(checker, rewritten(row, row.solution)) == set()
    assert failed(checker, rewritten(row, row.solution.replace("x = 2,", "x = 9,"))) == {"correct_answer"}


def test_rows_without_any_answer_pass_the_answer_gate_and_can_be_counted(checker: AnswerChecker) -> None:
    row = replace(ENGLISH, solution=ENGLISH_STEPS)
    assert not has_gold_answer(row)
    assert has_gold_answer(ENGLISH)
    assert failed(checker, rewritten(row, ENGLISH_STEPS)) == set()


def test_an_answer_the_checker_fails_on_is_reported_as_unjudged(checker: AnswerChecker) -> None:
    row = replace(ENGLISH, answer=r"7\sqrt{3}")
    hanging = rewritten(row, ENGLISH_STEPS + r" \boxed{9^{9^{9^{9}}}}")
    wrong = rewritten(row, ENGLISH_STEPS + r" \boxed{8\sqrt{3}}")
    right = rewritten(row, ENGLISH_STEPS + r" \boxed{\sqrt{147}}")
    assert [failed(checker, item) for item in (hanging, wrong, right)] == [{"correct_answer"}] * 2 + [set()]
    assert find_unjudged([hanging, wrong, right], checker) == [True, False, False]


def test_required_names_are_those_of_the_source_or_all_names_if_it_shows_none() -> None:
    assert required_names(rewritten(ENGLISH, ENGLISH.solution)) == ["Sarah", "Michael"]
    assert required_names(rewritten(replace(ENGLISH, solution="She has 24 / 4 = 6 friends, he has 30."), "")) == []
    nested = replace(LAB, solution="Ned = ( 15 - 2 ) + ( 15 - 2 ) = 26 .")
    assert required_names(LAB_VALUES) == required_names(nested) == ["Max", "Yan", "Ned"]


@given(st.integers(0, 10**6), st.sampled_from(sorted(DIALECTS)), st.sampled_from(SPELLED_OUT))
@settings(deadline=None, max_examples=40)
def test_in_the_lab_every_spelled_out_solution_passes_for_every_expert(
    checker: AnswerChecker, seed: int, dialect: str, native: str
) -> None:
    problem = sample_problem(random.Random(seed), ProblemSpec(steps=(2, 6), new_steps=(0, 3), distractors=(0, 2)))
    source = DIALECTS[dialect](problem)
    row = GateInput(problem.question, source, "", str(problem.answer))
    copy = rewritten(row, source)
    assert failed(checker, copy) == ({"entities"} if dialect in ("values", "nested") else set())
    if dialect in EXPERTS:
        text = DIALECTS[native](problem)
        assert failed(checker, rewritten(row, text, expected_tokens=len(words(text)))) == set()


SENTENCE = st.builds(
    "{0} has {1} {4}, so {2} now has {1} + {3} = {5}.".format,
    st.sampled_from(["Anna", "Bob", "The shop"]),
    st.integers(0, 10**6),
    st.sampled_from(["Carl", "Dora"]),
    st.integers(0, 999),
    st.sampled_from(["apples", "$", "km", "% of it"]),
    st.decimals(0, 10**4, places=2),
)
ENDING = st.sampled_from(["#### {}", "The answer is {} .", r"So we get $\boxed{{{}}}$.", "**Final answer:** {}", "{}"])


@given(st.lists(SENTENCE, min_size=1, max_size=8), ENDING, st.integers(0, 10**7), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_verbatim_copy_of_an_honest_source_passes(
    checker: AnswerChecker, steps: list[str], ending: str, answer: int, explicit: bool
) -> None:
    source = "\n".join([*steps, ending.format(f"{answer:,}")])
    row = GateInput("Anna met Bob, then Carl and Dora. How many?", source, "", str(answer) if explicit else None)
    assert failed(checker, rewritten(row, source)) == set()


@given(st.permutations(sorted(HACKS)), st.integers(1, len(HACKS)))
@settings(deadline=None, max_examples=20)
def test_rows_do_not_influence_each_other(checker: AnswerChecker, order: list[str], size: int) -> None:
    items = {name: rewritten(row, text) for name, (row, text, _) in HACKS.items()}
    alone = {name: run_gates([item], THRESHOLDS, checker)[0] for name, item in items.items()}
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    together = [run_gates([items[name] for name in batch], THRESHOLDS, checker) for batch in batches]
    assert [verdict for batch in together for verdict in batch] == [alone[name] for name in order]


@pytest.mark.slow
@pytest.mark.parametrize("announced", [True, False])
def test_real_grade_school_solutions_pass_as_their_own_rewrites(checker: AnswerChecker, announced: bool) -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    items = []
    for entry in reasoning_gym.create_dataset("gsm_symbolic", size=50, seed=31_000):
        source = entry["metadata"]["answer_cot"]
        source = source if announced else source.rsplit("\n####", 1)[0]
        items.append(rewritten(GateInput(entry["question"], source, "", entry["answer"]), source))
    verdicts = run_gates(items, THRESHOLDS, checker)
    assert [(item.rewrite, v) for item, v in zip(items, verdicts, strict=True) if not all(v.values())] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000 and $5, 3.50 or 1/2", ["1000", "5", "3.5", "1", "2"]),
        ("-3", ["-3"]),
        ("= -3, (-4), -$5, 15 - 2, 2275-1275, 6 -4", ["-3", "-4", "-5", "15", "2", "2275", "1275", "6", "4"]),
        ("x2 H2O 3rd 5kg 14x3=42. 007 .5 0.0", ["5", "14", "3", "42", "7", "0.5", "0"]),
        ("15 , 13 , 26 . The answer is 26 .", ["15", "13", "26", "26"]),
        ("1. take 5\n2) add 3\nStep 3: 8, <<5+3=8>>", ["5", "3", "8"]),
        (r"1{,}000 \frac{3}{4} 44%", ["1000", "3", "4", "44"]),
    ],
)
def test_numbers_have_one_spelling(text: str, expected: list[str]) -> None:
    assert numbers(text) == expected


def test_entities_are_names_inside_sentences() -> None:
    assert entities(LAB.question) == ["Max", "Yan", "Ned"]
    assert entities("On Tuesday, Mr. Smith's TV cost $5. Emma paid in May; I saw O'Brien. How?") == ["Smith", "O'Brien"]
    assert entities('She asked: "How much does it cost at Water Wonderland, and What for?"') == [
        "Water",
        "Wonderland",
    ]


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_lcs_fraction_is_the_longest_common_subsequence(needle: list[int], hay: list[int]) -> None:
    table = [[0] * (len(hay) + 1) for _ in range(len(needle) + 1)]
    for i, a in enumerate(needle, 1):
        for j, b in enumerate(hay, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a == b else max(table[i - 1][j], table[i][j - 1])
    expected = table[-1][-1] / len(needle) if needle else 1.0
    assert lcs_fraction(needle, hay) == pytest.approx(expected)


def test_repetition_counts() -> None:
    assert ngram_repeats(list("ababa"), 2) == 2
    assert ngram_repeats(["a"], 2) == 0
    assert tandem_repeats(list("xabcdabcdabcdy")) == 3
    assert tandem_repeats(list("7+7+7+7")) == 1
    assert tandem_repeats(["a"] * 40) == 10
    assert tandem_repeats([]) == 0
