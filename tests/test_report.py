"""The report: computed numbers, rejected input, and the text for the terminal."""

import copy
import json
import re

import pytest

from dartune.errors import InputError
from dartune.report import build_results, read_results, summarise, validate_results, write_report
from dartune.report.results import arm_pairs, group_of
from dartune.report.summary import difference_of, headline, summary_of
from dartune.report.verdicts import shortfalls
from dartune.run.number_format import points
from fixtures_report import HOSTILE, SHARES, adapted_row, evaluations, full

# computed numbers


def test_cells_groups_and_differences():
    results = full()
    cell = next(c for c in results["cells"] if (c["arm"], c["suite"]) == ("dart", "in_distribution"))
    assert cell["n"] == 60
    assert cell["accuracy"] == pytest.approx(0.7)
    assert cell["step_accuracy"] == pytest.approx(40 / 60)
    assert cell["truncated"] == pytest.approx(1 / 60)
    assert cell["mean_tokens"] == pytest.approx(11) and cell["announced"] == pytest.approx(59 / 60)
    assert results["groups"] == ["in distribution", "out of distribution", "retention"]
    group = summary_of(results, "dart", "out of distribution")
    assert group["accuracy"]["estimate"] == pytest.approx(0.45)
    assert group["n"] == 120
    gap = difference_of(results, "dart", "sft", "out of distribution")
    assert gap["estimate"] == pytest.approx(0.35)
    assert gap["verdict"] == "higher"
    assert difference_of(results, "dart", "base", "retention")["verdict"] == "lower"
    assert difference_of(results, "sft", "base", "ood_names", "suite")["verdict"] == "unclear"
    assert difference_of(results, "dart", "sft", "retention", measure="step_accuracy") is not None


def test_seeds_are_averaged_and_listed():
    records = evaluations({"sft": {"mine": 0.5}}) + [
        record | {"seed": 1} for record in evaluations({"sft": {"mine": 0.7}})
    ]
    summary = summary_of(build_results(name="x", config={}, evaluations=records), "sft", "mine")
    assert summary["accuracy"]["estimate"] == pytest.approx(0.6)
    assert summary["by_seed"] == {"0": pytest.approx(0.5), "1": pytest.approx(0.7)}
    assert summary["n"] == 60


def test_a_question_without_a_verdict_is_excluded_from_all_arms():
    records = evaluations({"base": {"mine": 0.0, "other": 0.5}, "sft": {"mine": 0.5, "other": 0.5}})
    for record in records:
        # The answer check fails for one arm only; the other arm is correct on half of these questions.
        if record["arm"] == "base" and record["id"] in {f"mine-{i}" for i in range(15, 45)}:
            record["correct"] = None
    results = build_results(name="x", config={}, evaluations=records)
    for arm, share in (("base", 0.0), ("sft", 0.5)):
        assert summary_of(results, arm, "mine")["accuracy"]["estimate"] == pytest.approx(share)
        assert summary_of(results, arm, "mine")["n"] == 30
        assert summary_of(results, arm, "other")["n"] == 60
    assert difference_of(results, "sft", "base", "mine")["n"] == 30
    assert [note for note in results["notes"] if note.startswith("mine: 30 of 60 questions have no verdict")]


def test_a_suite_without_verdicts_is_excluded_and_results_without_verdicts_are_rejected():
    records = evaluations({"base": {"mine": 0.5, "other": 0.5}})
    ungraded = [record | {"correct": None} if record["suite"] == "mine" else record for record in records]
    results = build_results(name="x", config={}, evaluations=ungraded)
    assert [suite["name"] for suite in results["suites"]] == ["other"]
    assert results["notes"][0].startswith("mine: 60 of 60")
    with pytest.raises(InputError, match="no test question has a verdict"):
        build_results(name="x", config={}, evaluations=[record | {"correct": None} for record in records])


def test_groups_and_pairs():
    assert [group_of(name) for name in ("in_distribution", "ood_x", "retention_long", "format_shift", "gsm8k")] == [
        "in distribution",
        "out of distribution",
        "retention",
        "format shift",
        "gsm8k",
    ]
    assert arm_pairs(["base", "sft", "dart"]) == [("dart", "sft"), ("dart", "base"), ("sft", "base")]
    assert arm_pairs(["sft", "dart", "best_of_k"]) == [("dart", "sft"), ("dart", "best_of_k")]
    assert arm_pairs(["base", "sft", "rft"]) == [("sft", "base"), ("base", "sft"), ("rft", "sft")]
    assert arm_pairs(["base", "rft"]) == [("rft", "base")]
    assert arm_pairs(["dart"]) == []


