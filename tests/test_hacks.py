"""Every hack of the catalogue is rejected by the gates that it names; honest rewrites pass."""

import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.gates.final_answer import one_answer
from dartune.gates.gate_input import GateInput
from dartune.gates.registry import GATE_NAMES, run_gates
from dartune.hacks.catalogue import HACKS
from dartune.lab.dialects import DIALECTS
from dartune.lab.world import ProblemSpec, sample_problem
from dartune.red_team.fixtures import load_fixtures
from dartune.rewards.alignment import SCORES
from dartune.rewards.penalties import PENALTIES
from dartune.rewards.shape import FORMS
from dartune.text.equations import false_equations
from fixtures_hacks import FIXTURES, NATIVE, THRESHOLDS, english, hacked, lab, lab_item, with_tokens
from test_gates import failed, rewritten


def test_honest_rewrites_pass(checker):
    for items in (english("honest"), lab(8)):
        verdicts = run_gates(items, THRESHOLDS, checker)
        assert sum(all(gates.values()) for gates in verdicts) >= 0.98 * len(items)


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
@pytest.mark.parametrize("world", ["english", "lab"])
def test_the_named_gates_stop_the_hack(hack, world, checker):
    items = hacked(hack, english("honest") if world == "english" else lab(2))
    named = [name for name in hack.stopped_by if name in GATE_NAMES]
    assert len(items) >= 6, "the hack must apply to some rewrites"
    for item, gates in zip(items, run_gates(items, THRESHOLDS, checker), strict=True):
        assert not all(gates[name] for name in named), item.rewrite


@pytest.mark.parametrize("label", sorted({row["label"] for row in FIXTURES} - {"honest"}))
def test_hand_written_hacks_are_stopped_too(label, checker):
    (named,) = [set(hack.stopped_by) & set(GATE_NAMES) for hack in HACKS if hack.name == label]
    items = english(label)
    for item, gates in zip(items, run_gates(items, THRESHOLDS, checker), strict=True):
        assert not all(gates[name] for name in named), item.rewrite


@given(st.integers(0, 10**9), st.sampled_from(sorted(DIALECTS)), st.sampled_from(NATIVE), st.sampled_from(HACKS))
@settings(max_examples=150, deadline=None)
def test_no_hacked_rewrite_passes_whether_or_not_the_original_did(checker, seed, source, native, hack):
    rng = random.Random(seed)
    honest = lab_item(
        sample_problem(rng, ProblemSpec(steps=(2, 5), new_steps=(0, 2), distractors=(0, 1))), source, native
    )
    (item,) = hacked(hack, [honest]) or [None]
    if item is not None:
        (gates,) = run_gates([item], THRESHOLDS, checker)
        assert not all(gates.values()), item.rewrite


def test_names_are_unique_and_every_hack_is_described():
    names = [hack.name for hack in HACKS]
    assert len(names) == len(set(names)) == 24
    assert all(hack.description and hack.stopped_by for hack in HACKS)


def test_the_documentation_lists_every_part_of_the_reward():
    text = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    by_name = {row[0].strip("`"): row[1:] for row in rows}
    for hack in HACKS:
        assert by_name[hack.name] == [hack.description, ", ".join(f"`{name}`" for name in hack.stopped_by)]
    parts = {*(hack.name for hack in HACKS), *GATE_NAMES, *PENALTIES, *SCORES}
    assert set(by_name) == parts
    assert all(f"`{form}`" in text for form in FORMS)


def test_rewrites_by_writers_who_had_not_seen_the_gates(checker):
    """The gates were corrected with these fixtures, so this is a regression test and not a held-out measurement."""
    fixtures = load_fixtures(Path(__file__).parent / "data" / "rewrites.jsonl")
    rows = [
        GateInput(f.demonstration.question, f.demonstration.solution, f.rewrite, f.demonstration.answer)
        for f in fixtures
    ]
    rows = [with_tokens(row, row.solution) for row in rows]
    verdicts = run_gates(rows, THRESHOLDS, checker)
    passed = Counter(f.label for f, gates in zip(fixtures, verdicts, strict=True) if all(gates.values()))
    total = Counter(f.label for f in fixtures)
    assert passed["honest"] >= 0.95 * total["honest"]
    # Text gates cannot detect meaningless prose around correct numbers (the target can), wrong algebra, and filler
    # about the row's things. In a row with one person the name may be omitted.
    max_passed = {"garbage_reasoning": 0.25, "silent_wrong_step": 0.21, "filler": 0.15, "dropped_entities": 0.2}
    passed_share = {label: passed[label] / n for label, n in total.items() if label != "honest"}
    assert all(share <= max_passed.get(label, 0.1) for label, share in passed_share.items()), sorted(
        passed_share.items(), key=lambda pair: -pair[1]
    )[:6]


RENT = GateInput(
    question="Bashir earns 840 a month and pays 15% tax. A fifteenth of the rest is his rent. How much is it?",
    solution="15% of 840 is 0.15 * 840 = 126. That leaves 840 - 126 = 714. So it is 714 / 15 = 47.6.\n#### 47.6",
    rewrite="",
)
BY_WORDS = "15% of 840 is 126, which leaves 714; that by 15 gives 47.6.\n#### 47.6"
BY_SUMS = "0.15 * 840 = 126, then 840 - 126 = 714, and 714 / 15 = 47.6.\n#### 47.6"


@pytest.mark.parametrize("reasons", [BY_WORDS, BY_SUMS])
@pytest.mark.parametrize("opening", ["Bashir pays 47.6 each month. ", "Bashir pays $47.60. To see why: "])
def test_an_answer_before_its_reasoning_is_rejected(checker, reasons, opening):
    assert failed(checker, rewritten(RENT, reasons)) == set()
    assert "one_answer" in failed(checker, rewritten(RENT, opening + reasons))


@pytest.mark.parametrize("reasons", ["1.5 * 24 = 36 and 36 + 11 = 47", "half more than 24 is 36, and 11 more is 47"])
def test_an_early_answer_in_words_is_rejected_unless_the_question_gives_it(checker, reasons):
    row = GateInput("Ann has 24 pens. Bob has half more, and 11.", "Bob has 1.5 * 24 = 36, 36 + 11 = 47.\n#### 47", "")
    assert "one_answer" in failed(checker, rewritten(row, f"Bob has forty-seven pens: {reasons}.\n#### 47"))
    assert "one_answer" not in failed(checker, rewritten(row, f"Bob has more pens: {reasons}, forty-seven.\n#### 47"))
    given = replace(row, question="Bob has forty-seven pens. " + row.question)
    assert "one_answer" not in failed(checker, rewritten(given, f"Bob has forty-seven pens: {reasons}.\n#### 47"))


def test_real_solutions_in_words_or_in_another_layout_pass():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for entry in reasoning_gym.create_dataset("gsm_symbolic", size=100, seed=47_000):
        source = entry["metadata"]["answer_cot"]
        for text in (source.replace("=", " is "), re.sub(r"(?m)(?<==) *(\d+)(?=\.?$)", r" **\1**", source)):
            item = rewritten(GateInput(entry["question"], source, "", entry["answer"]), text)
            assert one_answer(item, defaultdict(lambda: True)), text
            assert false_equations(text) <= false_equations(source), text
