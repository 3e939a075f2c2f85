"""Gates on real text: rewrites of chat models, leaks, and fixtures whose authors did not see the gates."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dartune.config.rewrite_prompts import DEFAULT_PROMPTS
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.leaks import find_leaks
from dartune.gates.registry import run_gates

DATA = Path(__file__).parent / "data"


def read(name):
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def accepted(rows, checker):
    """Return label -> number of accepted rows, and label -> number of rows."""
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


def test_rewrites_of_chat_models_are_accepted_and_hacks_rejected(checker):
    passed, total = accepted(read("chat_rewrites.jsonl"), checker)
    assert total["honest"] == 38 and passed["honest"] >= 0.95 * 38
    # One has right numbers with absurd reasons, which only the target's log-probabilities can detect.
    assert passed["hacked"] <= 1


@pytest.mark.slow
def test_english_fixtures_by_authors_who_did_not_see_the_gates(checker):
    rows = read("english.jsonl")
    passed, total = accepted(rows, checker)
    assert total["honest"] == 120 and passed["honest"] >= 0.97 * 120
    assert len(total) == 17 and sum(total.values()) == 600
    # `garbage_reasoning` has right numbers with absurd reasons, which only the target's log-probabilities can detect.
    shares = {label: passed[label] / n for label, n in total.items() if label not in ("honest", "garbage_reasoning")}
    assert all(share < 0.1 for share in shares.values()), shares


@pytest.mark.slow
def test_rewrites_of_terse_demonstrations(checker):
    """Prefix equations have no words and no names, but a rewrite must still work out what they calculate."""
    terse = {row["id"]: row["solution"] for row in read("terse_demonstrations.jsonl")}
    rows = [row | {"solution": terse[row["id"]]} for row in read("english.jsonl") if row["id"] in terse]
    passed, total = accepted(rows, checker)
    assert total["honest"] == 93 and passed["honest"] >= 0.97 * 93
    shares = {label: passed[label] / n for label, n in total.items() if label not in ("honest", "garbage_reasoning")}
    assert all(share < 0.1 for share in shares.values()), shares
    assert passed["garbage_reasoning"] < 0.25 * total["garbage_reasoning"]


@pytest.mark.parametrize("row", [row for row in read("leaks.jsonl") if row["leak"]], ids=lambda row: row["text"][:40])
def test_every_labelled_leak_is_detected(row):
    assert find_leaks(row["text"], "How many?", "2 + 3 = 5")


@pytest.mark.parametrize("row", [row for row in read("leaks.jsonl") if not row["leak"]], ids=lambda row: row["text"])
def test_ordinary_openings_are_not_leaks(row):
    assert not find_leaks(row["text"], "How many?", "2 + 3 = 5")


@pytest.mark.parametrize("family", DEFAULT_PROMPTS)
def test_naming_the_demonstration_as_the_prompt_does_is_a_leak(family):
    """A rewrite that mentions the noun phrase by which the rewrite prompt introduces the demonstration is a leak."""
    shown = DEFAULT_PROMPTS[family].split("{solution}")[0]
    noun = shown.replace("{question}", "").strip().rstrip(":").removeprefix("Here is a ").removesuffix(" is")
    noun = noun.removeprefix("The ")
    for text in (f"As in the {noun}, we add.", f"Based on the {noun}: 2 + 3 = 5.", f"Following the {noun}, we have 5."):
        assert find_leaks(text, "How many?", "2 + 3 = 5"), text
