"""Variants of the lab's models: a weaker initial mapper, and one that rarely writes a dialect."""

import json
import random
from collections import Counter

import pytest

from dartune.cli import main
from dartune.lab.build import mapper_example
from dartune.lab.dialects import DIALECTS
from dartune.lab.step_checker import dialect_of


def shares(rare, n=2000):
    rng = random.Random(0)
    counts = Counter(dialect_of(mapper_example(rng, "mapper", rare)[1]) for _ in range(n))
    total = sum(counts[dialect] for dialect in DIALECTS)
    return {dialect: counts[dialect] / total for dialect in DIALECTS}


def test_target_dialects_are_uniform_unless_one_is_rare():
    uniform = shares({})
    assert max(uniform.values()) < 2 * min(uniform.values())
    rare = shares({"backward": 0.1, "recall": 0.0})
    assert 0 < rare["backward"] < 0.2 * uniform["backward"] and rare["recall"] == 0


def test_a_weaker_mapper_is_built_into_its_own_folder(tmp_path, capsys):
    arguments = [
        "lab",
        "build",
        "--only",
        "mapper",
        "--steps",
        "2",
        "--rare",
        "backward=0.1",
        "--output",
        str(tmp_path),
    ]
    assert main(arguments) == 0
    assert (tmp_path / "mapper" / "model.safetensors").exists()
    assert json.loads((tmp_path / "mapper" / "config.json").read_text())["hidden_size"] == 128


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "5"], "need --output"),
        (["--steps", "0", "--output", "x"], "1 or more"),
        (["--rare", "klingon=0.1", "--rare", "recall=5", "--output", "x"], "unknown dialect 'klingon'"),
        (["--rare", "recall=5", "--output", "x"], "the weight must be between 0 and 1"),
    ],
)
def test_invalid_options_are_reported(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "build", "--only", "mapper", *arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