def test_an_adapting_arm_is_charged_for_the_adaptation():
    costs = full()["costs"]
    assert costs["arms"]["dart"]["prepare"]["seconds"] == 125
    assert costs["arms"]["dart"]["total"]["seconds"] == 135
    assert costs["arms"]["dart"]["total"]["generated_tokens"] == 1110
    assert costs["arms"]["dart"]["total"]["peak_memory_mb"] == 700
    assert costs["arms"]["sft"]["prepare"]["seconds"] == 0
    assert costs["arms"]["sft"]["train"] == pytest.approx(costs["arms"]["sft"]["total"])
    assert costs["arms"]["sft"]["train"]["seconds"] == 14
    assert costs["arms"]["base"]["evaluate"]["seconds"] == 1
    assert costs["shared"] == ["data"]


def test_an_arm_bears_only_the_stages_that_it_is_charged_for():
    records = evaluations({"sft": {"mine": 0.5}, "dart": {"mine": 0.5}})
    stages = {name: {"seconds": cost, "flops": 2.0} for name, cost in (("data", 1), ("train", 10), ("probe", 100))}
    charged = {"sft": {"train": ["train"]}, "dart": {"prepare": ["probe"], "train": ["train"]}}
    costs = build_results(name="x", config={}, evaluations=records, costs=stages, charged=charged)["costs"]
    assert [costs["arms"][arm]["total"]["seconds"] for arm in ("sft", "dart")] == [10, 110]
    assert costs["arms"]["dart"]["prepare"]["flops"] == 2.0
    assert costs["shared"] == ["data"]


def test_phases_compare_first_and_last_steps():
    mapper = full()["mapper"]["dart"]["0"]
    assert mapper["edge_steps"] == 4
    before, after = mapper["phases"]["before"], mapper["phases"]["after"]
    assert before["reward"] == pytest.approx(0.15)
    assert after["reward"] == pytest.approx(0.95)
    assert before["hacks"] == pytest.approx({"leak": 0.2625, "padding": 0.0})
    assert after["hacks"] == pytest.approx({"leak": 0.0, "padding": 0.06})
    assert before["kl"] == pytest.approx(0.1)


def test_accounting_reports_missing_rows():
    adapted = full()["adapted"]["dart"]["0"]
    assert adapted["provenance"] == {"rewrite": 6, "own": 1, "guided": 0, "natural": 0, "original": 2, "dropped": 1}
    assert adapted["accounting"] == {"input": 10, "adapted": 7, "original": 2, "dropped": 1, "unaccounted": 0}
    assert adapted["reasons"] == {"the best accepted candidate": 6, "no rewrite passed": 4}
    assert adapted["hacks_refused"] == {"leak": 0.1} and adapted["hacks"] == {}
    assert adapted["gates"] == {"answer": 1.0}
    assert adapted["alignment_after"] == -1
    incomplete = full(input_rows=12)
    assert incomplete["adapted"]["dart"]["0"]["accounting"]["unaccounted"] == 2
    assert "2 NOT ACCOUNTED FOR" in summarise(incomplete, width=200)


# rejected input


def test_arms_with_different_questions_are_rejected_and_listed():
    records = [r for r in evaluations(SHARES) if not (r["arm"] == "dart" and r["id"] in ("retention-3", "ood_names-9"))]
    with pytest.raises(InputError) as error:
        full(evaluations=records)
    assert len(error.value.problems) == 2
    assert "suite retention, seed 0: arm dart lacks 1 of 60" in str(error.value)
    assert "ood_names-9" in str(error.value)


def test_arms_with_different_seeds_or_templates_are_rejected():
    records = evaluations(SHARES, seeds=(0, 1))
    with pytest.raises(InputError, match="seed 1: arm sft lacks 60 of 60"):
        full(evaluations=[r for r in records if (r["arm"], r["seed"]) != ("sft", 1)])
    with pytest.raises(InputError, match="prompt templates differ"):
        full(templates={"sft": "a" * 64, "dart": "b" * 64})


def test_all_malformed_records_are_listed():
    records = evaluations(SHARES)
    records[0] = records[0] | {"correct": "yes"}
    del records[5]["n_tokens"]
    with pytest.raises(InputError) as error:
        full(evaluations=records)
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "record 0.correct",
        "record 5.n_tokens",
    ]
    with pytest.raises(InputError, match="twice"):
        full(evaluations=evaluations(SHARES) + evaluations({"sft": {"retention": 0.1}}))
    with pytest.raises(InputError, match="nothing to report"):
        full(evaluations=[])


