"""The report: what it computes, what it refuses, that its page says what was measured and runs nothing."""

import copy
import json
import re
import xml.etree.ElementTree as ET
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from dartune.errors import InputError
from dartune.report import build_results, read_results, summarise, validate_results, write_report
from dartune.report.plots import draw_plots, standalone
from dartune.report.results import arm_pairs, group_of
from dartune.report.summary import difference_of, headline, points, summary_of

HOSTILE = "<script>alert(1)</script>{{ 7*7 }}<img src=http://x.invalid/a.png>\x1b[2J\ud800$\\frac$"


def evaluations(shares, n=60, seeds=(0,), steps=True):
    """Records with the given share of correct answers: {arm: {suite: share}}, the first ones."""
    return [
        {
            "arm": arm,
            "seed": seed,
            "suite": suite,
            "id": f"{suite}-{index}",
            "correct": index < share * n,
            "steps_correct": index < share * n - 2 if steps else None,
            "names_correct": True if steps else None,
            "finish": "length" if index == 0 else "stop",
            "n_tokens": 10 + index % 3,
            "text": "The answer is 3 .",
        }
        for arm, suites in shares.items()
        for suite, share in suites.items()
        for seed in seeds
        for index in range(n)
    ]


SHARES = {
    "base": {"in_distribution": 0.1, "ood_length": 0.05, "ood_names": 0.1, "retention": 1.0},
    "sft": {"in_distribution": 0.2, "ood_length": 0.1, "ood_names": 0.1, "retention": 0.1},
    "dart": {"in_distribution": 0.7, "ood_length": 0.4, "ood_names": 0.5, "retention": 0.9},
}


def metrics(steps=12):
    return [
        {
            "step": step + 1,
            "reward": step / 10,
            "gain": step / 9,
            "gate_pass": 0.4 + step / 30,
            "gates": {"format": 1.0, "answer": 0.5 + step / 30},
            "alignment_before": -2.4,
            "alignment_after": -2.0 + step / 10,
            "kl": float("nan") if step == 3 else 0.1,
            "hacks": {"leak": 0.3 - step / 40} if step < 6 else {"padding": 0.06},
            "dialects": {"explicit": 1.0} if step > 6 else {"values": 1.0},
        }
        for step in range(steps)
    ]


def adapted_row(index, provenance, **changes):
    return {
        "id": str(index),
        "question": "q",
        "solution": "y",
        "source_solution": "s",
        "provenance": provenance,
        "alignment_before": -2.0,
        "alignment_after": -1.0 if provenance != "dropped" else None,
        "gates": {"answer": True} if provenance == "rewrite" else {},
        "hacks": ["leak"] if index == 0 else [],
        "reason": "the best accepted candidate" if provenance == "rewrite" else "no rewrite passed",
        **changes,
    }


def example(**changes):
    return {
        "id": "row-0",
        "question": "How many ?",
        "source_solution": "3 4",
        "solution": "one two",
        "provenance": "rewrite",
        "tokens_before": [["3", -5.0], [" 4", -0.01], ["", -0.3]],
        "tokens_after": [["one", -0.2], [" two", None]],
        "alignment_before": -2.31,
        "alignment_after": -0.62,
        "reason": "",
        **changes,
    }


def full(**changes):
    """Results with every part filled; `changes` are arguments of `build_results`, and the seeds."""
    return _full(**changes) if changes else copy.deepcopy(_unchanged())


@cache
def _unchanged():
    return _full()


