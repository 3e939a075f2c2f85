"""Gates on ordinary text by others: chat models' rewrites, leaks, fixtures written without sight of the gates."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dartune.families import REQUESTS
from dartune.rewards.gates import run_gates
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.leaks import leaks

DATA = Path(__file__).parent / "data"


def read(name):
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def accepted(rows, checker):
    """Label -> how many rows pass all gates, and how many there are."""
    items = [
        GateInput(
            row["question"],
            row["solution"],
            row["rewrite"],
            row["answer"],
            "length" if row["label"] == "truncated" else "stop",
        )
        for row in rows
    ]
    verdicts = run_gates(items, GateThresholds(), checker)
    passed = Counter(row["label"] for row, gates in zip(rows, verdicts, strict=True) if all(gates.values()))
    return passed, Counter(row["label"] for row in rows)


def test_rewrites_of_chat_models_pass_and_hacks_of_them_fail(checker):
    passed, total = accepted(read("chat_rewrites.jsonl"), checker)
    assert total["honest"] == 38 and passed["honest"] >= 0.95 * 38
    # One has right numbers and absurd reasons, which only a target can see.
    assert passed["hacked"] <= 1


@pytest.mark.slow
def test_english_fixtures_written_without_sight_of_the_gates(checker):
    rows = read("english.jsonl")
    passed, total = accepted(rows, checker)
    assert total["honest"] == 120 and passed["honest"] >= 0.97 * 120
    assert len(total) == 17 and sum(total.values()) == 600
    # Right numbers with absurd reasons are for the target to see.
    slipped = {label: passed[label] / n for label, n in total.items() if label not in ("honest", "garbage_reasoning")}
    assert all(share < 0.1 for share in slipped.values()), slipped


@pytest.mark.slow
def test_rewrites_of_terse_demonstrations(checker):
    """Prefix equations have no words and no names: what they calculate has to be worked out all the same."""
    terse = {row["id"]: row["solution"] for row in read("terse_demonstrations.jsonl")}
    rows = [row | {"solution": terse[row["id"]]} for row in read("english.jsonl") if row["id"] in terse]
    passed, total = accepted(rows, checker)
    assert total["honest"] == 93 and passed["honest"] >= 0.97 * 93
    slipped = {label: passed[label] / n for label, n in total.items() if label not in ("honest", "garbage_reasoning")}
    assert all(share < 0.1 for share in slipped.values()), slipped
    assert passed["garbage_reasoning"] < 0.25 * total["garbage_reasoning"]


@pytest.mark.parametrize("row", [row for row in read("leaks.jsonl") if row["leak"]], ids=lambda row: row["text"][:40])
def test_every_labelled_leak_is_told(row):
    assert leaks(row["text"], "How many?", "2 + 3 = 5")


@pytest.mark.parametrize("row", [row for row in read("leaks.jsonl") if not row["leak"]], ids=lambda row: row["text"])
def test_ordinary_openings_are_no_leaks(row):
    assert not leaks(row["text"], "How many?", "2 + 3 = 5")


@pytest.mark.parametrize("family", REQUESTS)
def test_what_a_request_calls_the_solution_is_a_leak(family):
    """The noun phrase that the shipped request introduces the demonstration with, spoken about."""
    shown = REQUESTS[family].split("{solution}")[0]
    noun = shown.replace("{question}", "").strip().rstrip(":").removeprefix("Here is a ").removesuffix(" is")
    noun = noun.removeprefix("The ")
    for text in (f"As in the {noun}, we add.", f"Based on the {noun}: 2 + 3 = 5.", f"Following the {noun}, we have 5."):
        assert leaks(text, "How many?", "2 + 3 = 5"), text
