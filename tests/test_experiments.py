"""The pages that experiments make say what their committed results say."""

import json
import sys
from pathlib import Path

import pytest

from dartune.config.load import load_config

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
        "seed_batches",
        "gpu_tables",
        "large_lab",
        "large_lab_models",
        "large_data",
        "adapt_unseen",
        "pages",
    ):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_page_on_rewards_is_made_from_its_results(experiments):
    from reward_tables import page

    rows = json.loads((ROOT / "results" / "rewards.json").read_text("utf-8"))
    assert page(rows) == (ROOT / "docs" / "reward-experiments.md").read_text("utf-8")


def test_the_page_on_large_data_is_made_from_its_results(experiments, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from large_data import PAGE, RESULTS, parts
    from pages import filled

    text = PAGE.read_text("utf-8")
    assert "<!-- measured: " in text and filled(text, parts(json.loads(RESULTS.read_text("utf-8")))) == text


def test_the_figures_of_adapted_unseen_rows_are_made_from_their_results(experiments):
    from adapt_unseen import PAGE, RESULTS, parts
    from pages import filled

    text = PAGE.read_text("utf-8")
    assert "<!-- measured: " in text and filled(text, parts(json.loads(RESULTS.read_text("utf-8")))) == text


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


def test_seeds_of_two_runs_are_joined_by_their_number_and_no_interval_gets_narrower(experiments):
    from seed_batches import merged

    cell = json.loads((ROOT / "results" / "comparison.json").read_text("utf-8"))["matrix"]["backward-values"]
    seeds = [str(seed) for seed in cell["seeds"]]
    text = json.dumps({key: cell[key] for key in cell if key not in ("rows", "arms")})
    later = json.loads(text) | {"arms": cell["arms"]}
    later["seeds"] = [seed + 100 for seed in cell["seeds"]][:1]
    for row in (*later["summaries"], *later["differences"]):
        row["by_seed"] = {"100": row["by_seed"][seeds[0]]}
    for row in later["differences"]:
        row |= {key: row[key] - 0.3 for key in ("estimate", "low", "high")}
    for name in ("learning_rates", "adapted"):
        later[name] = {one: {"100": by_seed[seeds[0]]} for one, by_seed in later[name].items()}

    both = merged(cell, later)
    n = len(seeds)
    assert both["seeds"] == [*cell["seeds"], 100]
    for before, row in zip(cell["differences"], both["differences"], strict=True):
        assert row["estimate"] == pytest.approx(before["estimate"] - 0.3 / (n + 1))
        assert row["high"] - row["low"] == pytest.approx(before["high"] - before["low"])
        assert list(row["by_seed"]) == [*seeds, "100"]
    assert list(both["adapted"]["dart"]) == [*seeds, "100"]
    assert both["costs"]["dart"]["generated_tokens"] == 2 * cell["costs"]["dart"]["generated_tokens"]
    assert merged(both, later) == both and merged(cell, both) == both
    with pytest.raises(SystemExit, match="cannot be joined"):
        merged(both, later | {"seeds": [100, 101]})


def test_the_page_on_gpus_says_what_its_results_say(experiments):
    from gpu_tables import DOCUMENT, parts
    from pages import filled

    text = DOCUMENT.read_text("utf-8")
    assert text.count("<!-- measured: ") == len(parts()) and filled(text, parts()) == text
