"""The results as text: sentences about the differences between arms, and the tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from dartune.errors import counted
from dartune.run import number_format
from dartune.run.number_format import duration, percent, percent_interval, points, points_interval, thousands

GAP = "  "
HEADLINE_PAIRS = (
    ("dart", "sft"),
    ("dart", "base"),
    ("sft", "base"),
    ("dart", "best_of_k"),
    ("dart", "grpo_tokens"),
    ("dart", "grpo_seconds"),
)
VERDICT_WORDS = {"higher": "better", "lower": "worse", "unclear": "unclear"}
MULTIPLE_COMPARISONS = 3
"""With more pairs of arms than this, the headline warns of chance findings."""


def summarise(results: Mapping[str, Any], page: Path | None = None, width: int = 100) -> str:
    """Return the results as plain text for a terminal.

    Args:
        results: as built by `build_results`.
        page: path of the written report, shown last.
        width: columns of the terminal; sentences are wrapped and wide tables are split.
    """
    groups = results["groups"]
    accuracy = [["accuracy %", *groups]]
    for arm in results["arms"]:
        accuracy.append([arm, *(percent_interval(summary_of(results, arm, group)["accuracy"]) for group in groups)])
    parts = [f"{results['name']}: {describe_setup(results)}", *tables(accuracy, width)]
    if k := results["config"].get("evaluate", {}).get("samples"):
        sampled = [[f"avg@{k} / pass@{k} %", *groups]]
        for arm in results["arms"]:
            summaries = (summary_of(results, arm, group) for group in groups)
            sampled.append([arm, *(" / ".join(map(percent, (row["avg_at_k"], row["pass_at_k"]))) for row in summaries)])
        parts += tables(sampled, width)
    differences = [["difference, points", *groups]]
    for arm, against in pairs(results):
        row = [_accuracy_gap(results, arm, against, group) for group in groups]
        differences.append(
            [f"{arm} - {against}", *(f"{points_interval(d)} {VERDICT_WORDS[d['verdict']]:7}" for d in row)]
        )
    if len(differences) > 1:
        parts += tables(differences, width)
    parts.append("\n".join(fill(line, width, subsequent_indent=GAP) for line in headline(results)))
    facts = [fill(line, width) for line in (*provenance_lines(results), *learning_rate_lines(results))]
    facts += cost_lines(results) + [fill(note, width) for note in results["notes"]]
    if facts:
        parts.append("\n".join(facts).strip("\n"))
    if page is not None:
        parts.append(f"report: {page}")
    return printable("\n\n".join(parts)) + "\n"


def describe_setup(results: Mapping[str, Any]) -> str:
    """Numbers of arms, seeds, questions and suites, in words."""
    questions = sum(suite["questions"] for suite in results["suites"])
    seeds = results["seeds"]
    seed_text = f"{len(seeds)} seeds" if len(seeds) > 1 else "a single seed"
    return (
        f"{counted(len(results['arms']), 'arm')}, {seed_text}, {thousands(questions)} questions in "
        f"{counted(len(results['suites']), 'suite')}"
    )


def headline(results: Mapping[str, Any]) -> list[str]:
    """Return the main results: one sentence per group for the first pair of HEADLINE_PAIRS, one per further pair."""
    compared = pairs(results)
    if not compared:
        arm = results["arms"][0]
        shares = ((group, summary_of(results, arm, group)["accuracy"]) for group in results["groups"])
        return [f"{title(group)}: {arm} answers {_describe_accuracy(share)}." for group, share in shares]
    main, *further = [pair for pair in HEADLINE_PAIRS if pair in compared] or compared[:1]
    sentences = [describe_difference(results, _accuracy_gap(results, *main, group)) for group in results["groups"]]
    sentences += [describe_pair(results, *pair) for pair in further]
    if len(compared) > MULTIPLE_COMPARISONS:
        comparisons = f"{len(compared)} pairs of arms in {counted(len(results['groups']), 'group')}"
        sentences.append(f"{comparisons} are compared: about 1 in 20 null differences will look significant.")
    return sentences


def _describe_accuracy(interval: Mapping[str, float]) -> str:
    estimate, low, high = (percent(interval[key]) for key in ("estimate", "low", "high"))
    return f"{estimate}% correctly, 95% interval {low} to {high}"


def describe_pair(results: Mapping[str, Any], arm: str, against: str) -> str:
    """One sentence with the difference between two arms in every group, and whether it is clear."""
    differences = (_accuracy_gap(results, arm, against, group) for group in results["groups"])
    parts = (f"{row['name']} {points(row['estimate'])} ({VERDICT_WORDS[row['verdict']]})" for row in differences)
    return f"{arm} against {against}, points: {', '.join(parts)}."


def describe_difference(results: Mapping[str, Any], difference: Mapping[str, Any]) -> str:
    """A difference as a sentence: better, worse, or no clear difference, with accuracies and interval."""
    arm, against, group = difference["arm"], difference["against"], difference["name"]
    ours, theirs = (percent(summary_of(results, name, group)["accuracy"]["estimate"]) for name in (arm, against))
    estimate, low, high = (points(difference[key]) for key in ("estimate", "low", "high"))
    margin = f"{estimate} points, 95% interval {low} to {high}"
    claim = {
        "higher": f"{arm} is better than {against}",
        "lower": f"{arm} is worse than {against}",
        "unclear": f"no clear difference between {arm} and {against}",
    }[difference["verdict"]]
    return f"{title(group)}: {claim}, {ours}% against {theirs}% ({margin})."


def pairs(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs (arm, against) of the measured differences."""
    return list(dict.fromkeys((row["arm"], row["against"]) for row in results["differences"]))