def _full(**changes):
    seeds = changes.pop("seeds", (0,))
    rows = [adapted_row(i, p) for i, p in enumerate(["rewrite"] * 6 + ["own", "original", "original", "dropped"])]
    arguments = {
        "name": "trial",
        "config": {"arms": ["base", "sft", "dart"], "seeds": list(seeds)},
        "evaluations": evaluations(SHARES, seeds=seeds),
        "costs": {
            "probe": {"seconds": 5.0, "generated_tokens": 10, "peak_memory_mb": 300},
            "mapper-s0": {
                "seconds": 100.0,
                "generated_tokens": 1000,
                "trained_tokens": 900,
                "peak_memory_mb": 700,
            },
            "synthesise-s0": {"seconds": 20.0, "generated_tokens": 100, "scored_tokens": 50},
            "train-sft-s0-lr0.001": {"seconds": 7.0, "trained_tokens": 30},
            "train-sft-s0-lr0.0003": {"seconds": 7.0, "trained_tokens": 30},
            "train-dart-s0-lr0.001": {"seconds": 8.0, "trained_tokens": 40},
            "evaluate-base": {"seconds": 1.0},
            "evaluate-dart-s0": {"seconds": 2.0},
            "data": {"seconds": 3.0},
        },
        "mapper_metrics": {seed: metrics() for seed in seeds},
        "adapted": dict.fromkeys(seeds, rows),
        "adapted_quality": {seed: {"step_correct": 0.9, "dialects": {"explicit": 0.8}} for seed in seeds},
        "learning_rates": {"sft": {0: {"chosen": 0.001, "dev": {0.001: 0.5, 0.0003: 0.25}}}},
        "examples": [example()],
        "input_rows": 10,
        "notes": ["Read with care."],
    }
    return build_results(**arguments | changes)


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.ids = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def page_of(results, folder):
    return write_report(folder, results).read_text(encoding="utf-8")


# what is computed


def test_cells_groups_and_differences():
    results = full()
    cell = next(c for c in results["cells"] if (c["arm"], c["suite"]) == ("dart", "in_distribution"))
    assert cell["n"] == 60
    assert cell["accuracy"] == pytest.approx(0.7)
    assert cell["step_accuracy"] == pytest.approx(40 / 60)
    assert cell["truncated"] == pytest.approx(1 / 60)
    assert cell["mean_tokens"] == pytest.approx(11)
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


def test_groups_and_pairs():
    assert [group_of(name) for name in ("in_distribution", "ood_x", "retention_long", "format_shift", "gsm8k")] == [
        "in distribution",
        "out of distribution",
        "retention",
        "format shift",
        "gsm8k",
    ]
    assert arm_pairs(["base", "sft", "dart"]) == [("dart", "sft"), ("dart", "base"), ("sft", "base")]
    assert ("best_of_k", "sft") in arm_pairs(["sft", "dart", "best_of_k"])
    assert ("dart", "best_of_k") in arm_pairs(["sft", "dart", "best_of_k"])
    assert arm_pairs(["base", "rft"]) == [("rft", "base")]
    assert arm_pairs(["dart"]) == []


def test_the_adapting_arm_is_charged_for_adapting():
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


def test_an_arm_is_not_charged_for_an_arm_whose_name_it_begins():
    records = evaluations({"sft": {"mine": 0.5}, "sft-low": {"mine": 0.5}})
    stages = {"train-sft-s0-lr1": {"seconds": 1}, "train-sft-low-s0-lr1": {"seconds": 10}}
    arms = build_results(name="x", config={}, evaluations=records, costs=stages)["costs"]["arms"]
    assert (arms["sft"]["total"]["seconds"], arms["sft-low"]["total"]["seconds"]) == (1, 10)


def test_phases_compare_first_and_last_steps():
    mapper = full()["mapper"]["0"]
    assert mapper["edge_steps"] == 4
    before, after = mapper["phases"]["before"], mapper["phases"]["after"]
    assert before["reward"] == pytest.approx(0.15)
    assert after["reward"] == pytest.approx(0.95)
    assert before["hacks"] == pytest.approx({"leak": 0.2625, "padding": 0.0})
    assert after["hacks"] == pytest.approx({"leak": 0.0, "padding": 0.06})
    assert before["kl"] == pytest.approx(0.1)


