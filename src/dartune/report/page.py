"""One self-contained HTML page of the results: no script, nothing loaded from elsewhere, all data escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from math import exp, isfinite
from pathlib import Path
from typing import Any

from dartune.arms import ARMS
from dartune.data.adapted import VIEWS
from dartune.report import summary
from dartune.report.adaptation import main_part
from dartune.report.plots import MANY_ARMS, arm_colours, draw_plots, standalone
from dartune.report.schema import validate_results
from dartune.report.shortfalls import shortfalls
from dartune.run import atomic_write_text

SURPRISE = (0.1, 0.5, 1.0, 2.0, 4.0)  # nats; bounds of the six shades of a token
SHOWN_EXAMPLES = 12
SHOWN_TOKENS = 1500
SHOWN_REASONS = 20
PHASES = ("before", "during", "after")
WORDS = {"higher": "better", "lower": "worse", "unclear": "unclear"}


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write results.json, the plots and index.html; return the page.

    Args:
        folder: of the report, made if need be; each file is replaced atomically, the page last.
        results: as built by `build_results`.

    Raises:
        InputError: `results` does not follow the schema.
    """
    results = validate_results(results)
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(results)
    # ASCII, because data may hold lone surrogates, which JSON can write and UTF-8 cannot.
    atomic_write_text(folder / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    for name, svg in plots.items():
        atomic_write_text(folder / f"{name}.svg", standalone(svg))
    page = folder / "index.html"
    atomic_write_text(page, render_page(results, plots))
    return page


def render_page(results: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The page as text; `plots` as drawn by `draw_plots`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": summary.percent,
        "points": summary.points,
        "duration": summary.duration,
        "title": summary.title,
        "number": _number,
        "operations": lambda count: f"{count:.1e}",
        "words": lambda name: str(name).replace("_", " "),
    }
    template = environment.from_string(files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        results=results,
        # The only text not escaped by the template: matplotlib escapes the labels it draws.
        plots={name: Markup(svg) for name, svg in plots.items()},
        colours=arm_colours(results["arms"]),
        words=WORDS,
        setup=summary.setup(results),
        headline=summary.headline(results),
        cautions=_cautions(results),
        shortfalls=shortfalls(results),
        accuracy=_accuracy_rows(results),
        by_arm=_arm_rows(results) if len(results["arms"]) > MANY_ARMS else [],
        differences=_difference_rows(results, ("accuracy",)),
        other_differences=_difference_rows(results, ("step_accuracy", "avg_at_k", "pass_at_k")),
        rates=_rate_tables(results),
        mapper=main_part(results["mapper"]),
        sampled=results["config"].get("evaluate", {}).get("samples"),
        break_even=summary.break_even(results),
        adapted=[_adapted(seed, adapted) for seed, adapted in main_part(results["adapted"]).items()],
        examples=[_example(example) for example in results["examples"][:SHOWN_EXAMPLES]],
        legend=_legend(),
        config=json.dumps(results["config"], indent=2, ensure_ascii=False),
    )
    # A lone surrogate is valid in JSON data but not in a UTF-8 file.
    return html.encode("utf-8", errors="replace").decode("utf-8")


def _cautions(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    cautions = []
    if len(results["seeds"]) == 1:
        cautions.append(
            "Single training seed: the intervals cover the choice of questions, not the luck of training. "
            "Run several seeds before drawing conclusions."
        )
    small = [suite["name"] for suite in results["suites"] if suite["questions"] < 50]
    if small:
        cautions.append(f"Fewer than 50 questions, so wide intervals: {', '.join(small)}.")
    for seed, adapted in main_part(results["adapted"]).items():
        if missing := adapted["accounting"]["unaccounted"]:
            cautions.append(f"Seed {seed}: {missing} demonstrations are neither kept nor dropped. This is a bug.")
    learnt = VIEWS["success_only"].provenances
    for name, by_seed in results["adapted"].items():
        none = [str(seed) for seed, adapted in by_seed.items() if not any(map(adapted["provenance"].get, learnt))]
        if none and name in results["arms"]:
            cautions.append(
                f"No row was adapted for {name} (seed {', '.join(none)}): it had nothing to train on and is the "
                "untouched target. The table of gates below says what its rewrites lack."
            )
    return cautions


def _accuracy_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per group, followed by its suites where it has several."""
    rows = []
    for group in results["groups"]:
        members = [suite["name"] for suite in results["suites"] if suite["group"] == group]
        names = [("group", group)] + ([("suite", name) for name in members] if len(members) > 1 else [])
        for level, name in names:
            arms = [summary.summary_of(results, arm, name, level) for arm in results["arms"]]
            rows.append({"level": level, "name": name, "n": arms[0]["n"], "arms": arms})
    return rows


def _arm_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per arm, what it is and its accuracy in every group; best first by the mean over the groups."""
    rows = [
        {
            "arm": arm,
            "says": ARMS[arm].says if arm in ARMS else "",
            "groups": [summary.summary_of(results, arm, group)["accuracy"] for group in results["groups"]],
        }
        for arm in results["arms"]
    ]
    return sorted(rows, key=lambda row: -sum(accuracy["estimate"] for accuracy in row["groups"]))


def _difference_rows(results: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """Per pair of arms and measure: the difference in every group, None where it was not measured."""
    rows = []
    for arm, against in summary.pairs(results):
        for measure in measures:
            found = [
                summary.difference_of(results, arm, against, group, measure=measure) for group in results["groups"]
            ]
            if any(found):
                rows.append({"arm": arm, "against": against, "measure": measure, "groups": found})
    return rows


def _rate_tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gates and hacks: rate at the start, between, at the end of training, in synthesis."""
    tables = []
    titles = {
        "gates": ("Gate passed, % of rewrites", {"adapted rows": "gates"}),
        "hacks": (
            "Hack committed, % of rewrites",
            {"rows with a refused try": "hacks_refused", "adapted rows": "hacks"},
        ),
    }
    for part, (title, synthesis) in titles.items():
        sources = [mapper["phases"] for mapper in main_part(results["mapper"]).values()]
        columns = [[phases.get(phase, {}).get(part) or {} for phases in sources] for phase in PHASES]
        columns += [
            [adapted[field] for adapted in main_part(results["adapted"]).values()] for field in synthesis.values()
        ]
        absent = 0.0 if part == "hacks" else None  # synthesis lists only the hacks that it saw
        names = dict.fromkeys(name for column in columns for rates in column for name in rates)
        rows = [(name, [_mean([rates.get(name, absent) for rates in column]) for column in columns]) for name in names]
        never = [name for name, shares in rows if part == "hacks" and not any(shares)]
        seen = [row for row in rows if row[0] not in never]
        if rows:
            tables.append({"title": title, "synthesis": list(synthesis), "rows": seen, "never": never})
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


def _flat(measured: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for key, value in measured.items():
        rows += _flat(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    # An original in data of another kind stays in the data set; no arm but dart_keep_original learns from it.
    after = "kept, not trained on" if example.get("provenance") == "original" else "trained on"
    sides = (
        ("demonstration", "source_solution", "tokens_before", "alignment_before"),
        (after, "solution", "tokens_after", "alignment_after"),
    )
    return {
        **example,
        "sides": [
            {
                "title": title,
                "text": example[text] or "",
                "tokens": _tokens(example.get(tokens) or []),
                "hidden": max(0, len(example.get(tokens) or []) - SHOWN_TOKENS),
                "alignment": example.get(alignment),
            }
            for title, text, tokens, alignment in sides
        ],
    }


def _tokens(tokens: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Tokens to show. The end token has no text of its own, yet its probability is part of the alignment."""
    shown = [_token(token) for token in tokens[:SHOWN_TOKENS]]
    if shown and not shown[-1]["text"]:
        shown[-1]["text"] = " [end]"
    return shown


def _token(token: Sequence[Any]) -> dict[str, Any]:
    """Text, shade 0-5 and log-probability of a token; no shade where it was not scored."""
    text, logprob = (*token, None, None)[:2]
    if not isinstance(logprob, (int, float)) or not isfinite(logprob):
        return {"text": str(text), "shade": None, "logprob": None}
    return {"text": str(text), "shade": sum(-logprob >= bound for bound in SURPRISE), "logprob": logprob}


def _legend() -> list[tuple[int, str]]:
    """Shade and the probabilities it stands for."""
    shares = [1.0, *(exp(-bound) for bound in SURPRISE), 0.0]
    return [(shade, f"{100 * low:.0f}-{100 * high:.0f}%") for shade, (high, low) in enumerate(pairwise(shares))]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: Any) -> str:
    """A measurement for reading: thousands separated, at most three digits after the point."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"
