"""Tests of the findings of `dartune check`: each lists its rows by file and line, and none hides another."""

import json
import re
from pathlib import Path

import pytest

from dartune import check
from dartune.cli import main
from dartune.config.load import load_config
from dartune.data.chat_template import Renderer
from dartune.data.findings import FIRST, FindingCounts, RowProblems, listed
from dartune.data.near_duplicates import answer_key, question_key
from dartune.data.quality import check_report
from dartune.data.records import Demonstration
from dartune.errors import InputError
from dartune.stages import data as run_data
from fixtures_models import byte_tokenizer, save_tiny


def row(n, **changed):
    total = n + 3
    solution = f"She starts with {n} and adds 3, which makes {total}. The answer is {total}."
    return {"question": f"Lena has {n} cards and buys 3 more. How many?", "solution": solution} | changed


def written(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("model") / "target", "llama", context=4096))


@pytest.fixture
def run_check(tmp_path, target, capsys, caplog):
    def check(rows, *flags, suite=None):
        data = written(tmp_path / "d.jsonl", rows)
        more = ["--evaluate.suites.hard", written(tmp_path / "hard.jsonl", suite)] if suite else []
        code = main(["check", "--data", data, "--target", target, "--evaluate.max_new_tokens", "9", *more, *flags])
        captured = capsys.readouterr()
        assert code in (0, 2) and not caplog.text
        return captured.out + captured.err

    return check


def lines(text, *expected_words):
    matches = [line for line in text.splitlines() if all(word in line for word in expected_words)]
    assert matches, text
    return matches[0]


def test_findings_about_test_rows_and_suites_have_file_and_line(run_check):
    rows = [row(n) for n in range(14)]
    wrong = [row | {"answer": "1"} for row in rows]
    text = run_check(wrong, suite=[row(50), row(51, answer="7", id="x")])
    warning = lines(text, "14 solutions end in another answer")
    assert (
        re.findall(r"(\d+) \(row: 1, solution: \d+\)", warning) == ["1", "2", "3", "4", "5"] and "and 9 more" in warning
    )
    assert lines(text, "suite hard: 1 solution ends in another answer").endswith("line 2 ('x') (row: 7, solution: 54)")
    assert "names every row" in text
    every = run_check(wrong, "--all")
    warning = lines(every, "14 solutions end in")
    assert re.findall(r"(\d+) \(row: 1, ", warning) == [str(n) for n in range(1, 15)] and "more" not in warning


def test_too_few_rows_do_not_hide_other_findings(run_check):
    text = run_check([row(1, answer="9", source="x"), row(2)])
    assert "error: this run cannot start" in text and "2 rows are too few" in text
    assert "not used: column 'source' (1 row)" in text
    assert lines(text, "1 solution ends in another answer").endswith("d.jsonl line 1 (row: 9, solution: 4)")


def test_bad_rows_do_not_hide_findings_about_good_rows(run_check):
    text = run_check([row(1, answer="9"), row(2, solution=""), *[row(n) for n in range(3, 20)]])
    assert "d.jsonl line 2: solution: is empty" in text
    assert lines(text, "1 solution ends in another answer").endswith("d.jsonl line 1 (row: 9, solution: 4)")


def test_check_warns_of_unsuitable_rows(run_check):
    rows = [row(n) for n in range(14)]
    rows[3]["solution"] = "<think>\nLet me see. The answer is 6."
    rows[5]["solution"] = "Step. " * 200 + "The answer is 8."
    rows[7]["question"] += "\u200b"
    rows[8]["solution"] += "\x1b[31m"
    rows.append(row(2, solution="It is one more, so it is 9. The answer is 9."))
    text = run_check(rows, "--mapper.max_new_tokens", "300")
    assert lines(text, "1 solution opens a <think> block and never closes it").endswith("d.jsonl line 4")
    assert lines(text, "1 solution is longer than mapper.max_new_tokens (300)").endswith("d.jsonl line 6")
    assert "U+200B zero width space, U+001B control character" in lines(text, "2 rows have invisible characters")
    assert lines(text, "2 rows ask a question that has several answers (1 question)").endswith("d.jsonl line 3, 15")
    assert "\x1b" not in text and "\u200b" not in text


