"""The results in words: sentences that follow the sign and the interval, and the table a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

GAP = "  "
HEADLINE_PAIRS = (
    ("dart", "sft"),
    ("dart", "base"),
    ("sft", "base"),
    ("dart", "best_of_k"),
    ("dart", "grpo_tokens"),
    ("dart", "grpo_seconds"),
)
MANY_PAIRS = 3


def summarise(results: Mapping[str, Any], page: Path | None = None, width: int = 100) -> str:
    """Plain text for a terminal; sentences are wrapped, wide tables split, at `width` columns.

    Args:
        results: as built by `build_results`.
        page: path of the written report, shown last.
    """
    groups = results["groups"]
    accuracy = [["accuracy %", *groups]]
    for arm in results["arms"]:
        accuracy.append([arm, *(percent_interval(summary_of(results, arm, group)["accuracy"]) for group in groups)])
    parts = [f"{results['name']}: {setup(results)}", *tables(accuracy, width)]
    if k := results["config"].get("evaluate", {}).get("samples"):
        sampled = [[f"avg@{k} / pass@{k} %", *groups]]
        for arm in results["arms"]:
            known = (summary_of(results, arm, group) for group in groups)
            sampled.append([arm, *(" / ".join(map(share, (one["avg_at_k"], one["pass_at_k"]))) for one in known)])
        parts += tables(sampled, width)
    differences = [["difference, points", *groups]]
    for arm, against in pairs(results):
        row = [difference_of(results, arm, against, group) for group in groups]
        differences.append([f"{arm} - {against}", *(f"{points_interval(d)} {d['verdict']:7}" for d in row)])
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


def setup(results: Mapping[str, Any]) -> str:
    """What was compared: arms, seeds, questions."""
    questions = sum(suite["questions"] for suite in results["suites"])
    seeds = results["seeds"]
    runs = f"{len(seeds)} seeds" if len(seeds) > 1 else "a single seed"
    return (
        f"{counted(len(results['arms']), 'arm')}, {runs}, {questions:,} questions in "
        f"{counted(len(results['suites']), 'suite')}"
    )


def headline(results: Mapping[str, Any]) -> list[str]:
    """The main result as measured: a sentence per group for the first headline pair, one per further pair."""
    compared = pairs(results)
    if not compared:
        arm = results["arms"][0]
        shares = ((group, summary_of(results, arm, group)["accuracy"]) for group in results["groups"])
        return [f"{title(group)}: {arm} answers {_share_in_words(share)}." for group, share in shares]
    main, *others = [pair for pair in HEADLINE_PAIRS if pair in compared] or compared[:1]
    sentences = [sentence(results, difference_of(results, *main, group)) for group in results["groups"]]
    sentences += [overview(results, *pair) for pair in others]
    if len(compared) > MANY_PAIRS:
        found = f"{len(compared)} pairs of arms in {counted(len(results['groups']), 'group')}"
        sentences.append(f"{found}: of twenty differences that are none, about one looks clear.")
    return sentences


def _share_in_words(interval: Mapping[str, float]) -> str:
    estimate, low, high = (percent(interval[key]) for key in ("estimate", "low", "high"))
    return f"{estimate}% correctly, 95% interval {low} to {high}"


def overview(results: Mapping[str, Any], arm: str, against: str) -> str:
    """One pair of arms over all groups: where it is better, worse, or not told apart."""
    words = {"higher": "better", "lower": "worse", "unclear": "unclear"}
    found = (difference_of(results, arm, against, group) for group in results["groups"])
    parts = (f"{gap['name']} {points(gap['estimate'])} ({words[gap['verdict']]})" for gap in found)
    return f"{arm} against {against}, points: {', '.join(parts)}."


def sentence(results: Mapping[str, Any], difference: Mapping[str, Any]) -> str:
    """A difference in words: better, worse, or not told apart by these questions."""
    arm, against, group = difference["arm"], difference["against"], difference["name"]
    ours, theirs = (percent(summary_of(results, name, group)["accuracy"]["estimate"]) for name in (arm, against))
    estimate, low, high = (points(difference[key]) for key in ("estimate", "low", "high"))
    by = f"{estimate} points, 95% interval {low} to {high}"
    claim = {
        "higher": f"{arm} is better than {against}",
        "lower": f"{arm} is worse than {against}",
        "unclear": f"no clear difference between {arm} and {against}",
    }[difference["verdict"]]
    return f"{title(group)}: {claim}, {ours}% against {theirs}% ({by})."


def pairs(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["arm"], row["against"]) for row in results["differences"]))


def summary_of(results: Mapping[str, Any], arm: str, name: str, level: str = "group") -> dict[str, Any]:
    key = (arm, level, name)
    return next(row for row in results["summaries"] if (row["arm"], row["level"], row["name"]) == key)


def difference_of(
    results: Mapping[str, Any],
    arm: str,
    against: str,
    name: str,
    level: str = "group",
    measure: str = "accuracy",
) -> dict[str, Any] | None:
    """The difference asked for; None where it was not measured."""
    key = (arm, against, measure, level, name)
    found = (
        row
        for row in results["differences"]
        if (row["arm"], row["against"], row["measure"], row["level"], row["name"]) == key
    )
    return next(found, None)


def provenance_lines(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, by_seed in results["adapted"].items():
        for seed, adapted in by_seed.items():
            counts = ", ".join(f"{count} {source}" for source, count in adapted["provenance"].items() if count)
            account = adapted["accounting"]
            lines.append(f"data of {name}, seed {seed}: {account['input']} demonstrations = {counts or 'none'}")
            if account["unaccounted"]:
                lines[-1] += f"; {account['unaccounted']} NOT ACCOUNTED FOR"
    return lines


def learning_rate_lines(results: Mapping[str, Any]) -> list[str]:
    chosen = [
        f"{arm} " + " ".join(str(choice["chosen"]) for choice in by_seed.values())
        for arm, by_seed in results["learning_rates"].items()
        if by_seed
    ]
    return [f"learning rate chosen on dev: {', '.join(chosen)}"] if chosen else []


def cost_lines(results: Mapping[str, Any]) -> list[str]:
    if not results["costs"]["stages"]:
        return []
    rows = [["cost, all seeds", "time", "preparing", "operations", "generated", "scored", "trained"]]
    for arm, parts in results["costs"]["arms"].items():
        total = parts["total"]
        tokens = (f"{total[f'{kind}_tokens']:,.0f}" for kind in ("generated", "scored", "trained"))
        spent = f"{total['flops']:.1e}"
        rows.append([arm, duration(total["seconds"]), duration(parts["prepare"]["seconds"]), spent, *tokens])
    return ["", *_table(rows), *break_even(results), ""]


def break_even(results: Mapping[str, Any]) -> list[str]:
    rows = results["costs"]["break_even_rows"]
    if rows is None:
        return []
    return [f"In operations, the mapper's training is paid for from {rows:,.0f} rows on, against best of K."]


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def percent_interval(interval: Mapping[str, float]) -> str:
    return f"{percent(interval['estimate'])} [{percent(interval['low'])}, {percent(interval['high'])}]"


def points_interval(interval: Mapping[str, float]) -> str:
    return f"{points(interval['estimate'])} [{points(interval['low'])}, {points(interval['high'])}]"


def points(share: float) -> str:
    """A difference in percentage points, with its sign and no negative zero."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def title(text: str) -> str:
    return text[:1].upper() + text[1:]


def printable(text: str) -> str:
    """Text without control characters: data must not steer the terminal."""
    return "".join(char if char == "\n" or char.isprintable() else "?" for char in text)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """First column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def tables(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table as text, its columns split over several tables where `width` asks for it."""
    widths = [max(len(row[column]) for row in rows) + len(GAP) for column in range(len(rows[0]))]
    blocks, column = [], 1
    while column < len(widths):
        end, used = column + 1, widths[0] + widths[column]
        while end < len(widths) and used + widths[end] <= width + len(GAP):
            used, end = used + widths[end], end + 1
        blocks.append("\n".join(_table([[row[0], *row[column:end]] for row in rows])))
        column = end
    return blocks
