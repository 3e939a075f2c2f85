"""The page and the plots of the report: complete, reproducible, and safe for untrusted data."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

from dartune.report import build_results, write_report
from dartune.report.plots import draw_plots, standalone
from fixtures_report import HOSTILE, Page, adapted_row, evaluations, example, full, metrics, page_of

# the page


def test_the_page_shows_all_measurements(tmp_path):
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
        "Hack committed",
        "Costs",
        "0.001: 50.0, 0.0003: 25.0",
        "What did not work",
        "How to read this",
        "Read with care.",
    ):
        assert part in page.text, part
    assert sum(tag == "svg" for tag, _ in page.tags) == 7
    assert "Single training seed" not in page.text
    assert len(page.ids) == len(set(page.ids))


def test_an_arm_without_training_rows_is_reported_at_the_top(tmp_path):
    caution = "No row was adapted for dart (seed 1): the arm was not trained and equals the untouched target."
    rows = {0: [adapted_row(0, "natural"), adapted_row(1, "original")], 1: [adapted_row(0, "original")] * 2}
    page = Page(page_of(full(seeds=(0, 1), adapted={"dart": rows}, input_rows=2), tmp_path)).text
    assert caution in page and page.index(caution) < page.index("Final answer correct")
    assert "the arm was not trained" not in Page(page_of(full(), tmp_path)).text


def test_ticks_are_integer_steps_and_powers_of_ten_for_a_wide_range_of_costs():
    results = full(mapper_metrics={"dart": {0: metrics(steps=4)}})
    results["costs"]["arms"] = {
        arm: {"total": {"flops": flops}} for arm, flops in zip(results["arms"], (7e8, 2e11, 2.1e11), strict=True)
    }
    plots = draw_plots(results)
    steps = [text for text in re.findall(r">([^<>]+)</text>", plots["reward"]) if re.fullmatch(r"[\d.]+", text)]
    assert {"1", "2", "3", "4"} <= set(steps) and "1.5" not in steps
    ticks = re.findall(r">(\de\+\d\d)</text>", plots["cost"])
    assert ticks and all(tick.startswith("1e") for tick in ticks)


def test_a_row_without_an_accepted_rewrite_shows_the_rejected_ones_and_not_its_original_twice(tmp_path):
    rejected = {"text": "nine", "failed": ["correct_answer", "length"], "alignment": -0.5, "tokens": [["nine", -0.5]]}
    unchanged = example(provenance="original", solution="3 4", rejected=[rejected])
    results = full()
    results["examples"] = [unchanged]
    page = Page(page_of(results, tmp_path))
    assert "demonstration, kept, not trained on (original), alignment -2.31" in page.text
    assert "rewrite, rejected by correct_answer, length, alignment -0.5" in page.text
    assert "trained on (original)" not in page.text.replace("kept, not trained on (original)", "")


def test_tokens_are_shaded_by_surprise(tmp_path):
    spans = re.findall(r'<span(?: class="(s\d)" title="[^"]*")?>([^<]*)</span>', page_of(full(), tmp_path))
    shades = {text: shade for shade, text in spans}
    assert (shades["3"], shades[" 4"], shades["one"], shades[" two"]) == ("s5", "s0", "s1", "")
    assert shades[" [end]"] == "s1"


def test_untrusted_data_are_escaped_and_no_resource_is_loaded(tmp_path):
    records = evaluations({"base": {HOSTILE: 0.5}, "sft": {HOSTILE: 0.5}, HOSTILE: {HOSTILE: 0.4}})
    quoting = 'x" onmouseover="alert(1)'
    results = full(
        name=HOSTILE,
        config={"arms": ["base", "sft", HOSTILE], "path": HOSTILE},
        evaluations=records,
        mapper_metrics={"dart": {0: [{"step": 1, "reward": 1.0, "gates": {HOSTILE: 0.5}, "dialects": {quoting: 1.0}}]}},
        adapted={"dart": {0: [adapted_row(0, quoting, reason=HOSTILE, hacks=[HOSTILE], hacks_refused=[HOSTILE])]}},
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
    """Without step checker and mapper and with few questions, the page has fewer sections and a caution."""
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


def test_plots_have_the_text_colour_of_the_page():
    plots = draw_plots(full())
    assert set(plots) == {"accuracy", "cost-time", "reward", "alignment", "gates", "hacks", "dialects"}
    for name, svg in plots.items():
        ET.fromstring(standalone(svg))
        assert "currentColor" in svg
        assert "#010203" not in svg
        on_dots = re.compile(r"<text[^>]*fill: #ffffff[^>]*>\d+</text>")  # numbers in coloured dots
        assert not re.search(r"(fill|stroke): ?#(000000|ffffff)", on_dots.sub("", svg)), name
    assert "prefers-color-scheme" in standalone(plots["accuracy"])


def test_curves_are_labelled_and_omitted_curves_are_listed():
    plots = draw_plots(full())
    assert ">answer</text>" in plots["gates"]
    assert "97% or more on average: format" in plots["gates"]
    assert ">format</text>" not in plots["gates"]
    assert {">explicit</text>", ">values</text>"} <= set(re.findall(r">\w+</text>", plots["dialects"]))


def test_labels_of_curves_do_not_overlap():
    gates = {f"gate{index}": 0.5 for index in range(9)}
    rows = [{"step": step, "gates": gates} for step in range(3)]
    svg = draw_plots(full(mapper_metrics={"dart": {0: rows}}))["gates"]
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>gate\d</text>', svg))
    assert len(heights) == 9
    assert min(b - a for a, b in pairwise(heights)) > 8


def test_accuracy_is_plotted_against_cost():
    stages = {"one": {"flops": 1e9}, "two": {"flops": 2e10}}
    charged = {"base": {"evaluate": ["one"]}, "sft": {"train": ["one"]}, "dart": {"train": ["two"]}}
    svg = draw_plots(full(costs=stages, charged=charged))["cost"]
    assert "3 dart" in svg and "accuracy out of distribution" in svg and "mathdefault" not in svg
