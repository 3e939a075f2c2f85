"""Error messages: one bad row, value or file must not hide the others, and every message names a remedy."""

import json

import pytest

from dartune.config.load import load_config
from dartune.data.load import LAYOUT_SAMPLE_ROWS, load_demonstrations
from dartune.errors import InputError
from dartune.stages import data as run_data

REQUIRED = {"data": "lab:values", "target": "lab:equations"}
BAD = {"question": "a", "answer": "3"}


def valid_rows(count):
    return [{"question": f"q{number}", "solution": f"So {number}", "answer": str(number)} for number in range(count)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def raised(call, *args, **settings):
    with pytest.raises(InputError) as caught:
        call(*args, **settings)
    return caught.value


def with_suite(data, suite, **settings):
    flags = {"data": str(data), "target": "lab:equations", "evaluate.suites.hard": str(suite)}
    return load_config(None, flags | {key.replace("__", "."): value for key, value in settings.items()})


def test_a_bad_first_row_is_reported_like_any_other(tmp_path):
    error = raised(load_demonstrations, write_rows(tmp_path / "d.jsonl", [BAD, {"x": 1}, *valid_rows(30)]))
    assert error.problems == (
        "d.jsonl line 1: solution: the field is missing",
        "d.jsonl line 2: question: the field is missing",
        "d.jsonl line 2: solution: the field is missing",
    )
    assert "30 others are good" in error.message


def test_a_bad_first_row_does_not_hide_a_public_layout_or_a_column_map(tmp_path):
    rows = [{"problem": "p", "generated_solution": f"s{n}", "expected_answer": "n/a"} for n in range(3)]
    path = write_rows(tmp_path / "d.jsonl", [{"problem": "p"}, *rows])
    message = "d.jsonl line 1: generated_solution: the field is missing"
    assert message in raised(load_demonstrations, path).problems
    columns = {"question": "problem", "solution": "generated_solution"}
    assert raised(load_demonstrations, path, columns=columns).problems == (message,)


def test_layouts_are_detected_from_the_first_rows_only(tmp_path):
    rows = [{"Text": str(number)} for number in range(LAYOUT_SAMPLE_ROWS)]
    error = raised(load_demonstrations, write_rows(tmp_path / "d.jsonl", [{"First": "x"}, *rows, *valid_rows(5)]))
    assert "fits no layout" in error.message and "columns found: 'First'" in error.message


def test_rows_of_a_json_list_in_one_line_are_numbered(tmp_path, caplog):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([*valid_rows(2), {"question": "q", "solution": ""}, 5]))
    assert [problem.partition(":")[0] for problem in raised(load_demonstrations, path).problems] == [
        "d.json line 1, row 3",
        "d.json line 1, row 4",
    ]
    path.write_text(json.dumps([*valid_rows(2), *valid_rows(1)]))
    load_demonstrations(path)
    assert "d.json line 1, row 3 repeats d.json line 1, row 1" in caplog.text


def test_problems_of_several_files_are_listed_below_each_file(tmp_path):
    data = write_rows(tmp_path / "data.jsonl", [*valid_rows(30), BAD])
    suite = write_rows(tmp_path / "suite.jsonl", [{"Problem": "p", "Answer": "a"}])
    lines = str(raised(run_data.load, with_suite(data, suite))).splitlines()
    assert lines[:3] == [
        "the data cannot be used",
        f"  - {data}: 1 problem in the data; 30 others are good; correct or remove this row",
        "    - data.jsonl line 31: solution: the field is missing",
    ]
    assert len(lines) == 4 and lines[3].startswith(f"  - {suite} fits no layout")


def test_problems_with_a_column_map_list_the_existing_columns(tmp_path):
    data = write_rows(tmp_path / "data.jsonl", valid_rows(30))
    message = str(raised(run_data.load, with_suite(data, data, data__columns__id="Name")))
    assert "columns found: 'question', 'solution', 'answer'" in message and "the column 'Name'" in message


def test_a_suite_of_the_data_s_own_questions_is_named_as_the_cause(tmp_path):
    data = write_rows(tmp_path / "data.jsonl", valid_rows(30))
    error = raised(run_data.load, with_suite(data, data))
    assert error.message.startswith("every one of the 30 rows asks a question of a suite")
    most = write_rows(tmp_path / "most.jsonl", valid_rows(29))
    error = raised(run_data.load, with_suite(data, most))
    assert "30 rows, 29 of which ask a question of a suite, are too few" in error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("execution: {server: 'localhost:9'}", "execution.server is 'localhost:9' but should be http://host:port"),
        ("seeds: 3", "seeds is 3 but should be a list, as in [a, b]"),
        ("arms: base", "arms is 'base' but should be a list, as in [a, b]"),
        ("sft: {learning_rates: 1e-5}", "sft.learning_rates is 1e-05 but should be a list, as in [a, b]"),
        ("evaluate: {suites: {a/b: 'lab:values'}}", "should be letters, digits, _ and - only"),
    ],
)
def test_invalid_values_are_described_in_terms_of_yaml(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    (problem,) = raised(load_config, path, REQUIRED).problems
    assert problem.endswith(message)


def test_a_recipe_that_is_a_list_is_reported_once(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("- name: lab\n")
    assert raised(load_config, path).message.startswith(f"{path} is not a recipe: it must map keys to values")