def test_control_characters_of_ids_and_names_are_never_printed(run_check):
    rows = [row(n, answer="1", id=f"\x1b[2J{n}") for n in range(14)]
    rows[0]["\x1b[31mred"] = 1
    text = run_check(rows)
    assert "\x1b" not in text and "line 1 ('\\x1b[2J0')" in text and "'\\x1b[31mred' (1 row)" in text


def test_a_system_text_is_put_above_the_question_unless_the_target_has_it(tmp_path, target):
    path = written(tmp_path / "d.jsonl", [row(n, system="Be brief.") for n in range(14)])
    settings = {"data.path": path, "target.path": target}
    sources = run_data.read(load_config(None, settings))
    assert sources.rows[0].question == f"Be brief.\n\n{row(0)['question']}"
    assert "14 rows have a system message, which is put above the question" in sources.notes[0]
    sources = run_data.read(load_config(None, settings | {"target.system_prompt": "Be brief."}))
    assert sources.rows[0].question == row(0)["question"] and not sources.notes


def test_the_last_line_of_a_check_without_problems_states_that_the_run_can_start(run_check):
    last = run_check([row(n) for n in range(1200)], "--mapper.max_new_tokens", "300").splitlines()[-1]
    assert last.startswith("Ready: 1,") and " training rows, " in last and " test questions; `dartune run`" in last


def test_the_error_of_a_failed_check_contains_its_findings(tmp_path, target):
    path = written(tmp_path / "d.jsonl", [row(1)])
    with pytest.raises(InputError) as caught:
        check.check(load_config(None, {"data.path": path, "target.path": target, "evaluate.max_new_tokens": "9"}))
    assert "1 row is too few" in str(caught.value) and "1 demonstration:" in caught.value.__notes__[0]


def test_rows_are_not_named_by_an_internal_hash():
    rows = [Demonstration("0123456789abcdef", "q", "s", place="d.jsonl line 4")]
    assert check_report(rows).findings.first("near-empty") == ("d.jsonl line 4",)


def test_chinese_solutions_are_not_near_empty():
    rows = [Demonstration("a", "q", "小明原来有20张,又买了3张:20+3=23。答案是23。"), Demonstration("b", "q", "23")]
    assert check_report(rows).findings.first("near-empty") == ("b",)


@pytest.mark.parametrize(
    "text", ["नमस्ते क्\u200dष", "👨\u200d👩\u200d👧", "שלום\u200f", "a\u00a0b", "a\tb\r\n", "❤\ufe0f"]
)
def test_characters_that_a_script_needs_are_not_reported_as_invisible(text):
    assert not check_report([Demonstration("a", text, "one two three")]).characters


def test_solution_lengths_include_the_end_token():
    rows = [Demonstration(str(n), "q", "s" * n) for n in (9, 10, 11)]
    report = check_report(rows, Renderer(byte_tokenizer()), longest=11)
    assert report.findings.first("long") == ("11",)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 2 + 3?", "what is 2+3"),
        ("Lena  has 20 cards.\nHow many?", "Lena has 20 cards. How many"),
        ("Lena doesn't know: how many?", "Lena doesnt know, how many!"),
        ("A well-known “fact” (so far)", "a well known fact so far"),
        ("Total: $5.00", "total $5.00."),
        ("小明有20张卡片,一共多少张?", "小明有 20 张卡片,一共多少张?"),
        ("It costs 1,000 cents", "it costs 1,000 cents…"),
        ("\u5c0f\u660e\u67093\u4e2a\uff0c\u591a\u5c11\uff1f", "\u5c0f\u660e\u67093\u4e2a,\u591a\u5c11?"),
        ("Add \uff13\uff1b\uff14\uff01", "add 3; 4"),
        ("hello\u200b wor\u00adld", "hello world"),
        ("It pays $1,000,000 now", "It pays $1000000 now"),
        ("At 3 p.m. in the U.S. today", "at 3 pm in the US today"),
        ("A 5-year-old boy", "a 5 year old boy"),
        ("A [red] car (here)", "a red car here"),
        ("Is *b* or **c d** or _e_ it?", "is b or c d or e it"),
        ("What is $x + 1$ if $x = 2$?", "What is x + 1 if x = 2?"),
    ],
)
def test_questions_that_differ_only_in_form_have_the_same_key(first, second):
    assert question_key(first) == question_key(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 2 - 3?", "What is 2 + 3?"),
        ("What is 23?", "What is 2 3?"),
        ("What is 2.5?", "What is 25?"),
        ("What is .5 + 1?", "What is 5 + 1?"),
        ("Is 5! even?", "Is 5 even?"),
        ("(2 + 3) * 4", "2 + (3 * 4)"),
        ("f'(x) = 2", "f(x) = 2"),
        ("x^2", "x2"),
        ("at 2:30", "at 230"),
        ("कि", "की"),
        ("x_1", "x1"),
        ("x\u00b2", "x2"),
        ("x\u2081", "x1"),
        ("What is 2-3?", "What is 23?"),
        ("What is 1,5?", "What is 15?"),
        ("at 5-sin(x)", "at 5 sin(x)"),
        ("2*b*3", "2b3"),
        ("pays $5 and $6", "pays 5 and 6"),
        ("f[2]", "f 2"),
        ("a.b", "ab"),
    ],
)
def test_questions_that_differ_in_a_sign_have_different_keys(first, second):
    assert question_key(first) != question_key(second)