def summary_of(results: Mapping[str, Any], arm: str, name: str, level: str = "group") -> dict[str, Any]:
    """The summary of an arm on a group or suite."""
    key = (arm, level, name)
    return next(row for row in results["summaries"] if (row["arm"], row["level"], row["name"]) == key)


def _accuracy_gap(results: Mapping[str, Any], arm: str, against: str, group: str) -> dict[str, Any]:
    row = difference_of(results, arm, against, group)
    assert row is not None  # accuracy is measured for every compared pair in every group
    return row


def difference_of(
    results: Mapping[str, Any],
    arm: str,
    against: str,
    name: str,
    level: str = "group",
    measure: str = "accuracy",
) -> dict[str, Any] | None:
    """The difference between two arms on a group or suite; None if it was not measured."""
    key = (arm, against, measure, level, name)
    matches = (
        row
        for row in results["differences"]
        if (row["arm"], row["against"], row["measure"], row["level"], row["name"]) == key
    )
    return next(matches, None)


def provenance_lines(results: Mapping[str, Any]) -> list[str]:
    """One line per adapted data set: its rows by provenance."""
    lines = []
    for name, by_seed in results["adapted"].items():
        for seed, adapted in by_seed.items():
            counts = ", ".join(f"{count} {source}" for source, count in adapted["provenance"].items() if count)
            accounting = adapted["accounting"]
            lines.append(f"data of {name}, seed {seed}: {accounting['input']} demonstrations = {counts or 'none'}")
            if accounting["unaccounted"]:
                lines[-1] += f"; {accounting['unaccounted']} NOT ACCOUNTED FOR"
    return lines


def learning_rate_lines(results: Mapping[str, Any]) -> list[str]:
    """A line with the selected learning rates of every arm; nothing if no arm was trained."""
    chosen = [
        f"{arm} " + " ".join(str(choice["chosen"]) for choice in by_seed.values())
        for arm, by_seed in results["learning_rates"].items()
        if by_seed
    ]
    return [f"learning rate chosen on dev: {', '.join(chosen)}"] if chosen else []


def cost_lines(results: Mapping[str, Any]) -> list[str]:
    """The table of costs per arm; nothing if no costs were recorded."""
    if not results["costs"]["stages"]:
        return []
    rows = [["cost, all seeds", "time", "preparing", "FLOPs", "generated", "scored", "trained"]]
    for arm, parts in results["costs"]["arms"].items():
        total = parts["total"]
        tokens = (thousands(total[f"{kind}_tokens"]) for kind in ("generated", "scored", "trained"))
        flops = number_format.flops(total["flops"])
        rows.append([arm, duration(total["seconds"]), duration(parts["prepare"]["seconds"]), flops, *tokens])
    return ["", *_table(rows), *break_even(results), ""]


def break_even(results: Mapping[str, Any]) -> list[str]:
    """A sentence on the number of rows from which training the mapper is cheaper; nothing if there is none."""
    rows = results["costs"]["break_even_rows"]
    if rows is None:
        return []
    return [
        f"From {thousands(rows)} rows on, training the mapper costs fewer FLOPs than the additional rewrites of "
        "best of K."
    ]


def title(text: str) -> str:
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Text with control characters replaced by `?`, so that data cannot send escape sequences to the terminal."""
    return "".join(char if char == "\n" or char.isprintable() else "?" for char in text)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column is left-aligned and whose other columns are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def tables(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Format a table as text; columns beyond `width` go into further tables with the same first column."""
    widths = [max(len(row[column]) for row in rows) + len(GAP) for column in range(len(rows[0]))]
    blocks, column = [], 1
    while column < len(widths):
        end, total = column + 1, widths[0] + widths[column]
        while end < len(widths) and total + widths[end] <= width + len(GAP):
            total, end = total + widths[end], end + 1
        blocks.append("\n".join(_table([[row[0], *row[column:end]] for row in rows])))
        column = end
    return blocks
