"""Diagnosis and preview: figures from measured rows, rules, text, page, and both commands on the lab."""

import json
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dartune.cli import main
from dartune.data.row_store import open_rows
from dartune.diagnosis.findings import find, percentile
from dartune.diagnosis.measure import random_places
from dartune.diagnosis.recommend import OPTIONS, recommend

SAMPLES = 4


def rewrite(accepted=True, reward=1.0, **changes):
    return {
        "text": "9 + 3 = 12",
        "accepted": accepted,
        "failed": [] if accepted else ["quantities"],
        "hacks": [] if accepted else ["dropped_intermediates"],
        "alignment": -1.0,
        "gain": reward,
        "reward": reward if accepted else 0.0,
        "finish": "stop",
        "ids": [5, 6, 7],
        "logprobs": [-0.1, -0.2, -3.0],
    } | changes


def row(name="1", rewrites=None, **changes):
    """A demonstration of alignment -3 whose reward pays at most 2."""
    return {
        "id": name,
        "question": "How many?",
        "solution": "+ 9 3",
        "answer": "12",
        "length": 3,
        "prompt_length": 4,
        "alignment": -3.0,
        "cap": 2.0,
        "tokens": [1, 2, 3],
        "logprobs": [-0.5, -8.0, -0.5],
        "own_alignments": [-1.0, -0.8],
        "own_lengths": [6, 8],
        "drawn": SAMPLES,
        "right": 1,
        "rewrites": [rewrite(), rewrite(reward=2.0), rewrite(accepted=False), rewrite(accepted=False)]
        if rewrites is None
        else rewrites,
    } | changes


def decode(ids):
    return " ".join(map(str, ids))


def findings(rows=None, total=1000, **changes):
    return replace(find(rows or [row(), row("2")], total, SAMPLES, 512, decode), **changes)


def test_the_figures_follow_from_the_rows():
    found = findings([row(), row("2", right=0, own_alignments=[], own_lengths=[], cap=None)])
    assert (found.rows, found.total_rows) == (2, 1000)
    assert found.pass_at_1 == pytest.approx(0.125) and found.pass_at_k == 0.5
    assert found.accepted == 0.5 and found.rows_accepted == 1.0
    assert found.possible_gain == pytest.approx((2.0 + 3.0) / 2)  # without a cap: up to certainty
    assert found.gain_of_best == pytest.approx(2.0 / 2.5) and found.gain_of_one == pytest.approx(0.75 / 2.5)
    assert found.masked == pytest.approx(1 / 3)  # exp(8) is above the perplexity of 2.5, exp(0.5) is not
    assert found.own_finished == 2 / 8 and found.own_tokens == 7
    assert found.failed_gates == {"quantities": 0.5} and found.hacks == {"dropped_intermediates": 0.5}
    token = found.least_natural_tokens[0]
    assert (token.before, token.token, token.logprob) == ("1", " 2", -8.0)
    assert found.least_natural_rows[0].percentile == 0.0


def test_rows_without_answers_or_own_samples_have_no_pass_rates():
    found = findings([row(answer=None, own_alignments=[], own_lengths=[], drawn=0, right=0)])
    assert found.pass_at_1 is None and found.own_alignment is None and found.natural is None
    assert found.checkable == 0.0 and found.own_finished == 0.0


def test_diversity_counts_different_accepted_texts():
    same = row(rewrites=[rewrite(), rewrite()])
    different = row("2", rewrites=[rewrite(), rewrite(text="12 = 9 + 3")])
    assert findings([same]).distinct == 0.5 and findings([same, different]).distinct == 0.75
    assert findings([row(rewrites=[rewrite(), rewrite(accepted=False)])]).distinct is None


@given(st.lists(st.floats(-20, 0), min_size=1), st.floats(-20, 0))
def test_a_percentile_is_a_share_and_grows_with_the_alignment(own, alignment):
    assert 0 <= percentile(alignment, own) <= 1
    assert percentile(alignment, own) <= percentile(alignment + 1, own)


@given(st.integers(1, 50), st.integers(1, 60))
def test_rows_are_chosen_once_each_in_the_order_of_the_data(total, count):
    places = random_places(total, count)
    assert len(places) == min(total, count) and places == sorted(set(places)) and max(places) < total
    assert random_places(total, count) == places


