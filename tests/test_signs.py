"""A hacked rewrite is called by its name; an honest one is called nothing."""

import pytest

from dartune.rewards.gates import run_gates
from dartune.rewards.hacks import HACKS
from dartune.rewards.signs import committed
from dartune.rewards.text import same_text, skeleton
from fixtures_hacks import THRESHOLDS, english, hacked, lab

# What two hacks leave alike is called by one name: dropping a step can leave a word, dropping a name merge two.
OFTEN = {"dropped_intermediates": 0.6, "dropped_entities": 0.6, "template_collapse": 0.7}


def names(items, checker):
    return [
        committed(i, gates, THRESHOLDS) for i, gates in zip(items, run_gates(items, THRESHOLDS, checker), strict=True)
    ]


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
@pytest.mark.parametrize("world", ["english", "lab"])
def test_a_hack_is_called_by_its_name(hack, world, checker):
    found = names(hacked(hack, english("honest") if world == "english" else lab(2)), checker)
    assert sum(hack.name in one for one in found) >= OFTEN.get(hack.name, 1.0) * len(found), found


def test_an_honest_rewrite_commits_nothing(checker):
    assert not any(names(english("honest") + lab(4), checker))


def test_a_skeleton_is_the_way_of_writing():
    assert skeleton("Ann has 3 pens.") == skeleton("Bob has 12 pens.") != skeleton("Bob owns 12 pens.")
    assert same_text("a  b\nc", " a b c") and not same_text("a b", "ab")
