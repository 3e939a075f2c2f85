"""Detection of hacks: a hacked rewrite gets the name of its hack, an honest one gets none."""

import pytest

from dartune.gates.registry import run_gates
from dartune.hacks.catalogue import HACKS
from dartune.hacks.detect import detect_hacks
from dartune.text.features import same_text, skeleton
from fixtures_hacks import THRESHOLDS, english, hacked, lab

# Share of rewrites that must get the hack's own name, for hacks whose result can look like another hack's: dropping a
# step can leave one word, and dropping a name can merge two.
MIN_SHARE = {"dropped_intermediates": 0.6, "dropped_entities": 0.6, "template_collapse": 0.7}


def hacks_of(items, checker):
    verdicts = run_gates(items, THRESHOLDS, checker)
    return [detect_hacks(item, gates, THRESHOLDS) for item, gates in zip(items, verdicts, strict=True)]


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
@pytest.mark.parametrize("world", ["english", "lab"])
def test_a_hacked_rewrite_gets_the_name_of_its_hack(hack, world, checker):
    detected = hacks_of(hacked(hack, english("honest") if world == "english" else lab(2)), checker)
    assert sum(hack.name in names for names in detected) >= MIN_SHARE.get(hack.name, 1.0) * len(detected), detected


def test_an_honest_rewrite_commits_nothing(checker):
    assert not any(hacks_of(english("honest") + lab(4), checker))


def test_a_skeleton_ignores_names_and_numbers():
    assert skeleton("Ann has 3 pens.") == skeleton("Bob has 12 pens.") != skeleton("Bob owns 12 pens.")
    assert same_text("a  b\nc", " a b c") and not same_text("a b", "ab")
