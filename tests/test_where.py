"""`data.where`: conditions on columns, in every format, before splitting; and what is not a condition."""

import csv
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from dartune.cli import main
from dartune.config.condition import Condition
from dartune.data.load import load_demonstrations, read_demonstrations
from dartune.errors import InputError
from dartune.run.files import read_json

ROWS = [
    {"level": 1, "tag": "web", "share": 0.5, "good": True, "meta": {"page": 3}},
    {"level": 2, "tag": "book", "share": None, "good": False, "meta": {"page": 4}},
    {"level": 3, "tag": None, "share": 0.1, "good": True, "meta": {"page": None}},
    {"level": 4, "tag": "web page", "share": 0.9, "good": None, "meta": {"page": 6}},
]


def contents(rows=ROWS):
    return [{"question": f"What is {n} + 1?", "solution": f"{n} + 1 = {n + 1}.", **row} for n, row in enumerate(rows)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def kept(path, where):
    return [int(row.question.split()[2]) for row in load_demonstrations(path, where=where)]


CONDITIONS = [
    ("level > 2", [2, 3]),
    ("1 < level <= 3", [1, 2]),
    ("level in [1, 4]", [0, 3]),
    ('tag == "web"', [0]),
    ('tag in ("web", "book")', [0, 1]),
    ('"web" in tag', [0, 3]),
    # A comparison with a missing value is neither true nor false.
    ('tag != "web"', [1, 3]),
    ('tag not in ["web"]', [1, 3]),
    ('not tag == "web"', [1, 3]),
    ("tag is None", [2]),
    ("tag != None and share is not None", [0, 3]),
    ("share > 0.2 or share is None", [0, 1, 3]),
    ("good", [0, 2]),
    ("not good", [1]),
    ("good == True and level > 1", [2]),
    ("level > share", [0, 2, 3]),
    ("level > -1 and not (level == 2 or level == 3)", [0, 3]),
    ('col("level") >= 4', [3]),
    ("level\n  > 3\n", [3]),
]


@pytest.mark.parametrize(("where", "expected"), CONDITIONS)
def test_rows_that_the_condition_holds_for_are_kept(where, expected, tmp_path):
    assert kept(write_jsonl(tmp_path / "d.jsonl", contents()), where) == expected


@pytest.mark.parametrize(("where", "expected"), CONDITIONS)
def test_a_table_of_texts_gives_the_same_rows(where, expected, tmp_path):
    rows = [{name: value for name, value in row.items() if name != "meta"} for row in contents()]
    with (tmp_path / "d.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert kept(tmp_path / "d.csv", where) == expected


@pytest.mark.parametrize("form", ["parquet", "folder", "saved"])
def test_every_source_is_filtered(form, tmp_path):
    import datasets

    data = datasets.Dataset.from_list(contents())
    path = tmp_path / {"parquet": "d.parquet"}.get(form, form)
    if form == "saved":
        data.save_to_disk(path)
    elif form == "parquet":
        data.to_parquet(path)
    else:
        path.mkdir()
        write_jsonl(path / "a.jsonl", contents()[:2])
        write_jsonl(path / "b.jsonl", contents()[2:])
    assert kept(path, "meta.page != 4") == [0, 3]
    assert kept(path, 'level > 2 or tag == "book"') == [1, 2, 3]


def test_rows_keep_their_places_and_columns_of_the_condition_are_used(tmp_path):
    rows = contents([*ROWS, {"level": 5, "other": 1}])
    rows[3]["solution"] = ""
    read = read_demonstrations(write_jsonl(tmp_path / "d.jsonl", rows), where="level > 3")
    assert read.problems.lines() == ["d.jsonl line 4: solution: is empty"]
    assert [row.place for row in read.rows] == ["d.jsonl line 5"]
    assert read.selection == f"{tmp_path / 'd.jsonl'}: data.where keeps 2 of 5 rows"
    [unused] = read.notes
    assert "'other'" in unused and "level" not in unused


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("levle > 3", "data.where names 'levle', which no row has; columns found: 'question', 'solution', 'level'"),
        ("no.such is None or level > 3", "names 'no.such', which no row has"),
        ("level > 100", "data.where keeps none of the 4 rows: level > 100"),
    ],
)
def test_nothing_to_keep_is_an_error(where, message, tmp_path):
    with pytest.raises(InputError) as error:
        load_demonstrations(write_jsonl(tmp_path / "d.jsonl", contents()), where=where)
    assert message in str(error.value)


def test_values_of_another_kind_are_problems_of_their_rows(tmp_path):
    rows = contents([{"level": 3, "tag": 7}, {"level": "hard", "tag": "a"}, {"level": "4", "tag": True}, {"level": []}])
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(InputError) as error:
        load_demonstrations(data, where="level > 2")
    assert list(error.value.problems) == [
        "d.jsonl line 2: data.where compares 'level' with a number, and here it is 'hard'",
        "d.jsonl line 4: data.where compares 'level' with a number, and here it is []",
    ]
    with pytest.raises(InputError) as error:
        load_demonstrations(data, where='tag == "a"')
    assert [problem.split(":")[0] for problem in error.value.problems] == ["d.jsonl line 1", "d.jsonl line 3"]


