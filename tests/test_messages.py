"""What a user is told where one bad row, value or file could hide the others, or what to do about it."""

import json

import pytest

from dartune import inputs
from dartune.config import load_config
from dartune.data.load import LOOKED_AT, load_demonstrations
from dartune.errors import InputError

LEAST = {"data": "lab:values", "target": "lab:equations"}
BAD = {"question": "a", "answer": "3"}


def good(count):
    return [{"question": f"q{number}", "solution": f"So {number}", "answer": str(number)} for number in range(count)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(call, *args, **settings):
    with pytest.raises(InputError) as caught:
        call(*args, **settings)
    return caught.value


def with_suite(data, suite, **settings):
    flags = {"data": str(data), "target": "lab:equations", "evaluate.suites.hard": str(suite)}
    return load_config(None, flags | {key.replace("__", "."): value for key, value in settings.items()})


def test_a_bad_first_row_is_told_like_any_other(tmp_path):
    error = refused(load_demonstrations, written(tmp_path / "d.jsonl", [BAD, {"x": 1}, *good(30)]))
    assert error.problems == (
        "d.jsonl line 1: solution: the field is missing",
        "d.jsonl line 2: question: the field is missing",
        "d.jsonl line 2: solution: the field is missing",
    )
    assert "30 others are good" in error.message


def test_a_bad_first_row_does_not_hide_a_public_layout_or_a_column_map(tmp_path):
    rows = [{"problem": "p", "generated_solution": f"s{n}", "expected_answer": "n/a"} for n in range(3)]
    path = written(tmp_path / "d.jsonl", [{"problem": "p"}, *rows])
    lacks = "d.jsonl line 1: generated_solution: the field is missing"
    assert lacks in refused(load_demonstrations, path).problems
    columns = {"question": "problem", "solution": "generated_solution"}
    assert refused(load_demonstrations, path, columns=columns).problems == (lacks,)


def test_no_layout_is_looked_for_beyond_the_first_rows(tmp_path):
    rows = [{"Text": str(number)} for number in range(LOOKED_AT)]
    error = refused(load_demonstrations, written(tmp_path / "d.jsonl", [{"First": "x"}, *rows, *good(5)]))
    assert "fits no layout" in error.message and "columns found: 'First'" in error.message


def test_rows_of_a_json_list_in_one_line_are_told_apart(tmp_path, caplog):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([*good(2), {"question": "q", "solution": ""}, 5]))
    assert [problem.partition(":")[0] for problem in refused(load_demonstrations, path).problems] == [
        "d.json line 1, row 3",
        "d.json line 1, row 4",
    ]
    path.write_text(json.dumps([*good(2), *good(1)]))
    load_demonstrations(path)
    assert "d.json line 1, row 3 repeats d.json line 1, row 1" in caplog.text


def test_problems_of_several_files_stand_below_what_each_file_needs(tmp_path):
    data = written(tmp_path / "data.jsonl", [*good(30), BAD])
    suite = written(tmp_path / "suite.jsonl", [{"Problem": "p", "Answer": "a"}])
    said = str(refused(inputs.load, with_suite(data, suite))).splitlines()
    assert said[:3] == [
        "the data cannot be used",
        f"  - {data}: 1 problem in the data; 30 others are good; correct or remove this row",
        "    - data.jsonl line 31: solution: the field is missing",
    ]
    assert len(said) == 4 and said[3].startswith(f"  - {suite} fits no layout")


def test_problems_with_a_column_map_show_the_columns_there_are(tmp_path):
    data = written(tmp_path / "data.jsonl", good(30))
    said = str(refused(inputs.load, with_suite(data, data, data__columns__id="Name")))
    assert "columns found: 'question', 'solution', 'answer'" in said and "the column 'Name'" in said


def test_a_suite_of_the_data_s_own_questions_is_named_as_the_cause(tmp_path):
    data = written(tmp_path / "data.jsonl", good(30))
    error = refused(inputs.load, with_suite(data, data))
    assert error.message.startswith("every one of the 30 rows asks a question of a suite")
    most = written(tmp_path / "most.jsonl", good(29))
    error = refused(inputs.load, with_suite(data, most))
    assert "30 rows, 29 of which ask a question of a suite, are too few" in error.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("execution: {server: 'localhost:9'}", "execution.server is 'localhost:9' but should be http://host:port"),
        ("seeds: 3", "seeds is 3 but should be a list, as in [a, b]"),
        ("arms: base", "arms is 'base' but should be a list, as in [a, b]"),
        ("sft: {learning_rates: 1e-5}", "sft.learning_rates is 1e-05 but should be a list, as in [a, b]"),
        ("evaluate: {suites: {a/b: 'lab:values'}}", "should be letters, digits, _ and - only"),
    ],
)
def test_values_are_told_in_terms_of_a_recipe(text, said, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    (problem,) = refused(load_config, path, LEAST).problems
    assert problem.endswith(said)


def test_a_recipe_that_is_a_list_is_told_so_once(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("- name: lab\n")
    assert refused(load_config, path).message.startswith(f"{path} is not a recipe: it must map keys to values")
