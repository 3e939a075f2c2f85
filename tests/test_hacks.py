"""Every hack of the catalogue is stopped by what is said to stop it; honest rewrites pass."""

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartune.lab.dialects import DIALECTS
from dartune.lab.world import ProblemSpec, draw
from dartune.rewards.alignment import SCORES
from dartune.rewards.forms import FORMS
from dartune.rewards.gates import GATE_NAMES, run_gates
from dartune.rewards.hacks import HACKS
from dartune.rewards.items import GateInput
from dartune.rewards.penalties import PENALTIES
from dartune.rewards.trial import load_fixtures
from fixtures_hacks import FIXTURES, NATIVE, THRESHOLDS, english, hacked, lab, lab_item, with_tokens


def test_honest_rewrites_pass(checker):
    for items in (english("honest"), lab(8)):
        verdicts = run_gates(items, THRESHOLDS, checker)
        assert sum(all(gates.values()) for gates in verdicts) >= 0.98 * len(items)


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
@pytest.mark.parametrize("world", ["english", "lab"])
def test_what_is_said_to_stop_a_hack_stops_it(hack, world, checker):
    items = hacked(hack, english("honest") if world == "english" else lab(2))
    named = [name for name in hack.stopped_by if name in GATE_NAMES]
    assert len(items) >= 6, "the hack must find occasions"
    for item, gates in zip(items, run_gates(items, THRESHOLDS, checker), strict=True):
        assert not all(gates[name] for name in named), item.rewrite


@pytest.mark.parametrize("label", sorted({row["label"] for row in FIXTURES} - {"honest"}))
def test_hacks_written_by_hand_are_stopped_too(label, checker):
    (named,) = [set(hack.stopped_by) & set(GATE_NAMES) for hack in HACKS if hack.name == label]
    items = english(label)
    for item, gates in zip(items, run_gates(items, THRESHOLDS, checker), strict=True):
        assert not all(gates[name] for name in named), item.rewrite


@given(st.integers(0, 10**9), st.sampled_from(sorted(DIALECTS)), st.sampled_from(NATIVE), st.sampled_from(HACKS))
@settings(max_examples=150, deadline=None)
def test_no_hack_turns_a_failing_rewrite_into_a_passing_one_nor_passes_itself(checker, seed, source, native, hack):
    rng = random.Random(seed)
    honest = lab_item(draw(rng, ProblemSpec(steps=(2, 5), new_steps=(0, 2), distractors=(0, 1))), source, native)
    (item,) = hacked(hack, [honest]) or [None]
    if item is not None:
        (gates,) = run_gates([item], THRESHOLDS, checker)
        assert not all(gates.values()), item.rewrite


def test_names_are_unique_and_everything_is_said():
    names = [hack.name for hack in HACKS]
    assert len(names) == len(set(names)) == 24
    assert all(hack.says and hack.stopped_by for hack in HACKS)


def test_the_documents_say_what_the_code_does():
    text = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    by_name = {row[0].strip("`"): row[1:] for row in rows}
    for hack in HACKS:
        assert by_name[hack.name] == [hack.says, ", ".join(f"`{name}`" for name in hack.stopped_by)]
    parts = {*(hack.name for hack in HACKS), *GATE_NAMES, *PENALTIES, *SCORES}
    assert set(by_name) == parts
    assert all(f"`{form}`" in text for form in FORMS)


def test_rewrites_written_without_a_look_at_the_gates(checker):
    """Natural English by others: the gates were mended by what they showed, so this holds them to it."""
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
    # Meaningless prose around the right numbers is for the target to see, wrong algebra is beyond arithmetic, and
    # filler may be about the row.
    loose = {"garbage_reasoning": 0.25, "silent_wrong_step": 0.2, "filler": 0.15}
    slipped = {label: passed[label] / n for label, n in total.items() if label != "honest"}
    assert all(share <= loose.get(label, 0.1) for label, share in slipped.items()), slipped
