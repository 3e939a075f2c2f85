"""Tests of public data sets: they are read without a column map, with their annotations and answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.answers.task_families import TASKS
from dartune.data.load import load_demonstrations, read_demonstrations
from dartune.data.public_datasets import PUBLIC, detect_public_layout
from dartune.errors import InputError

THOUGHT = (
    "<|begin_of_thought|>\n\nTwo and three make five.\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nIt is \\boxed{5}.\n\n<|end_of_solution|>"
)
ROWS = {
    "GSM8K": (
        {
            "question": "Ann has 3 boxes of 4. How many?",
            "answer": "She has 3*4=<<3*4=12>>12 pens.\n#### 12",
        },
        ("Ann has 3 boxes of 4. How many?", "She has 3*4=12 pens.\n#### 12", "12"),
    ),
    "NuminaMath": (
        {
            "problem": "What is $2+3$?",
            "solution": "Clearly $\\boxed{5}$.",
            "answer": "5",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
        },
        ("What is $2+3$?", "Clearly $\\boxed{5}$.", "5"),
    ),
    "OpenMathReasoning": (
        {
            "problem": "What is 2+3?",
            "generated_solution": "<think>\n2 and 3\n</think>\n\nIt is \\boxed{5}.",
            "expected_answer": "5",
            "problem_type": "has_answer_extracted",
            "generation_model": "DeepSeek-R1",
            "pass_rate_72b_tir": "0.9",
        },
        ("What is 2+3?", "<think>\n2 and 3\n</think>\n\nIt is \\boxed{5}.", "5"),
    ),
    "OpenThoughts": (
        {
            "system": "Think first.",
            "conversations": [{"from": "user", "value": "What is 2+3?"}, {"from": "assistant", "value": THOUGHT}],
        },
        ("What is 2+3?", "<think>\nTwo and three make five.\n</think>\n\nIt is \\boxed{5}.", "5"),
    ),
    "MBPP": (
        {
            "task_id": 1,
            "text": "Write a function to add two numbers.",
            "code": "def add(a, b):\r\n    return a + b",
            "test_list": ["assert add(2, 3) == 5", "assert add(0, 0) == 0"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        (
            "Write a function to add two numbers.\nYour code should pass these tests:\n\n"
            "assert add(2, 3) == 5\nassert add(0, 0) == 0",
            "```python\ndef add(a, b):\r\n    return a + b\n```",
            "assert add(2, 3) == 5\nassert add(0, 0) == 0",
        ),
    ),
    "MBPP sanitized": (
        {
            "task_id": 1,
            "prompt": "Write a function to add two numbers.",
            "code": "def add(a, b): return a + b",
            "test_imports": ["import math"],
            "test_list": ["assert add(2, 3) == 5"],
        },
        (
            "Write a function to add two numbers.\nYour code should pass these tests:\n\nassert add(2, 3) == 5",
            "```python\ndef add(a, b): return a + b\n```",
            "import math\nassert add(2, 3) == 5",
        ),
    ),
    "OpenCodeInstruct": (
        {
            "id": "x1",
            "input": "Add two numbers.",
            "output": "```python\ndef add(a, b): return a + b\n```",
            "unit_tests": json.dumps(["\nassert add(2, 3) == 5", "assert add(0, 1) == 1"]),
        },
        (
            "Add two numbers.",
            "```python\ndef add(a, b): return a + b\n```",
            "assert add(2, 3) == 5\nassert add(0, 1) == 1",
        ),
    ),
    "Alpaca": (
        {"instruction": "Add the numbers.", "input": "2, 3", "output": "The answer is 5."},
        ("Add the numbers.\n\n2, 3", "The answer is 5.", "5"),
    ),
}


def written(folder, rows, kind):
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_every_public_layout_has_a_test_row():
    assert set(ROWS) == set(PUBLIC)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ROWS)
def test_a_public_data_set_is_read_without_a_column_map(name, kind, tmp_path):
    row, (question, solution, answer) = ROWS[name]
    assert detect_public_layout(row) is PUBLIC[name]
    (loaded,) = load_demonstrations(written(tmp_path, [row], kind))
    assert (loaded.question, loaded.solution) == (question, solution)
    code = "assert" in answer
    assert TASKS["code" if code else "math"].gold(loaded) == answer


@pytest.mark.parametrize("answer", ["proof", "notfound", "NaN", "", None])
def test_a_placeholder_for_no_answer_becomes_none(answer, tmp_path):
    row = ROWS["NuminaMath"][0] | {"answer": answer, "solution": "By symmetry."}
    (loaded,) = load_demonstrations(written(tmp_path, [row], "jsonl"))
    assert loaded.answer is None


def test_a_system_text_is_kept_with_the_row(tmp_path):
    (loaded,) = load_demonstrations(written(tmp_path, [ROWS["OpenThoughts"][0]], "jsonl"))
    assert loaded.meta == {"system": "Think first."}


def test_bad_rows_are_reported_under_their_own_column_names(tmp_path):
    good = ROWS["OpenThoughts"][0]
    several = {"conversations": [{"from": "human", "value": "a"}] * 3}
    rows = [good, {"system": ""}, {"conversations": "text"}, several, {"conversations": [{"from": ["x"]}]}]
    with pytest.raises(InputError) as caught:
        load_demonstrations(written(tmp_path, rows, "jsonl"))
    assert len(caught.value.problems) == 4
    assert all("conversations" in problem for problem in caught.value.problems)
    tests = ROWS["MBPP"][0] | {"test_list": [1]}
    with pytest.raises(InputError, match="data") as caught:
        load_demonstrations(written(tmp_path, [tests], "jsonl"))
    assert "test_list: must be text" in caught.value.problems[0]


def test_a_column_map_takes_precedence_over_a_public_layout(tmp_path):
    path = written(tmp_path, [ROWS["GSM8K"][0]], "jsonl")
    (loaded,) = load_demonstrations(path, columns={"question": "question", "solution": "answer"})
    assert "<<3*4=12>>" in loaded.solution


value = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3) | st.dictionaries(
    st.sampled_from(["from", "value", "role"]), st.none() | st.text(max_size=5) | st.lists(st.integers()), max_size=3
), max_size=3)  # fmt: skip


@given(st.sampled_from(sorted(PUBLIC)), st.data())
def test_no_row_makes_tidy_fail(name, data):
    columns = {column for layout in PUBLIC.values() for column in layout.fields.values()}
    columns |= {"system", "input", "test_imports", "test_setup_code"}
    row = {column: data.draw(value) for column in columns}
    assert isinstance(PUBLIC[name].tidy(row), dict | str)


def test_an_alpaca_input_that_is_not_text_is_joined_or_rejected(tmp_path):
    rows = [
        {"instruction": "Double it.", "input": alpaca_input, "output": "s"}
        for alpaca_input in (5, [3, 4], {"a": 1}, "", None)
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_demonstrations(tmp_path / "d.jsonl")
    assert [row.question for row in read.rows][:2] == ["Double it.\n\n5", "Double it."]
    assert [line.partition(": ")[2] for line in read.problems.lines()] == [
        f"input: must be text or a number, not {kind}" for kind in ("list", "dict")
    ]


def test_tests_nested_too_deeply_do_not_prevent_reading(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"input": "q", "output": "s", "unit_tests": "[" * 100_000}) + "\n")
    assert read_demonstrations(tmp_path / "d.jsonl", task="code").rows[0].question == "q"
