"""Write the results as a self-contained HTML page: no scripts, no external resources, all data escaped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dartune.config.arms import ARMS
from dartune.data.adapted_dataset import ADAPTED, VIEWS
from dartune.report import summary
from dartune.report.adaptation import first_adaptation, mean_of_known
from dartune.report.plots import MANY_ARMS, arm_colours, draw_plots, standalone
from dartune.report.schema import validate_results
from dartune.report.templates import Side, render, shade_legend
from dartune.report.verdicts import shortfalls
from dartune.run.files import atomic_write_text

FEW_QUESTIONS = 50  # suites with fewer questions are named in a caution
SHOWN_EXAMPLES = 13
SHOWN_REASONS = 20
# Rows with provenance `original` are in the data set, but only the arm dart_keep_original trains on them.
USE = {"natural": "trained on (natural)", "original": "kept, not trained on (original)", "dropped": "dropped"}
PHASES = ("before", "during", "after")


@dataclass(frozen=True)
class Section:
    """A user-defined section of the page: a table.

    Args:
        title: its heading.
        rows: column -> value; the first row has all columns.
        note: text below the heading.
    """

    title: str
    rows: Sequence[Mapping[str, str | float]]
    note: str = ""


SectionMaker = Callable[[Mapping[str, Any]], Section]
"""results (as in results.json) -> a section."""


def write_report(folder: Path, results: Mapping[str, Any], sections: Sequence[SectionMaker] = ()) -> Path:
    """Write results.json, the plots and index.html; return the path of the page.

    Args:
        folder: folder of the report, created if it does not exist. Every file is replaced atomically, the page last.
        results: as built by `build_results`.
        sections: functions that make user-defined sections, shown before the explanations.

    Raises:
        InputError: `results` do not follow the schema.
    """
    results = validate_results(results)
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(results)
    # ASCII: the data may contain lone surrogates, which can be escaped in JSON but not encoded in UTF-8.
    atomic_write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    for name, svg in plots.items():
        atomic_write_text(folder / f"{name}.svg", standalone(svg))
    page = folder / "index.html"
    atomic_write_text(page, render_page(results, plots, [section(results) for section in sections]))
    return page


def render_page(results: Mapping[str, Any], plots: Mapping[str, str], sections: Sequence[Section] = ()) -> str:
    """Return the page as HTML; `plots` are SVGs from `draw_plots`."""
    from markupsafe import Markup

    return render(
        "page.html.j2",
        results=results,
        sections=sections,
        # The only text that the template does not escape. Matplotlib escapes the labels in it.
        plots={name: Markup(svg) for name, svg in plots.items()},
        colours=arm_colours(results["arms"]),
        words=summary.VERDICT_WORDS,
        setup=summary.describe_setup(results),
        headline=summary.headline(results),
        cautions=_cautions(results),
        shortfalls=shortfalls(results),
        accuracy=_accuracy_rows(results),
        by_arm=_arm_rows(results) if len(results["arms"]) > MANY_ARMS else [],
        differences=_difference_rows(results, ("accuracy",)),
        other_differences=_difference_rows(results, ("step_accuracy", "avg_at_k", "pass_at_k")),
        rates=_rate_tables(results),
        mapper=first_adaptation(results["mapper"]),
        sampled=results["config"].get("evaluate", {}).get("samples"),
        break_even=summary.break_even(results),
        adapted=[_adapted(seed, adapted) for seed, adapted in first_adaptation(results["adapted"]).items()],
        examples=[_example(example) for example in results["examples"][:SHOWN_EXAMPLES]],
        legend=shade_legend(),
        config=json.dumps(results["config"], indent=2, ensure_ascii=False),
    )


def _cautions(results: Mapping[str, Any]) -> list[str]:
    """Limitations that the reader must know before interpreting the results."""
    cautions = []
    if len(results["seeds"]) == 1:
        cautions.append(
            "Single training seed: the intervals cover the sampling of questions, not the variance between training "
            "seeds. Run several seeds before drawing conclusions."
        )
    small = [suite["name"] for suite in results["suites"] if suite["questions"] < FEW_QUESTIONS]
    if small:
        cautions.append(f"Fewer than {FEW_QUESTIONS} questions, so wide intervals: {', '.join(small)}.")
    for seed, adapted in first_adaptation(results["adapted"]).items():
        if missing := adapted["accounting"]["unaccounted"]:
            cautions.append(f"Seed {seed}: {missing} demonstrations are neither kept nor dropped. This is a bug.")
    trained_on = VIEWS["success_only"].provenances
    for name, by_seed in results["adapted"].items():
        empty = [str(seed) for seed, adapted in by_seed.items() if not any(map(adapted["provenance"].get, trained_on))]
        if empty and name in results["arms"]:
            cautions.append(
                f"No row was adapted for {name} (seed {', '.join(empty)}): the arm was not trained and equals the "
                "untouched target. The table of gates below shows which gates its rewrites failed."
            )
    return cautions


def _accuracy_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per group, followed by the rows of its suites if there are several."""
    rows = []
    for group in results["groups"]:
        members = [suite["name"] for suite in results["suites"] if suite["group"] == group]
        names = [("group", group)] + ([("suite", name) for name in members] if len(members) > 1 else [])
        for level, name in names:
            arms = [summary.summary_of(results, arm, name, level) for arm in results["arms"]]
            rows.append({"level": level, "name": name, "n": arms[0]["n"], "arms": arms})
    return rows


