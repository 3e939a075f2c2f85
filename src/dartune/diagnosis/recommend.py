"""What to do with the data, from the figures of a diagnosis: rules with the source of every threshold.

The rules are tried in order; the first that applies decides. docs/diagnosis.md says how often they were right on cells
that they were not fitted to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dartune.diagnosis.findings import Findings
from dartune.run.number_format import decimals, rounded_percent, thousands

MANY_CUT, FEW_CHECKABLE, FEW_FINISHED = 0.3, 0.5, 0.5
"""Beyond these shares the rows cannot be judged; they are not fitted to results."""


@dataclass(frozen=True)
class Thresholds:
    """Where the rules change; each with what it was set by (docs/diagnosis.md).

    Args:
        few_rows: up to here best-of-K is ahead of a trained mapper. Lab: ahead by 3.3 points at 100 rows, behind at
            300.
        saturated: share of the possible gain that the best of eight untrained rewrites reach. Above, training the
            mapper added nothing (SmolLM2, taught mapper); below, 12 to 30 points (lab).
        few_gainful: share of the rows that can gain. Below, adapted data were not better than the demonstrations (lab,
            an expert who writes in the target's dialect).
        few_accepted: share of the rows with an accepted rewrite among eight. Below, nearly all groups of a training
            step have the same reward, and no gradient.
        solved: pass@8 from which direct RL has rewards on most questions.
        many_masked: share of masked tokens. `sft_stm` lost accuracy where it masked 60% (SmolLM2, prefix equations).
    """

    few_rows: int = 200
    saturated: float = 0.9
    few_gainful: float = 0.5
    few_accepted: float = 0.1
    solved: float = 0.5
    many_masked: float = 0.4


DEFAULTS = Thresholds()


@dataclass(frozen=True)
class Option:
    """Something to do with the data.

    Args:
        title: a short phrase.
        arms: the arms to run, as a comparison that shows whether it helped.
    """

    title: str
    arms: tuple[str, ...]


OPTIONS = {
    "fix": Option("fix something first", ()),
    "leave": Option("leave the data as they are", ("base", "sft")),
    "low_rate": Option("plain SFT at a low learning rate", ("base", "sft", "sft_low_lr")),
    "mask": Option("mask unlikely tokens", ("base", "sft", "sft_stm")),
    "best_of_k": Option("best-of-K rewrites of the untrained mapper", ("base", "sft", "best_of_k")),
    "mapper": Option("train a mapper", ("base", "sft", "best_of_k", "dart")),
    "direct_rl": Option("direct RL on the target", ("base", "sft", "grpo_tokens")),
}


@dataclass(frozen=True)
class Recommendation:
    """An option with its reason, and the settings to change first (config keys with advice), if there are any."""

    option: str
    reason: str
    advice: tuple[str, ...] = ()


def recommend(findings: Findings, thresholds: Thresholds = DEFAULTS) -> Recommendation:
    """Return what the figures speak for."""
    for rule in RULES:
        if recommendation := rule(findings, thresholds):
            return recommendation
    return Recommendation(
        "mapper",
        f"The demonstrations are unnatural to the target, {rounded_percent(findings.rows_accepted)} of the rows have "
        f"an accepted rewrite among {findings.samples}, and the best of them reach "
        f"{rounded_percent(findings.gain_of_best)} of the possible gain: there is something to learn, and the mapper "
        "gets rewards to learn from.",
    )


def _unusable(findings: Findings, _: Thresholds) -> Recommendation | None:
    advice = []
    if findings.checkable < FEW_CHECKABLE:
        advice.append(
            f"{rounded_percent(1 - findings.checkable)} of the rows have no answer that can be checked: add a column "
            "`answer`, or set data.task or data.columns"
        )
    if findings.own_finished < FEW_FINISHED:
        advice.append(
            f"only {rounded_percent(findings.own_finished)} of the target's own solutions end without a loop: raise "
            "mapper.max_new_tokens, lower reward.own_temperature, or check the chat template of the target"
        )
    if findings.rewrites_cut > MANY_CUT:
        advice.append(
            f"{rounded_percent(findings.rewrites_cut)} of the rewrites are cut: raise mapper.max_new_tokens or lower "
            "mapper.temperature"
        )
    if findings.too_long > MANY_CUT:
        advice.append(
            f"{rounded_percent(findings.too_long)} of the demonstrations are longer than mapper.max_new_tokens: "
            "raise it"
        )
    return Recommendation("fix", "The rows cannot be judged as they are.", tuple(advice)) if advice else None


def _natural(findings: Findings, thresholds: Thresholds) -> Recommendation | None:
    if findings.gainful >= thresholds.few_gainful:
        return None
    return Recommendation(
        "leave",
        f"In {rounded_percent(1 - findings.gainful)} of the rows the demonstration is at least as natural to the "
        f"target as the median of its own solutions (alignment {decimals(findings.alignment, 2)}, own "
        f"{decimals(findings.own_alignment, 2)}): rewriting has little to gain.",
    )


def _nothing_accepted(findings: Findings, thresholds: Thresholds) -> Recommendation | None:
    """No rewrites to learn from: what is left without the mapper, and how to get a better one."""
    if findings.rows_accepted >= thresholds.few_accepted:
        return None
    gates = ", ".join(f"{name} {rounded_percent(share)}" for name, share in list(findings.failed_gates.items())[:3])
    reason = (
        f"Only {rounded_percent(findings.rows_accepted)} of the rows have an accepted rewrite among "
        f"{findings.samples} (most frequent failures: {gates}): training the mapper would have no rewards."
    )
    advice = (
        "for a mapper that can be trained: a larger model of the target's family as mapper.path, mapper.format_steps, "
        "mapper.examples, a lower mapper.temperature, or another mapper.prompt",
    )
    if findings.pass_at_k is not None and findings.pass_at_k >= thresholds.solved:
        solved = (
            f" The target itself solves {rounded_percent(findings.pass_at_k)} of the questions with one of "
            f"{findings.samples} samples."
        )
        return Recommendation("direct_rl", reason + solved, advice)
    if findings.masked <= thresholds.many_masked:
        masked = f" {rounded_percent(findings.masked)} of the tokens have a perplexity above 2.5 and would be masked."
        return Recommendation("mask", reason + masked, advice)
    return Recommendation("low_rate", reason, advice)


def _few_rows(findings: Findings, thresholds: Thresholds) -> Recommendation | None:
    if findings.total_rows > thresholds.few_rows:
        return None
    return Recommendation(
        "best_of_k",
        f"With {thousands(findings.total_rows)} rows, sampling more rewrites per row is as good as training the "
        "mapper, and simpler.",
    )


def _saturated(findings: Findings, thresholds: Thresholds) -> Recommendation | None:
    if findings.gain_of_best < thresholds.saturated:
        return None
    return Recommendation(
        "best_of_k",
        f"The best of {findings.samples} untrained rewrites reach {rounded_percent(findings.gain_of_best)} of the "
        "possible gain: training the mapper has little to add.",
    )


RULES: tuple[Callable[[Findings, Thresholds], Recommendation | None], ...] = (
    _unusable,
    _natural,
    _nothing_accepted,
    _few_rows,
    _saturated,
)