GOOD = {"rows_accepted": 0.9, "gain_of_best": 0.7, "own_finished": 1.0, "gainful": 1.0, "pass_at_k": 0.2}


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({}, "mapper"),
        ({"gainful": 0.3}, "leave"),
        ({"total_rows": 100}, "best_of_k"),
        ({"gain_of_best": 0.95}, "best_of_k"),
        ({"rows_accepted": 0.05, "pass_at_k": 0.7}, "direct_rl"),
        ({"rows_accepted": 0.05, "masked": 0.2}, "mask"),
        ({"rows_accepted": 0.05, "masked": 0.7}, "low_rate"),
        ({"rows_accepted": 0.05, "masked": 0.7, "pass_at_k": None}, "low_rate"),
        ({"checkable": 0.1}, "fix"),
        ({"own_finished": 0.2}, "fix"),
        ({"rewrites_cut": 0.6, "rows_accepted": 0.0}, "fix"),
        ({"too_long": 0.9}, "fix"),
    ],
)
def test_the_recommendation_follows_its_rules_and_gives_a_reason(changes, option):
    recommendation = recommend(findings(**GOOD | changes))
    assert recommendation.option == option and recommendation.option in OPTIONS
    assert recommendation.reason.endswith(".")
    assert bool(recommendation.advice) == (option == "fix" or changes.get("rows_accepted") == 0.05)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """A run folder of the lab with a diagnosis of 8 rows."""
    output = tmp_path_factory.mktemp("diagnosed") / "run"
    flags = ["--output", str(output), "--data.limit", "40", "--data.test", "4", "--data.dev", "4", "--arms", "base,sft"]
    assert main(["diagnose", "lab", *flags, "--rows", "8"]) == 0
    return output, flags


def test_a_diagnosis_of_the_lab_writes_a_page_and_its_figures(diagnosed, capsys):
    output, flags = diagnosed
    record = json.loads((output / "diagnosis" / "diagnosis.json").read_text())
    assert record["rows"] == 8 and record["total_rows"] == 40 and record["recommendation"]["option"] == "best_of_k"
    assert main(["diagnose", "lab", *flags, "--rows", "8"]) == 0  # everything is reused
    shown = capsys.readouterr()
    assert "diagnosis: nothing changed, skipped" in shown.err
    assert "Recommendation: best-of-K" in shown.out and "With 40 rows" in shown.out
    assert "--arms base,sft,best_of_k" in shown.out and "base,sft " not in shown.out
    html = (output / "diagnosis" / "index.html").read_text()
    assert html.startswith("<!doctype html>") and html.count("<article") == 8 and "<script" not in html


def test_the_page_opens_in_a_browser(diagnosed, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    page = diagnosed[0] / "diagnosis" / "index.html"
    for width in (360, 1200):
        shot = tmp_path / f"{width}.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        subprocess.run(
            [browser, *flags, f"--screenshot={shot}", f"--window-size={width},1500", str(page)],
            check=True,
            capture_output=True,
            timeout=120,
        )
        assert shot.stat().st_size > 10_000


def test_a_preview_shows_rewrites_with_their_verdicts(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["preview", "lab", "--data.limit", "20", "--data.test", "4", "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("row lab-") == 2 and "of 6 rewrites are accepted" in shown
    assert "accepted, alignment" in shown or "rejected by" in shown
    assert "measured on these 2 rows only" in shown


def test_mistakes_are_named(tmp_path, capsys):
    lab = ["--data.limit", "20", "--data.test", "4"]
    assert main(["preview", "lab", *lab, "--rows", "0"]) == 2
    assert "'0' is not a positive whole number" in capsys.readouterr().err
    (tmp_path / "stages").mkdir()
    assert main(["preview", "lab", *lab, "--mapper", str(tmp_path)]) == 2
    assert "has no trained mapper of seed 0 yet" in capsys.readouterr().err
    assert main(["diagnose", "lab", *lab, "--matrix", "{seeds: [[0], [1]]}", "--output", str(tmp_path / "x")]) == 2
    assert "the recipe has a matrix" in capsys.readouterr().err


def test_a_run_takes_over_the_rows_of_the_diagnosis_and_they_are_those_it_would_have_measured(tmp_path):
    from dartune.answers.checker import AnswerChecker
    from dartune.config.load import load_config
    from dartune.diagnosis.stage import Diagnose
    from dartune.run.folder import RunFolder
    from dartune.stages.prepare import WriteData, start
    from dartune.stages.probe import ProbeTarget

    logs, rows = {}, {}
    for name in ("alone", "diagnosed"):
        sizes = {"data.limit": "80", "data.test": "4", "data.dev": "4"}
        config = load_config("lab", sizes | {"output": str(tmp_path / name)})
        logs[name] = []
        with RunFolder(tmp_path / name, logs[name].append) as folder, AnswerChecker() as checker:
            context = start(config, folder, checker)
            context.execute(WriteData(context))
            if name == "diagnosed":
                context.execute(Diagnose(context, 8))
            context.execute(ProbeTarget(context, "dart"))
            rows[name] = list(open_rows(context.folder("probe") / "probe.jsonl"))
    assert "probe: 8 rows of the diagnosis are reused" in logs["diagnosed"]
    assert not any("reused" in line for line in logs["alone"])
    for one, other in zip(rows["alone"], rows["diagnosed"], strict=True):
        assert [own["text"] for own in one["own"]] == [own["text"] for own in other["own"]]
        assert one["source_alignment"] == pytest.approx(other["source_alignment"], abs=1e-3)
    tokens = {name: sum(row["spent"].get("generated_tokens", 0) for row in rows[name]) for name in rows}
    assert tokens["alone"] == tokens["diagnosed"]  # the diagnosis's share is counted, too
