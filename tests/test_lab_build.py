"""The lab's dials: a weaker mapper start, and one that seldom writes a dialect."""

import json
import random
from collections import Counter

import pytest

from dartune.cli import main
from dartune.lab.build import mapper_example
from dartune.lab.checker import dialect_of
from dartune.lab.dialects import DIALECTS


def shares(rare, n=2000):
    rng = random.Random(0)
    found = Counter(dialect_of(mapper_example(rng, "mapper", rare)[1]) for _ in range(n))
    total = sum(found[dialect] for dialect in DIALECTS)
    return {dialect: found[dialect] / total for dialect in DIALECTS}


def test_dialects_are_wanted_evenly_unless_one_is_made_rare():
    even = shares({})
    assert max(even.values()) < 2 * min(even.values())
    rare = shares({"backward": 0.1, "recall": 0.0})
    assert 0 < rare["backward"] < 0.2 * even["backward"] and rare["recall"] == 0


def test_a_weaker_mapper_is_built_into_a_folder_of_its_own(tmp_path, capsys):
    words = ["lab", "build", "--only", "mapper", "--steps", "2", "--rare", "backward=0.1", "--output", str(tmp_path)]
    assert main(words) == 0
    assert (tmp_path / "mapper" / "model.safetensors").exists()
    assert json.loads((tmp_path / "mapper" / "config.json").read_text())["hidden_size"] == 128


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "5"], "need --output"),
        (["--steps", "0", "--output", "x"], "1 or more"),
        (["--rare", "klingon=0.1", "--rare", "recall=5", "--output", "x"], "no dialect 'klingon'"),
        (["--rare", "recall=5", "--output", "x"], "a share from 0 to 1"),
    ],
)
def test_dials_that_cannot_be_turned_are_said(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "build", "--only", "mapper", *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