@pytest.mark.parametrize(
    ("where", "position", "message"),
    [
        ("level = 3", 7, "equality is =="),
        ("level >", 8, "invalid syntax"),
        ("level > 1 and f(tag)", 15, "`f(tag)` is not read"),
        ("ünlüt > 1 and tag.strip()", 15, "`tag.strip()` is not read"),
        ("__import__('os').system('true') == 0", 1, "is not read"),
        ("level + 1 > 3", 1, "`level + 1` is not read"),
        ("tag[0] == 'w'", 1, "`tag[0]` is not read"),
        ("level is 3", 1, "`is` needs None"),
        ("'a' == 'b'", 1, "compares no column"),
        ("level in [1, None]", 10, "test null with `is None`"),
        ("level in tag", 1, "is not read; write `column in"),
        ("level > 1 and level == 'x'", 15, "is compared with a number elsewhere, and here with a text"),
        ("3", 1, "`3` is not read"),
        ("tag == f'{level}'", 8, "is not read"),
        ("(lambda: level)()", 1, "is not read"),
        ("my-level > 3", 1, '`my-level` is not read; use columns (or col("my name"))'),
        ("level > " + "-" * 200 + "1", 9, "`" + "-" * 60 + "` is not read"),
    ],
)
def test_what_is_not_a_condition_is_refused_with_its_position(where, position, message):
    with pytest.raises(ValueError, match="should be a condition") as error:
        Condition(where)
    assert f"at character {position}: " in str(error.value) and message in str(error.value)


def test_extreme_texts_are_refused():
    texts = ("(" * 400 + "level", "not " * 5000 + "level", "level > 1" + "0" * 400, "level > \0", "tag == '\ud800'")
    for text in texts:
        with pytest.raises(ValueError, match="should be a condition"):
            Condition(text)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text):
    try:
        assert Condition(text).kinds
    except ValueError as error:
        assert "should be a condition" in str(error)


def test_blocks_do_not_change_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr("dartune.data.row_filter.BLOCK", 3)
    rows = contents([{"level": n} if n > 5 else {} for n in range(20)])
    read = read_demonstrations(write_jsonl(tmp_path / "d.jsonl", rows), where="level >= 7")
    assert len(read.rows) == 13 and "keeps 13 of 20 rows" in read.selection


def test_check_reports_the_selection_and_suites_are_whole(tmp_path, capsys):
    write_jsonl(tmp_path / "d.jsonl", contents([{"level": n} for n in range(30)]))
    write_jsonl(tmp_path / "suite.jsonl", [{"question": f"Which is {n}?", "answer": n} for n in range(7)])
    flags = ["--data", str(tmp_path / "d.jsonl"), "--target", "lab:backward", "--arms", "base", "--data.test=0"]
    flags += [f"--evaluate.suites={{mine: {tmp_path / 'suite.jsonl'}}}", "--evaluate.max_new_tokens=16"]
    assert main(["check", *flags, "--data.where", "level < 20", "--data.limit", "10"]) == 0
    out = capsys.readouterr().out
    assert "data.where keeps 20 of 30 rows" in out
    assert "10 training rows" in out and "7 test questions" in out
    assert main(["check", *flags, "--data.where", "level == 3"]) == 2
    out = capsys.readouterr().err
    assert "data.where keeps 1 of 30 rows" in out and "too few" in out
    assert main(["check", *flags, "--data.where", "levle < 3"]) == 2
    assert "names 'levle', which no row has; columns found: 'question', 'solution', 'level'" in capsys.readouterr().err
    assert main(["check", *flags, "--data.where", "level <"]) == 2
    assert "--data.where is 'level <' but should be a condition" in capsys.readouterr().err
    assert main(["check", "--data", "lab:values", "--target", "lab:backward", "--data.where", "level < 3"]) == 2
    assert "data.where selects rows of files and Hub data sets" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_well_placed_rows_of_a_scored_data_set(tmp_path, capsys):
    from test_score_data import score, write_rows

    write_rows(tmp_path / "data.jsonl", 60)
    score(tmp_path / "data.jsonl", tmp_path / "scored.parquet")
    where = "alignment_percentile > 0.1"
    flags = ["--data", str(tmp_path / "scored.parquet"), "--target", "lab:backward", "--output", str(tmp_path / "run")]
    flags += ["--arms", "base,sft", "--sft.steps=2", "--sft.batch_size=2", "--evaluate.max_new_tokens=64"]
    capsys.readouterr()
    assert main(["run", *flags, "--data.where", where]) == 0
    said = capsys.readouterr().err
    assert "data.where keeps" in said and "of 60 rows" in said
    [note] = [note for note in read_json(tmp_path / "run" / "report" / "results.json")["notes"] if "data.where" in note]
    assert "of 60 rows" in note and note in said
    assert note in (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    config = yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text(encoding="utf-8"))
    assert config["data"]["where"] == where
    train = (tmp_path / "run" / "stages" / "data" / "train.jsonl").read_text(encoding="utf-8")
    solutions = {json.loads(line)["solution"] for line in train.splitlines()}
    scored = parquet.read_table(tmp_path / "scored.parquet").to_pylist()
    assert solutions and solutions <= {row["solution"] for row in scored if row["alignment_percentile"] > 0.1}
    assert main(["run", *flags, "--data.where", "alignment_percentile >= 0"]) == 0
    assert "keeps 60 of 60 rows" in capsys.readouterr().err
