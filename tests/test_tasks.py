"""Task families: extraction and comparison of answers, and the gates that apply."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.answers.grading import stated_answer
from dartune.answers.task_families import TASKS, label
from dartune.cli import main
from dartune.config.load import load_config
from dartune.config.rewrite_prompts import DEFAULT_PROMPTS
from dartune.data.records import Demonstration
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import run_gates
from dartune.hacks.detect import detect_hacks
from fixtures_models import save_tiny

PROGRAM = "I square it.\n\n```python\ndef square(x):\n    return x * x\n```"
TESTS = "assert square(3) == 9\nassert square(-2) == 4"
QUESTION = "Write a function `square` of a number."


def run_gates_and_detector(family, rewrite, solution, answer, checker, question=QUESTION):
    item = GateInput(question, solution, rewrite, answer, token_ids=range(len(rewrite)), family=family)
    (gates,) = run_gates([item], GateThresholds(), checker)
    return gates, detect_hacks(item, gates, GateThresholds())


def failed(gates):
    return {name for name, passed in gates.items() if not passed}


@pytest.mark.parametrize(
    ("family", "predicted", "gold", "right"),
    [
        ("choice", "(B)", "B", True),
        ("choice", "b) Paris", "B", True),
        ("choice", "\\text{B}", "(B)", True),
        ("choice", "**B**", "B", True),
        ("choice", "B. Paris", "B", True),
        ("choice", "C", "B", False),
        ("choice", "Paris", "B", False),
        ("choice", "a dog", "A", False),
        ("choice", "2", "2", True),
        ("choice", "2) two", "2", True),
        ("choice", "B, not C", "B", True),
        ("choice", "(B), a dog", "B", True),
        ("choice", "B: A cat", "B", True),
        ("choice", "B, 5", "B", True),
        ("choice", "(D) both (A) and (B)", "D", True),
        ("choice", "(B) or (C)", "B", False),
        ("choice", "B, C", "B", False),
        ("choice", "$B$, $C$", "B", False),
        ("choice", "(B)(C)", "B", False),
        ("choice", "b, c and d", "B", False),
        ("choice", "1.5", "1", False),
        ("choice", "3.14", "3", False),
        ("choice", "2,000", "2", False),
        ("choice", "2:1", "2", False),
        ("choice", "2, 3", "2", False),
        ("exact", "the Eiffel  tower.", "The Eiffel Tower", True),
        ("exact", "1,000", "1000", False),
        ("exact", "", "x", False),
        ("numeric", "3.1416", "3.14", True),
        ("numeric", "3.15", "3.14", False),
        ("numeric", "42.04", "42", True),
        ("numeric", "42.3", "42", False),
        ("numeric", "5.4", "5", False),
        ("numeric", "12345", "12345", True),
        ("numeric", "12346", "12345", False),
        ("numeric", "6.02e23", "6.022e23", False),
        ("numeric", "6.0221e23", "6.022e23", True),
        ("numeric", "9.81 m", "9.81", True),
        ("numeric", "9.81 m/s^2", "9.81 m/s^2", True),
        ("numeric", "9.81 m", "9.81 s", False),
        ("numeric", "5%", "5", False),
        ("numeric", "many", "5", False),
        ("numeric", "0", "0", True),
        ("numeric", "3.0e8", r"3.0 \times 10^8", True),
        ("numeric", r"2.998 \times 10^8", r"3.00 \times 10^{8}", True),
        ("numeric", r"3.1 \times 10^8", r"3.00 \times 10^{8}", False),
        ("numeric", r"2.5 \times 10^{-3}", "0.0025", True),
        ("numeric", "2.5 × 10^-2", "0.0025", False),
        ("numeric", "10^{-3}", "0.001", True),
        ("numeric", "2^{10}", "1024", False),
        ("numeric", r"5\,\text{N}", "5 N", True),
        ("numeric", r"5\ \mathrm{N}", "5 N", True),
        ("numeric", r"5\ \mathrm{J}", "5 N", False),
        ("numeric", r"$3.0 \times 10^{8}$ m/s", r"300000000\,\mathrm{m/s}", True),
        ("math", r"\frac{1}{2}", "0.5", True),
        ("code", "def square(x): return x ** 2", TESTS, True),
        ("code", "def square(x): return x + x", TESTS, False),
        ("code", "", TESTS, False),
    ],
)
def test_each_family_compares_its_answers(family, predicted, gold, right, checker):
    assert checker.check([(predicted, gold)], TASKS[family]) == [right]


@given(
    st.sampled_from("ABCDEFGH"), st.sampled_from(["{}", "({})", " {}.", "{}) the option", "**{}**", "${}$", "{}: x"])
)
def test_labels_are_read_in_common_spellings(letter, form):
    assert label(form.format(letter)) == letter == label(form.format(letter.lower()))


@given(st.sampled_from(["exact", "numeric", "choice", "code", "reasoning_gym"]), st.text(max_size=60))
def test_no_text_raises_an_error(family, text):
    task = TASKS[family]
    for stated in task.stated(text):
        assert stated.text.strip() == text[stated.start : stated.end].strip()
    row = Demonstration("x", "q", text, text)
    assert task.problem(row) is None or ": " in task.problem(row)
    assert task.same(stated_answer(text, task), text) in (True, False, None)


@pytest.mark.parametrize(
    ("family", "text", "answer"),
    [
        ("choice", "Because it rains, the answer is (C) umbrella.", "C"),
        ("choice", "It must be (D), for nothing else floats.", "D"),
        ("choice", "A dog barks. So I choose B", "B"),
        ("choice", "I see no option.", ""),
        ("exact", "First this.\nParis", "Paris"),
        ("exact", "Final answer: Paris", "Paris"),
        ("numeric", "so the force is 9.81 N", "9.81"),
    ],
)
def test_announced_and_unannounced_answers_are_extracted(family, text, answer):
    task = TASKS[family]
    stated = stated_answer(text, task)
    assert (label(stated) or "" if family == "choice" and stated else stated) == answer


@pytest.mark.parametrize(
    ("family", "row", "message"),
    [
        ("choice", Demonstration("1", "q", "s", "Paris"), "not the label of an option"),
        ("numeric", Demonstration("1", "q", "s", "five or six"), "not one number"),
        ("code", Demonstration("1", "q", "no program here", TESTS), "contains no program"),
        ("code", Demonstration("1", "q", PROGRAM, "square(3) should be 9"), "not valid Python"),
        ("code", Demonstration("1", "q", PROGRAM, "print(square(3))"), "no assert"),
    ],
)
def test_row_of_another_family_is_reported(family, row, message):
    assert message in TASKS[family].problem(row)
    assert TASKS["math"].problem(row) is None


@pytest.mark.parametrize(
    ("family", "gold"),
    [("numeric", r"3.0 \times 10^8"), ("numeric", r"5\,\text{N}"), ("choice", "(D) both (A) and (B)")],
)
def test_common_spellings_fit_their_family(family, gold):
    assert TASKS[family].problem(Demonstration("1", "q", "s", gold)) is None


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [
        ("Multiply it by itself:\n```python\ndef square(n):\n    return n * n\n```", set()),
        ("```py\ndef square(n): return n ** 2\n```\nThat is all.", set()),
        ("```python\ndef square(n): return n + n\n```", {"correct_answer"}),
        ("```python\ndef square(n) return\n```", {"correct_answer"}),
        ("I would multiply it by itself.", {"correct_answer", "one_answer"}),
        ("```python\ndef square(n): return 9\n```\n```python\ndef square(n): return n * n\n```", {"one_answer"}),
        ("```python\nimport os\nos._exit(0)\n```", {"correct_answer"}),
        ("```python\ndef square(n): return n * n\n```\n" + "and so on with words " * 9, {"one_answer", "no_loop"}),
        ("As the program above says:\n```python\ndef square(n): return n * n\n```", {"no_leak"}),
    ],
)
def test_programs_are_graded_by_their_tests(rewrite, expected, checker):
    gates, hacks = run_gates_and_detector("code", rewrite, PROGRAM, TESTS, checker)
    assert failed(gates) == expected
    assert bool(hacks) == bool(expected)
    assert "quantities" not in gates, "numbers in a program are not results"


def test_choices_are_graded_by_their_label(checker):
    question = "Which animal barks? (A) cat (B) dog (C) cow"
    source = "Cats meow and cows moo. Dogs bark. The answer is (B)."
    right = "A cat meows, a cow moos, and it is a dog that barks. The answer is (B)."
    assert not failed(run_gates_and_detector("choice", right, source, "B", checker, question)[0])
    wrong = right.replace("(B)", "(C)")
    assert failed(run_gates_and_detector("choice", wrong, source, "B", checker, question)[0]) == {"correct_answer"}
    both = right + " The answer is (C)."
    assert "one_answer" in failed(run_gates_and_detector("choice", both, source, "B", checker, question)[0])


def test_every_family_has_a_rewrite_prompt(tmp_path):
    assert set(DEFAULT_PROMPTS) == set(TASKS)
    assert all("{question}" in text and "{solution}" in text for text in DEFAULT_PROMPTS.values())
    (tmp_path / "d.jsonl").touch()
    (tmp_path / "m").mkdir()
    places = {"data.path": str(tmp_path / "d.jsonl"), "target.path": str(tmp_path / "m")}
    assert load_config(None, places | {"data.task": "code"}).mapper.prompt == DEFAULT_PROMPTS["code"]
    assert load_config(None, places | {"data.path": "gym:ab"}).mapper.prompt == DEFAULT_PROMPTS["reasoning_gym"]
    own = load_config(None, places | {"data.task": "code", "mapper.prompt": "{question} {solution}"})
    assert own.mapper.prompt == "{question} {solution}"
    again = tmp_path / "resolved.yaml"
    again.write_text(load_config(None, places | {"data.task": "choice"}).resolved_yaml())
    assert load_config(again).mapper.prompt == DEFAULT_PROMPTS["choice"]


def test_check_reports_solutions_that_contradict_their_answer(tmp_path, capsys):
    target = save_tiny(tmp_path / "target", "llama", context=2048)
    rows = [
        {"question": f"Write a function that returns {n}.", "code": f"```python\ndef f(): return {n}\n```"}
        | {"id": f"row{n}", "tests": f"assert f() == {n + (n % 4 == 0)}"}
        for n in range(40)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "{solution: code, answer: tests}"
    places = ["--data.path", str(tmp_path / "d.jsonl"), "--target.path", str(target), "--data.columns", columns]
    assert main(["check", *places, "--data.task", "code"]) == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "fail its tests" in line]
    named = re.findall(r"row(\d+)", warning)
    assert named and all(int(n) % 4 == 0 for n in named)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row | {"tests": "print(f())"}) + "\n" for row in rows))
    assert main(["check", *places, "--data.task", "code"]) == 2
    assert "no assert statement" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "answer"),
    [("So 2 * 500 = 1,000 pens.", "1,000"), ("**$1,250.50** in all.", "1,250.50"), ("It is red.", None)],
)
def test_unannounced_answer_has_a_span(text, answer):
    span = TASKS["math"].closing_span(text)
    assert (text[slice(*span)] if span else None) == answer