def test_answers_are_the_same_by_value():
    assert answer_key("1,000.0") == answer_key("$1000$") == answer_key("\\boxed{1000}")
    assert answer_key(" Blue ") == answer_key("blue.") != answer_key("red")
    assert answer_key("4") != answer_key("5")


def test_listed_places_name_their_file_once():
    assert listed(["d.jsonl line 3", "d.jsonl line 4 ('x')", "e.jsonl line 5"], 9) == (
        "d.jsonl line 3, 4 ('x'), e.jsonl line 5 and 6 more"
    )
    assert listed(["d.json line 1, row 2", "d.json line 1, row 3"]) == "d.json line 1, row 2, 3"


def test_every_place_is_kept_on_disk():
    tally, problems = FindingCounts(), RowProblems()
    for n in range(2500):
        tally.add("odd" if n % 2 else "even", f"line {n}")
        problems.add(f"d line {n}", f"invalid at column {n}")
    assert len(tally.first("odd")) == FIRST and tally.count("odd") == 1250
    assert list(tally.every("odd")) == [f"line {n}" for n in range(1, 2500, 2)]
    (line,) = problems.lines(every=True)
    assert line.endswith("2498, 2499)") and ": 2500 rows (d line 0, 1, 2" in line


def test_every_problem_is_shown_on_request(run_check):
    rows = [row(n) for n in range(14)] + [{"question": f"q{n}", "solution": f"s{n}", "answer": [n]} for n in range(3)]
    rows += [{"question": 1, "solution": "s"}] * 4 + [{"question": "q", "solution": 1}] * 4
    rows += [{"question": "", "solution": "s"}] * 5 + [{"question": "q", "solution": ""}] * 5
    text = run_check(rows)
    assert "... and 2 more" in text and "names every row" in text and "line 35: solution: is empty" not in text
    assert "d.jsonl line 35: solution: is empty" in run_check(rows, "--all")


def test_a_suite_needs_answers_but_no_solutions(tmp_path, target):
    data = written(tmp_path / "d.jsonl", [row(n) for n in range(14)])
    suite = [{"question": f"What is {n} + 2?", "choices": [str(n), str(n + 2), "x"], "answer": 1} for n in range(3)]
    settings = {"data.path": data, "target.path": target, "evaluate.suites.mmlu": written(tmp_path / "m.jsonl", suite)}
    sources = run_data.read(load_config(None, settings))
    assert not sources.problems()
    first = sources.suites["mmlu"][0]
    assert (first.question, first.solution, first.answer) == ("What is 0 + 2?\nA) 0\nB) 2\nC) x", "2", "2")
    settings["data.path"] = settings["evaluate.suites.mmlu"]
    assert "fits no layout" in run_data.read(load_config(None, settings)).problems()[0]
    written(tmp_path / "m.jsonl", [*suite, {"question": "q", "answer": None}])
    settings["data.path"] = data
    assert "m.jsonl line 4: answer: is empty (null)" in run_data.read(load_config(None, settings)).problems()[1]


def test_a_solution_without_an_answer_is_not_reported_as_contradictory(run_check):
    rows = [row(number) for number in range(30)]
    text = run_check([*rows[:3], row(40, solution="( 42.0 + 3.0 )", answer="45"), *rows[3:]])
    assert lines(text, "1 solution states no answer that can be read").endswith("d.jsonl line 4")
    assert "another answer" not in text