def test_accounting_and_what_is_missing():
    adapted = full()["adapted"]["0"]
    assert adapted["provenance"] == {"rewrite": 6, "own": 1, "original": 2, "dropped": 1}
    assert adapted["accounting"] == {"input": 10, "adapted": 7, "original": 2, "dropped": 1, "unaccounted": 0}
    assert adapted["reasons"] == {"the best accepted candidate": 6, "no rewrite passed": 4}
    assert adapted["hacks"] == {"leak": 0.1}
    assert adapted["gates"] == {"answer": 1.0}
    assert adapted["alignment_after"] == -1
    lost = full(input_rows=12)
    assert lost["adapted"]["0"]["accounting"]["unaccounted"] == 2
    assert "2 NOT ACCOUNTED FOR" in summarise(lost, width=200)


# what is refused


def test_arms_with_other_questions_are_refused_and_named():
    records = [r for r in evaluations(SHARES) if not (r["arm"] == "dart" and r["id"] in ("retention-3", "ood_names-9"))]
    with pytest.raises(InputError) as caught:
        full(evaluations=records)
    assert len(caught.value.problems) == 2
    assert "suite retention, seed 0: arm dart lacks 1 of 60" in str(caught.value)
    assert "ood_names-9" in str(caught.value)


def test_arms_with_other_seeds_or_templates_are_refused():
    records = evaluations(SHARES, seeds=(0, 1))
    with pytest.raises(InputError, match="seed 1: arm sft lacks 60 of 60"):
        full(evaluations=[r for r in records if (r["arm"], r["seed"]) != ("sft", 1)])
    with pytest.raises(InputError, match="prompt templates differ"):
        full(templates={"sft": "a" * 64, "dart": "b" * 64})


def test_bad_records_are_all_named():
    records = evaluations(SHARES)
    records[0] = records[0] | {"correct": "yes"}
    del records[5]["n_tokens"]
    with pytest.raises(InputError) as caught:
        full(evaluations=records)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
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
    with pytest.raises(InputError) as caught:
        validate_results(broken)
    assert {p.split(":")[0] for p in caught.value.problems} == {"summaries.0.accuracy.low", "seeds.0"}
    with pytest.raises(InputError, match="schema version 2"):
        validate_results(results | {"schema_version": 2})
    path.write_text('{"cut')
    with pytest.raises(InputError, match="not JSON"):
        read_results(path)
    with pytest.raises(InputError, match="does not exist"):
        read_results(tmp_path / "none.json")


# what is said


def test_wording_follows_sign_and_interval():
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


def test_headline_also_holds_the_comparison_with_base():
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
    assert re.search(r"dart - base.*lower", text)
    assert "10 demonstrations = 6 rewrite, 1 own, 2 original, 1 dropped" in " ".join(text.split())
    assert "learning rate chosen on dev: sft 0.001" in text
    assert re.search(r"^dart +2\.2 min +2\.1 min +1,110 +50 +940$", text, re.MULTILINE)
    assert text.rstrip().endswith("report: run/report/index.html")


def test_points_have_no_negative_zero():
    assert [points(share) for share in (0.0, -0.0, -0.0001, 0.123, -0.05)] == [
        "+0.0",
        "+0.0",
        "+0.0",
        "+12.3",
        "-5.0",
    ]


def test_data_cannot_steer_the_terminal():
    text = summarise(build_results(name=HOSTILE, config={}, evaluations=evaluations({"sft": {HOSTILE: 0.5}})))
    assert "\x1b" not in text
    text.encode("utf-8")


# the page


def test_the_page_shows_everything_that_was_measured(tmp_path):
    html = page_of(full(seeds=(0, 1)), tmp_path)
    page = Page(html)
    for part in (
        "dart is better than sft, 70.0% against 20.0%",
        "Paired differences",
        "out of distribution",
        "Before and after",
        "trained on (rewrite), alignment -0.62",
        "The adapted data",
        "6 rewrite (60.0%)",
        "no rewrite passed",
        "Training of the mapper",
        "Hack caught",
        "Costs",
        "0.001: 50.0, 0.0003: 25.0",
        "How to read this",
        "Read with care.",
    ):
        assert part in page.text, part
    assert sum(tag == "svg" for tag, _ in page.tags) == 6
    assert "Single training seed" not in page.text
    assert len(page.ids) == len(set(page.ids))