def test_the_schema_is_checked_when_written_and_when_read(tmp_path):
    results = full()
    page = write_report(tmp_path / "report", results)
    path = page.parent / "results.json"
    assert read_results(path) == json.loads(path.read_text()) == results
    broken = copy.deepcopy(results)
    del broken["summaries"][0]["accuracy"]["low"]
    broken["seeds"] = ["zero"]
    with pytest.raises(InputError) as error:
        validate_results(broken)
    assert {p.split(":")[0] for p in error.value.problems} == {"summaries.0.accuracy.low", "seeds.0"}
    with pytest.raises(InputError, match="schema version 1"):
        validate_results(results | {"schema_version": 1})
    path.write_text('{"cut')
    with pytest.raises(InputError, match="not valid JSON"):
        read_results(path)
    with pytest.raises(InputError, match="does not exist"):
        read_results(tmp_path / "none.json")


# text


def test_wording_depends_on_sign_and_interval():
    shares = {
        "sft": {"in_distribution": 0.3, "retention": 0.5, "mine": 0.5},
        "dart": {"in_distribution": 0.8, "retention": 0.1, "mine": 0.51},
    }
    first, second, third = headline(build_results(name="x", config={}, evaluations=evaluations(shares)))
    assert first.startswith(
        "In distribution: dart is better than sft, 80.0% against 30.0% (+50.0 points, 95% interval +"
    )
    assert second.startswith("Retention: dart is worse than sft, 10.0% against 50.0% (-40.0 points, 95% interval -")
    assert third.startswith("Mine: no clear difference between dart and sft")


def test_the_headline_includes_the_comparison_with_base():
    lines = headline(full())
    assert lines[3] == (
        "dart against base, points: in distribution +60.0 (better), out of distribution +37.5 (better), "
        "retention -10.0 (worse)."
    )
    assert headline(build_results(name="x", config={}, evaluations=evaluations({"rft": {"mine": 0.5}}))) == [
        "Mine: rft answers 50.0% correctly, 95% interval 37.7 to 62.3."
    ]


def test_terminal_summary():
    text = summarise(full(), page="run/report/index.html", width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^dart +70\.0 \[\d+\.\d, \d+\.\d\]", text, re.MULTILINE)
    assert re.search(r"dart - base.*worse", text)
    assert "10 demonstrations = 6 rewrite, 1 own, 2 original, 1 dropped" in " ".join(text.split())
    assert "learning rate chosen on dev: sft 0.001" in text
    assert re.search(r"^dart +2\.2 min +2\.1 min +0\.0e\+00 +1,110 +50 +940$", text, re.MULTILINE)
    assert text.rstrip().endswith("report: run/report/index.html")


def test_points_have_no_negative_zero():
    assert [points(share) for share in (0.0, -0.0, -0.0001, 0.123, -0.05)] == [
        "+0.0",
        "+0.0",
        "+0.0",
        "+12.3",
        "-5.0",
    ]


def test_data_cannot_send_control_characters_to_the_terminal():
    text = summarise(build_results(name=HOSTILE, config={}, evaluations=evaluations({"sft": {HOSTILE: 0.5}})))
    assert "\x1b" not in text
    text.encode("utf-8")


# negative findings


def test_negative_findings_are_listed():
    shares = SHARES | {"best_of_k": {"in_distribution": 1.0, "ood_length": 1.0, "ood_names": 1.0, "retention": 0.9}}
    falling = [{"step": step, "reward": 1 - step / 10} for step in range(6)]
    findings = shortfalls(
        full(
            config={"arms": list(shares), "seeds": [0]},
            evaluations=evaluations(shares),
            mapper_metrics={"dart": {0: falling}},
        )
    )
    text = " ".join(findings)
    assert (
        "best_of_k is better than dart, points: in distribution +30.0" in text and "out of distribution +55.0" in text
    )
    assert "retention" not in findings[1]  # equal there
    assert "dart, seed 0: 3 of 10 rows have no adapted solution" in text
    assert "training did not raise the reward" in text
    assert "Learning rate of sft: the largest value tried was best on dev (1 seed of 1); try larger ones." in text


def test_a_successful_run_has_no_negative_findings():
    adapted = {"dart": {0: [adapted_row(0, "rewrite")]}}
    good = full(
        adapted=adapted, input_rows=1, learning_rates={}, evaluations=evaluations(SHARES | {"base": SHARES["sft"]})
    )
    assert shortfalls(good) == []


def test_gate_rates_count_passed_and_failed_checks():
    from dartune.report.adaptation import adapted_summary

    gates = [{"length": True, "finished": True}, {"length": False}, {"length": False, "finished": False}]
    rows = [{"provenance": "rewrite", "solution": "so", "gates": row_gates} for row_gates in gates]
    rates = adapted_summary(rows, None, None)["gates"]
    assert rates == {"length": pytest.approx(1 / 3), "finished": 0.5}
    assert adapted_summary(rows[1:2], None, None)["gates"] == {"length": 0.0}
