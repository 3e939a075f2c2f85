"""The pages that experiments make say what their committed results say."""

import json
import sys
from pathlib import Path

import pytest

from dartune.config import load_config

ROOT = Path(__file__).parents[1]


@pytest.fixture
def experiments(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    yield
    for name in (
        "rewards",
        "reward_tables",
        "reward_forms",
        "comparison",
        "comparison_tables",
        "comparison_reading",
        "gpu_tables",
        "large_lab",
        "large_lab_models",
        "pages",
    ):
        sys.modules.pop(name, None)


def test_the_page_on_rewards_is_made_from_its_results(experiments):
    from reward_tables import page

    rows = json.loads((ROOT / "results" / "rewards.json").read_text("utf-8"))
    assert page(rows) == (ROOT / "docs" / "reward-experiments.md").read_text("utf-8")


def test_the_measured_parts_of_the_documents_are_those_of_the_results(experiments):
    from comparison_tables import parts
    from pages import filled

    measured = parts(json.loads((ROOT / "results" / "comparison.json").read_text("utf-8")))
    for document in ("README.md", "docs/results.md"):
        text = (ROOT / document).read_text("utf-8")
        assert "<!-- measured: " in text and filled(text, measured) == text, document


def test_every_variant_is_a_config_and_changes_what_it_says(experiments, monkeypatch):
    from rewards import DIALS, MAIN, SAME, SEEDS, configured

    monkeypatch.setitem(SAME, "mapper.path", "lab:mapper")  # the weaker one is pretrained by the experiment itself
    plain = load_config(ROOT / "recipes" / "lab.yaml").model_dump()
    for variant, changes in (MAIN | DIALS).items():
        config = configured(variant)
        assert config.seeds == SEEDS[variant] and config.arms[0] == "base"
        for section, name in (key.split(".") for key in changes if key != "arms"):
            assert config.model_dump()[section][name] != plain[section][name], (variant, name)
        assert (config.arms[1:] == ("dart",)) is (variant == "originals left out")


def test_the_page_on_gpus_says_what_its_results_say(experiments):
    from gpu_tables import DOCUMENT, parts
    from pages import filled

    text = DOCUMENT.read_text("utf-8")
    assert text.count("<!-- measured: ") == len(parts()) and filled(text, parts()) == text