def _arm_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per arm: its description and its accuracy in every group, sorted by the mean over groups, best first."""
    rows = [
        {
            "arm": arm,
            "description": ARMS[arm].description if arm in ARMS else "",
            "groups": [summary.summary_of(results, arm, group)["accuracy"] for group in results["groups"]],
        }
        for arm in results["arms"]
    ]
    return sorted(rows, key=lambda row: -sum(accuracy["estimate"] for accuracy in row["groups"]))


def _difference_rows(results: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """One row per pair of arms and measure: the difference in every group, None where it was not measured."""
    rows = []
    for arm, against in summary.pairs(results):
        for measure in measures:
            differences = [
                summary.difference_of(results, arm, against, group, measure=measure) for group in results["groups"]
            ]
            if any(differences):
                rows.append({"arm": arm, "against": against, "measure": measure, "groups": differences})
    return rows


def _rate_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of gate and hack rates before, during and after training, and in synthesis."""
    tables = []
    titles = {
        "gates": ("Gate passed, % of rewrites", {"adapted rows": "gates"}),
        "hacks": (
            "Hack committed, % of rewrites",
            {"rows with a rejected candidate": "hacks_refused", "adapted rows": "hacks"},
        ),
    }
    for part, (title, synthesis) in titles.items():
        sources = [mapper["phases"] for mapper in first_adaptation(results["mapper"]).values()]
        columns = [[phases.get(phase, {}).get(part) or {} for phases in sources] for phase in PHASES]
        columns += [
            [adapted[field] for adapted in first_adaptation(results["adapted"]).values()]
            for field in synthesis.values()
        ]
        absent = 0.0 if part == "hacks" else None  # synthesis lists only the hacks that occurred
        names = dict.fromkeys(name for column in columns for rates in column for name in rates)
        rows = [
            (name, [mean_of_known(rates.get(name, absent) for rates in column) for column in columns]) for name in names
        ]
        never = [name for name, shares in rows if part == "hacks" and not any(shares)]
        observed = [row for row in rows if row[0] not in never]
        if rows:
            tables.append({"title": title, "synthesis": list(synthesis), "rows": observed, "never": never})
    return tables


def _adapted(seed: str, adapted: Mapping[str, Any]) -> dict[str, Any]:
    total = sum(adapted["provenance"].values())
    reasons = list(adapted["reasons"].items())
    return {
        **adapted,
        "seed": seed,
        "shares": [(name, count, count / total) for name, count in adapted["provenance"].items() if count],
        "reasons": reasons[:SHOWN_REASONS],
        "more_reasons": max(0, len(reasons) - SHOWN_REASONS),
        "quality": list(_flat(adapted["quality"] or {})),
    }


def _flat(quality: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Rows (name, value) of a nested mapping; the names of the levels are joined by colons."""
    rows = []
    for key, value in quality.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    unchanged = example["provenance"] not in ADAPTED
    first = f"demonstration, {USE[example['provenance']]}" if unchanged else "demonstration"
    sides = [
        Side(first, example["source_solution"], example.get("tokens_before") or [], example.get("alignment_before"))
    ]
    if not unchanged:
        title = f"trained on ({example['provenance']})"
        tokens = example.get("tokens_after") or []
        sides.append(Side(title, example["solution"] or "", tokens, example.get("alignment_after")))
    for rewrite in example.get("rejected", []):
        title = f"rewrite, rejected by {', '.join(rewrite['failed'])}"
        sides.append(Side(title, rewrite["text"], rewrite["tokens"], rewrite["alignment"]))
    return {**example, "sides": sides}