def test_tokens_are_shaded_by_surprise(tmp_path):
    spans = re.findall(r'<span(?: class="(s\d)" title="[^"]*")?>([^<]*)</span>', page_of(full(), tmp_path))
    shades = {text: shade for shade, text in spans}
    assert (shades["3"], shades[" 4"], shades["one"], shades[" two"]) == ("s5", "s0", "s1", "")
    assert shades[" [end]"] == "s1"


def test_nothing_from_the_data_runs_and_nothing_is_loaded(tmp_path):
    records = evaluations({"base": {HOSTILE: 0.5}, "sft": {HOSTILE: 0.5}, HOSTILE: {HOSTILE: 0.4}})
    quoting = 'x" onmouseover="alert(1)'
    results = full(
        name=HOSTILE,
        config={"arms": ["base", "sft", HOSTILE], "path": HOSTILE},
        evaluations=records,
        mapper_metrics={0: [{"step": 1, "reward": 1.0, "gates": {HOSTILE: 0.5}, "dialects": {quoting: 1.0}}]},
        adapted={0: [adapted_row(0, quoting, reason=HOSTILE, hacks=[HOSTILE])]},
        adapted_quality={0: {HOSTILE: HOSTILE}},
        costs={HOSTILE: {"seconds": 1}},
        learning_rates={HOSTILE: {0: {"chosen": HOSTILE, "dev": {HOSTILE: 0.5}}}},
        examples=[example(question=HOSTILE, solution=HOSTILE, tokens_after=[[HOSTILE, -1.0]], reason=HOSTILE)],
        notes=[HOSTILE],
        input_rows=None,
    )
    html = page_of(results, tmp_path)
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "form", "base", "a"}
    assert "{{ 7*7 }}" in page.text
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    for svg in tmp_path.glob("*.svg"):
        ET.fromstring(svg.read_text(encoding="utf-8"))


def test_users_own_data_without_lab_metrics(tmp_path):
    """No step checker, no mapper, few questions: the page shows what there is and says how little it is."""
    records = evaluations({"base": {"my_test": 0.5}, "sft": {"my_test": 0.6}}, n=10, steps=False)
    results = build_results(name="mine", config={}, evaluations=records)
    page = Page(page_of(results, tmp_path))
    assert not [row for row in results["differences"] if row["measure"] != "accuracy"]
    assert "no clear difference between sft and base" in page.text
    assert "Single training seed" in page.text
    assert "Fewer than 50 questions, so wide intervals: my_test" in page.text
    for absent in (
        "Training of the mapper",
        "The adapted data",
        "Before and after",
        "Costs",
        "step accuracy",
    ):
        assert absent not in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.svg", "index.html", "results.json"]


def test_the_same_results_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        write_report(tmp_path / name, full())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


# the plots


def test_plots_take_the_colour_of_the_page():
    plots = draw_plots(full())
    assert set(plots) == {"accuracy", "reward", "alignment", "gates", "hacks", "dialects"}
    for name, svg in plots.items():
        ET.fromstring(standalone(svg))
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", svg), name
    assert "prefers-color-scheme" in standalone(plots["accuracy"])


def test_curves_name_their_lines_and_what_is_not_drawn():
    plots = draw_plots(full())
    assert ">answer</text>" in plots["gates"]
    assert "97% or more on average: format" in plots["gates"]
    assert ">format</text>" not in plots["gates"]
    assert {">explicit</text>", ">values</text>"} <= set(re.findall(r">\w+</text>", plots["dialects"]))


def test_names_at_the_end_of_curves_do_not_cover_each_other():
    gates = {f"gate{index}": 0.5 for index in range(9)}
    rows = [{"step": step, "gates": gates} for step in range(3)]
    svg = draw_plots(full(mapper_metrics={0: rows}))["gates"]
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>gate\d</text>', svg))
    assert len(heights) == 9
    assert min(b - a for a, b in pairwise(heights)) > 8
