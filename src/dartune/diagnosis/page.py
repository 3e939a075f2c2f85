"""The page and the text of a diagnosis."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dartune.diagnosis.findings import Findings
from dartune.diagnosis.measure import MeasuredRow
from dartune.diagnosis.recommend import OPTIONS, Recommendation
from dartune.planning.estimate import Estimate
from dartune.report.plots import draw_distributions
from dartune.report.rewrite_examples import tokens_with_logprobs
from dartune.report.templates import Side, render, shade_legend
from dartune.run.files import atomic_write_text
from dartune.run.number_format import (
    MISSING,
    decimals,
    estimated_duration,
    gigabytes,
    percent,
    rounded_percent,
    significant,
    thousands,
)

SHOWN_ROWS = 10
"""Rows that the page shows with a rewrite."""


def figures(findings: Findings) -> dict[str, list[tuple[str, str]]]:
    """Return the figures as text: heading -> (name, value) pairs."""
    k = findings.samples
    return {
        "Demonstrations": [
            ("alignment, nats per token (median)", decimals(findings.alignment, 2)),
            ("alignment of the target's own solutions (median)", decimals(findings.own_alignment, 2)),
            ("natural: at least the 10th percentile of own solutions, %", percent(findings.natural)),
            ("rows that can gain, %", percent(findings.gainful)),
            ("possible gain, nats per token (mean)", decimals(findings.possible_gain, 2)),
            ("tokens with a perplexity above 2.5, %", percent(findings.masked)),
            ("length, tokens (median)", significant(findings.solution_tokens)),
            ("longer than mapper.max_new_tokens, %", percent(findings.too_long)),
            ("rows with an answer, %", percent(findings.checkable)),
        ],
        "Target": [
            ("pass@1, %", percent(findings.pass_at_1)),
            (f"pass@{k}, %", percent(findings.pass_at_k)),
            ("solutions that end without a loop, %", percent(findings.own_finished)),
            ("length, tokens (median)", significant(findings.own_tokens)),
        ],
        "Rewrites of the untrained mapper": [
            ("accepted by all gates, %", percent(findings.accepted)),
            (f"rows with an accepted rewrite among {k}, %", percent(findings.rows_accepted)),
            ("share of the possible gain, one rewrite, %", percent(findings.gain_of_one)),
            (f"share of the possible gain, best of {k}, %", percent(findings.gain_of_best)),
            ("different texts among the accepted rewrites of a row, %", percent(findings.distinct)),
            ("cut at mapper.max_new_tokens, %", percent(findings.rewrites_cut)),
            ("length, tokens (median)", significant(findings.rewrite_tokens)),
        ],
    }


def cost_rows(costs: Mapping[str, Estimate]) -> list[tuple[str, ...]]:
    """Return a row per option: title, arms, time, tokens generated and trained on, memory."""
    return [
        (
            OPTIONS[name].title,
            ", ".join(OPTIONS[name].arms),
            estimated_duration(cost.total["seconds"]),
            thousands(cost.total["generated"]),
            thousands(cost.total["trained"]),
            gigabytes(cost.memory) if cost.memory else MISSING,
        )
        for name, cost in costs.items()
    ]


def diagnosis_text(
    findings: Findings,
    recommendation: Recommendation,
    limits: Sequence[str],
    costs: Mapping[str, Estimate],
    command: Sequence[str],
    page: Path,
) -> str:
    """Return the diagnosis for the terminal.

    Args:
        limits: warnings about the reward with this target and data.
        costs: option -> what a run of its arms costs.
        command: arguments of the `dartune run` that follows the recommendation.
    """
    lines = [
        f"{findings.rows} of {thousands(findings.total_rows)} rows measured.",
        "",
        f"Recommendation: {OPTIONS[recommendation.option].title}.",
        f"  {recommendation.reason}",
        *(f"  - {advice}" for advice in recommendation.advice),
    ]
    if OPTIONS[recommendation.option].arms:
        lines += ["  To run and compare it:", f"  dartune run {shlex.join(command)}"]
    lines += ["", *(f"warning: {limit}" for limit in limits)]
    lines += ["Estimated cost of each option, on this machine"]
    lines += [
        f"  {title:<42} {time:>12}, {generated} tokens generated, {trained} trained on, {memory}"
        for title, _, time, generated, trained, memory in cost_rows(costs)
    ]
    for heading, pairs in figures(findings).items():
        lines += [heading, *(f"  {name:<58} {value:>8}" for name, value in pairs)]
    for heading, shares in (("Failed gates", findings.failed_gates), ("Hacks", findings.hacks)):
        if shares:
            shown = ", ".join(f"{name} {rounded_percent(share)}" for name, share in shares.items())
            lines.append(f"{heading}, share of the rewrites: {shown}")
    lines += ["Least natural tokens of the demonstrations:"]
    lines += [
        f"  {token.logprob:7.2f}  {token.row}: {' '.join(token.before.split())} [{token.token.strip()}]"
        for token in findings.least_natural_tokens
    ]
    return "\n".join([*lines, "", f"Page: {page}"])


def write_page(
    folder: Path,
    name: str,
    findings: Findings,
    recommendation: Recommendation,
    limits: Sequence[str],
    costs: Mapping[str, Estimate],
    rows: Sequence[MeasuredRow],
    command: Sequence[str],
    decode: Callable[[Sequence[int]], str],
) -> Path:
    """Write `diagnosis.json` and `index.html` into `folder`; return the path of the page."""
    from markupsafe import Markup

    folder.mkdir(parents=True, exist_ok=True)
    own = [value for row in rows for value in row["own_alignments"]]
    samples = {"demonstrations": [row["alignment"] for row in rows]} | ({"target's own solutions": own} if own else {})
    best = [item["alignment"] for row in rows for item in row["rewrites"] if item["accepted"]]
    samples |= {"accepted rewrites": best} if best else {}
    plot = draw_distributions(samples, "alignment", "alignment, nats per token (0: certain)", "Alignment, histogram")
    option = OPTIONS[recommendation.option]
    html = render(
        "diagnosis.html.j2",
        name=name,
        findings=findings,
        figures=figures(findings),
        option=option,
        recommendation=recommendation,
        limits=limits,
        costs=cost_rows(costs),
        command=f"dartune run {shlex.join(command)}" if option.arms else "",
        plot=Markup(plot),
        examples=[_example(row, decode) for row in rows[:SHOWN_ROWS]],
        legend=shade_legend(),
    )
    record: dict[str, Any] = asdict(findings) | {
        "recommendation": {"title": option.title, "arms": option.arms} | asdict(recommendation),
        "limits": list(limits),
        "costs": {name: cost.total | {"memory": cost.memory} for name, cost in costs.items()},
    }
    atomic_write_text(folder / "diagnosis.json", json.dumps(record, indent=1) + "\n")
    atomic_write_text(folder / "index.html", html)
    return folder / "index.html"


def _example(row: MeasuredRow, decode: Callable[[Sequence[int]], str]) -> Mapping[str, Any]:
    """A demonstration beside its best rewrite: the accepted one with the highest reward, else the most natural one."""
    best = max(row["rewrites"], key=lambda item: (item["accepted"], item["reward"], item["alignment"]))
    verdict = "accepted" if best["accepted"] else f"rejected by {', '.join(best['failed'])}"
    return {
        "id": row["id"],
        "question": row["question"],
        "reason": "",
        "sides": [
            Side(
                "demonstration",
                row["solution"],
                tokens_with_logprobs(decode, row["tokens"], row["logprobs"]),
                row["alignment"],
            ),
            Side(
                f"best of {len(row['rewrites'])} rewrites, {verdict}",
                best["text"],
                tokens_with_logprobs(decode, best["ids"], best["logprobs"]),
                best["alignment"],
            ),
        ],
    }
