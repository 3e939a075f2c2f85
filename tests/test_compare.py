"""Runs side by side: what differs, the gaps, and what cannot be compared."""

import json

import pytest

from dartune.cli import main
from dartune.compare import compare
from dartune.errors import InputError
from dartune.run import write_jsonl
from dartune.train_arms import evaluation_stage
from fixtures_report import SHARES, evaluations, full


def finished_run(folder, shares=SHARES, n=40, rename=lambda key: key, **config):
    """A run folder as far as a comparison reads it."""
    records = [record | {"id": rename(record["id"])} for record in evaluations(shares, n=n)]
    results = full(evaluations=records, config={"arms": list(shares), "seeds": [0], **config})
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "results.json").write_text(json.dumps(results))
    for arm in shares:
        stage = folder / "stages" / evaluation_stage(arm, 0)
        stage.mkdir(parents=True)
        write_jsonl(stage / "records.jsonl", [record for record in records if record["arm"] == arm])
    return folder


BETTER = {arm: {suite: min(1.0, share + 0.1) for suite, share in suites.items()} for arm, suites in SHARES.items()}


def test_gaps_are_shown_for_every_run_and_for_all(tmp_path, capsys):
    finished_run(tmp_path / "all" / "one", target={"path": "a"})
    finished_run(tmp_path / "all" / "two", BETTER, target={"path": "b"})
    assert main(["compare", str(tmp_path / "all")]) == 0
    said = capsys.readouterr().out
    assert "two: target.path a -> b" in said
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["one", "two", "all"]
    one, two, both = (float(line.replace("all runs", "all").split()[1]) for line in lines[start + 1 : start + 4])
    assert both == pytest.approx((one + two) / 2, abs=0.06)
    assert any(line.startswith("two: dart") for line in lines)
    assert "alignment of the data" in said


def interval(line):
    return [float(part.strip("[,]")) for part in line.replace("all runs", "all").split()[1:4]]


def test_the_same_questions_asked_again_are_no_new_questions(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("one", "two", "three", "four")]
    lines = compare(runs).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    assert interval(lines[start + 5]) == interval(lines[start + 1])


def test_questions_without_a_verdict_in_one_run_are_left_out_of_the_gap_over_all(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("one", "two")]
    path = runs[1] / "stages" / evaluation_stage("sft", 0) / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [row | {"correct": None} if row["id"].endswith(("-0", "-1")) else row for row in rows])
    lines = compare(runs).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    # Both arms were right on the two: without them the gap is 60 points of 38/40.
    assert interval(lines[start + 3])[0] > interval(lines[start + 1])[0]


def test_a_run_that_adapted_nothing_has_no_alignment_after_it(tmp_path):
    first, second = finished_run(tmp_path / "one"), finished_run(tmp_path / "two")
    path = second / "report" / "results.json"
    results = json.loads(path.read_text())
    for data in results["adapted"]["dart"].values():
        data["alignment_after"] = None
    path.write_text(json.dumps(results))
    said = compare([first, second]).partition("alignment of the data")[2].splitlines()
    assert said[2].split()[0] == "two" and said[2].split()[-1] == "-" and said[1].split()[-1] != "-"


def test_runs_that_asked_other_questions_are_refused(tmp_path):
    first = finished_run(tmp_path / "one")
    other = finished_run(tmp_path / "two", rename=lambda key: f"other-{key}")
    with pytest.raises(InputError, match="were not asked what one was") as caught:
        compare([first, other])
    assert any("two, base, in_distribution, seed 0: 80 questions differ" in line for line in caught.value.problems)


def test_what_is_no_finished_run_is_named(tmp_path):
    run = finished_run(tmp_path / "one")
    with pytest.raises(InputError) as caught:
        compare([run, tmp_path / "none", tmp_path / "nothing"])
    assert len(caught.value.problems) == 2
    with pytest.raises(InputError, match="cannot be compared"):
        compare([run])
