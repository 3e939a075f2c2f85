"""Tests of the split: tested questions are in neither train nor dev, and each held-out question occurs once."""

import json
import random

import pytest

from dartune.config.load import load_config
from dartune.data.split import SPLIT_SEED
from dartune.errors import InputError
from dartune.stages import data as run_data


def problem(number, way=0):
    return {
        "question": f"What is {number} + {number}?",
        "solution": f"Way {way}: {number} + {number} = {2 * number}. The answer is {2 * number}",
        "answer": str(2 * number),
    }


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def split(tmp_path):
    def load(rows, **settings):
        suites = {name: written(tmp_path / f"{name}.jsonl", part) for name, part in settings.pop("suites", {}).items()}
        values = {"data.path": written(tmp_path / "data.jsonl", rows), "target.path": "lab:backward"}
        values |= {f"data.{key}": str(value) for key, value in settings.items()}
        return run_data.load(load_config(None, values | {"evaluate.suites": json.dumps(suites)}))

    return load


def questions(rows):
    return [row.question for row in rows]


def test_several_solutions_of_a_question_stay_in_one_part(split):
    data = split([problem(number, way) for number in range(400) for way in range(4)])
    train, dev, test = map(questions, (data.train, data.dev, data.suites["in_distribution"]))
    assert len(set(test)) == len(test) and len(set(dev)) == len(dev)
    assert set(train).isdisjoint(dev) and set(train).isdisjoint(test) and set(dev).isdisjoint(test)
    assert len(test) == len(dev) == 40  # a tenth of the questions
    assert len(train) == 4 * (400 - 80) and any("repeat a held-out question" in note for note in data.notes)


def test_questions_of_a_suite_are_in_no_other_part(split):
    mine = [problem(number) for number in range(0, 300, 2)]
    data = split([problem(number, way=1) for number in range(300)], suites={"mine": mine})
    tested = {row["question"] for row in mine}
    assert tested.isdisjoint(questions(data.dev)) and tested.isdisjoint(questions(data.train))
    assert len(data.dev) == 30 and len(data.suites["mine"]) == 150


@pytest.mark.parametrize(("dev", "test", "limit"), [(64, 128, 0), (5, 3, 100)])
def test_distinct_questions_are_split_by_one_shuffle_of_the_rows(split, dev, test, limit):
    rows = [problem(number) for number in range(300)]
    data = split(rows, dev=dev, test=test, **({"limit": limit} if limit else {}))
    order = list(range(300))
    random.Random(SPLIT_SEED).shuffle(order)
    dev, test = min(dev, 30), min(test, 30)
    expected_indices = (
        sorted(order[:test]),
        sorted(order[test : test + dev]),
        sorted(order[test + dev :][: limit or None]),
    )
    parts = (data.suites["in_distribution"], data.dev, data.train)
    assert [questions(part) for part in parts] == [[rows[i]["question"] for i in part] for part in expected_indices]


def test_too_few_questions_and_too_few_rows_have_different_messages(split):
    with pytest.raises(InputError, match="12 rows with 2 distinct questions are too few"):
        split([problem(number, way) for number in range(2) for way in range(6)])
    with pytest.raises(InputError, match="2 rows are too few"):
        split([problem(1), problem(2)])


def test_questions_that_differ_only_in_form_are_in_one_part(split):
    rows = [problem(number) for number in range(100)]
    rows += [{**row, "question": row["question"].upper().replace(" + ", "+").rstrip("?") + "  "} for row in rows]
    data = split(rows)
    train = {question.lower().replace(" ", "").rstrip("?") for question in questions(data.train)}
    held_out = questions(data.dev) + questions(data.suites["in_distribution"])
    assert len(held_out) == 20 and train.isdisjoint(row.lower().replace(" ", "").rstrip("?") for row in held_out)
    assert any("20 rows repeat a held-out question" in note for note in data.notes)


def test_a_limit_is_a_random_sample_and_is_reported(split):
    data = split([problem(number) for number in range(300)], limit=50)
    assert len(data.train) == 50 and int(questions(data.train)[-1].split()[2]) > 150
    assert any("190 rows are left out by data.limit" in note for note in data.notes)
    more = split([problem(number) for number in range(300)], limit=60)
    assert set(questions(data.train)) < set(questions(more.train))


def test_few_test_questions_are_reported_with_their_uncertainty(split):
    few = " ".join(split([problem(number) for number in range(60)]).notes)
    assert "6 test questions can tell an accuracy to about 40 points only" in few
    enough = " ".join(split([problem(number) for number in range(1000)], test=100).notes)
    assert "can tell" not in enough
