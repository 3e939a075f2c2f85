"""Comparison of runs: changed settings, differences between arms, and runs that cannot be compared."""

import json

import pytest
import yaml

from dartune.cli import main
from dartune.config.load import load_config
from dartune.errors import InputError
from dartune.report.compare_runs import compare
from dartune.report.finished_run import open_finished_run
from dartune.run import lock
from dartune.run.files import write_jsonl
from dartune.stages.names import evaluation_stage
from fixtures_report import SHARES, evaluations, full


def finished_run(folder, shares=SHARES, n=40, rename=lambda key: key, **config):
    """A run folder with the files that a comparison reads."""
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


def test_differences_are_shown_per_run_and_over_all_runs(tmp_path, capsys):
    finished_run(tmp_path / "all" / "one", target={"path": "a"})
    finished_run(tmp_path / "all" / "two", BETTER, target={"path": "b"})
    assert main(["compare", str(tmp_path / "all")]) == 0
    output = capsys.readouterr().out
    assert "two: target.path a -> b" in output
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    assert [line.split()[0] for line in lines[start + 1 : start + 4]] == ["one", "two", "all"]
    first, second, pooled = (float(line.replace("all runs", "all").split()[1]) for line in lines[start + 1 : start + 4])
    assert pooled == pytest.approx((first + second) / 2, abs=0.06)
    assert any(line.startswith("two: dart") for line in lines)
    assert "alignment of the data" in output


def interval(line):
    return [float(part.strip("[,]")) for part in line.replace("all runs", "all").split()[1:4]]


def test_questions_shared_by_runs_count_once(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("one", "two", "three", "four")]
    lines = compare(runs).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    assert interval(lines[start + 5]) == interval(lines[start + 1])


def test_questions_without_a_verdict_in_one_run_are_excluded_from_the_pooled_difference(tmp_path):
    runs = [finished_run(tmp_path / name) for name in ("one", "two")]
    path = runs[1] / "stages" / evaluation_stage("sft", 0) / "records.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [row | {"correct": None} if row["id"].endswith(("-0", "-1")) else row for row in rows])
    lines = compare(runs).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("dart - sft"))
    # Both arms were correct on these two questions, so excluding them increases the difference.
    assert interval(lines[start + 3])[0] > interval(lines[start + 1])[0]


def test_a_run_without_adapted_rows_has_no_alignment_of_adapted_data(tmp_path):
    first, second = finished_run(tmp_path / "one"), finished_run(tmp_path / "two")
    path = second / "report" / "results.json"
    results = json.loads(path.read_text())
    for data in results["adapted"]["dart"].values():
        data["alignment_after"] = None
    path.write_text(json.dumps(results))
    table = compare([first, second]).partition("alignment of the data")[2].splitlines()
    assert table[2].split()[0] == "two" and table[2].split()[-1] == "-" and table[1].split()[-1] != "-"


def test_runs_with_different_questions_are_rejected(tmp_path):
    first = finished_run(tmp_path / "one")
    other = finished_run(tmp_path / "two", rename=lambda key: f"other-{key}")
    with pytest.raises(InputError, match="did not answer the same questions as one") as error:
        compare([first, other])
    assert any("two, base, in_distribution, seed 0: 80 questions differ" in line for line in error.value.problems)


def test_folders_without_a_finished_run_are_listed(tmp_path):
    run = finished_run(tmp_path / "one")
    with pytest.raises(InputError) as error:
        compare([run, tmp_path / "none", tmp_path / "nothing"])
    assert len(error.value.problems) == 2
    with pytest.raises(InputError, match="cannot be compared"):
        compare([run])


def test_a_report_that_was_rebuilt_by_a_later_version_has_no_differing_settings(tmp_path):
    now = load_config(None, {"data": "lab:values", "target": "lab:backward"}).model_dump(mode="json")
    old = {**now, "name": "x", "mapper": {"adapter": "full", **now["mapper"], "lora_rank": 16}}
    old["sft"] = {"adapter": "full", **now["sft"], "lora_rank": 16}
    del old["execution"], old["mapper"]["format_steps"]  # settings that this version did not have yet
    runs = [finished_run(tmp_path / name, **config) for name, config in (("old", old), ("new", now))]
    assert "  new: none" in compare(runs).splitlines()
    for run in runs:
        (run / lock.LOCK).touch()
        (run / "config.resolved.yaml").write_text(yaml.safe_dump({**old, "arms": list(SHARES), "seeds": [0]}))
        assert open_finished_run(run).config.sft.lora_rank is None
    changed = {**old, "mapper": {**old["mapper"], "format_steps": 3}}
    (runs[1] / "config.resolved.yaml").write_text(yaml.safe_dump({**changed, "arms": list(SHARES), "seeds": [0]}))
    with pytest.raises(InputError, match="is not finished") as caught:
        open_finished_run(runs[1])
    assert "since its report (mapper.format_steps 0 -> 3)" in caught.value.problems[0]
