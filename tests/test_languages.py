"""Gates, answers, names and number formats on German, French, Spanish and Chinese rows."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.answers.grading import find_contradictions
from dartune.data.records import Demonstration
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import run_gates
from dartune.text.features import known_names
from dartune.text.languages import language_of, number_normaliser, with_points, writes_commas

LINES = (Path(__file__).parent / "data" / "languages.jsonl").read_text("utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


@pytest.fixture(scope="module")
def verdicts(checker):
    """(language, label) -> gate results of each text: the source, three honest rewrites and seven hacks per row."""
    names = known_names((row["question"], row["solution"]) for row in ROWS)
    gates_by_label = {}
    for row in ROWS:
        labelled = [("source", row["solution"]), *(("honest", text) for text in row["honest"]), *row["hacks"].items()]
        items = [GateInput(row["question"], row["solution"], text, row["answer"]) for _, text in labelled]
        for (label, _), gates in zip(labelled, run_gates(items, GateThresholds(names=names), checker), strict=True):
            gates_by_label.setdefault((row["language"], label), []).append(gates)
    return gates_by_label


def accepted(verdicts) -> int:
    return sum(all(gates.values()) for gates in verdicts)


@pytest.mark.parametrize("language", ["de", "es", "fr", "zh"])
def test_sources_and_most_honest_rewrites_are_accepted(language, verdicts):
    # The rejected honest rewrites leave out a result of the source, because they solve the problem in another way.
    assert accepted(verdicts[language, "source"]) == 10
    assert accepted(verdicts[language, "honest"]) >= 21


@pytest.mark.parametrize("language", ["de", "es", "fr", "zh"])
@pytest.mark.parametrize("hack", ["bare_answer", "wrong_sum", "wrong_answer", "english", "loop", "leak"])
def test_hacks_are_rejected(language, hack, verdicts):
    assert accepted(verdicts[language, hack]) == 0


def test_values_without_steps_are_mostly_rejected(verdicts):
    # In these languages words are only counted, so short sentences with several words per number look like steps.
    assert sum(accepted(verdicts[language, "values_only"]) for language in ("de", "es", "fr", "zh")) <= 3


def test_no_solution_contradicts_its_answer(checker):
    rows = [Demonstration(str(i), row["question"], row["solution"], row["answer"]) for i, row in enumerate(ROWS)]
    assert find_contradictions(rows, checker) == ([], [])
    wrong = [Demonstration(row.id, row.question, row.solution, "12345") for row in rows]
    contradictions, silent = find_contradictions(wrong, checker)
    assert [row for row, _ in contradictions] == wrong and silent == []


def test_languages_are_identified():
    assert [language_of(row["question"]) for row in ROWS] == [row["language"] for row in ROWS]
    assert language_of("What is $3 + 4$?") == "en"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1.250,50 €", "1250.50 €"),
        ("3,50", "3.50"),
        (r"12{,}5 \times 8", r"12.5 \times 8"),
        ("1 250 places et 2 400 000", "1250 places et 2400000"),
        ("1\u202f250,5", "1250.5"),
        ("48 : 4 = 12", "48 ÷ 4 = 12"),
        ("um 12:30 Uhr", "um 12:30 Uhr"),
        ("1.250 + 3.75", "1250 + 3.75"),
        ("(2, 3, 4)", "(2, 3, 4)"),
    ],
)
def test_numbers_are_converted_to_english_notation(written, read):
    assert with_points(written) == read


def test_decimal_commas_follow_the_language_and_the_row():
    german = "Anna kauft drei Hefte und zwei Stifte. Wie viel Euro bezahlt sie zusammen an der Kasse?"
    mexican = "Ana compra tres cuadernos a 2.50 pesos cada uno. ¿Cuántos pesos paga Ana en total por los cuadernos?"
    english = "Anna buys three notebooks for $1,250 and (3,50) is a point. How much does she pay at the till?"
    assert writes_commas(german) and not writes_commas(mexican) and not writes_commas(english)
    assert number_normaliser(english, "")("1,250") == "1,250"


@given(st.text(alphabet="0123456789.,: $€()abß米有-", max_size=40))
def test_any_text_can_be_converted(text):
    assert with_points(with_points(text)).count(",") <= text.count(",")
