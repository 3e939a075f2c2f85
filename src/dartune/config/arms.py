"""Arms: the training methods that a run compares, one table entry each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dartune.config.plugins import Registry

ANSWER_GATES = ("finished", "one_answer", "correct_answer")
"""Gates that check the final answer and nothing else; the arm no_anticheating has only these."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """A method of producing an adapted data set.

    Args:
        trained: whether the mapper is trained by reinforcement learning; if not, the initial mapper is used.
        matched: sample as many rewrites per row as `dart` samples in training and synthesis together.
        reward: keys of the config's `reward` section that replace the run's values.
        other_target: adapt to `target.other` instead of the target.
    """

    trained: bool = True
    matched: bool = False
    reward: Mapping[str, Any] = field(default_factory=dict)
    other_target: bool = False

    @property
    def own_probe(self) -> bool:
        """Whether this adaptation needs its own probe, because its reward or its target differs from the run's."""
        return bool(self.reward) or self.other_target


ADAPTATIONS: dict[str, Adaptation] = {
    "dart": Adaptation(),
    "no_anticheating": Adaptation(reward={"gates": ANSWER_GATES, "penalties": {}}),
    "no_alignment": Adaptation(reward={"alignment": "no_alignment", "form": "passes"}),
    "prompt_rewriter": Adaptation(trained=False),
    "best_of_k": Adaptation(trained=False, matched=True),
    "wrong_target": Adaptation(other_target=True),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """A method of training the target.

    Args:
        description: for the help, the report and the data card.
        rows: training data: `demonstrations`, `own` (the target's verified samples), `greedy` (greedy rewrites of the
            initial mapper), `gold` (the lab's native solutions) or a key of ADAPTATIONS; None if the target is not
            fine-tuned on rows.
        loss: fine-tuning loss: `ce`, `dft`, `asft` or `stm` (`train/losses.py`).
        low_rates: use a tenth of the learning rates in the grid.
        share: fraction of the steps of fine-tuning, and of the samples of `own` rows.
        trains_as_much_as: arm whose number of trained tokens is matched.
        gains_as_much_as: arm whose dev accuracy ends the training, once it is reached.
        teacher: on-policy distillation from the untouched target (`target`) or the trained mapper (`mapper`), which
            read the demonstration; None for no distillation.
        teacher_update: share of the trained weights that the teacher takes over after every step (a moving average);
            0 leaves the teacher as it is.
        budget: `tokens` or `seconds`: direct RL on the target, limited to what `dart` used; None for no direct RL.
        times: factor of that budget.
        start: arm whose model is the initial model; None for the target itself.
        renewed: the rows are made anew for the initial model of this arm.
        keep_original: also train on the rows that kept their demonstration.
        select: train only on the adapted rows with the largest gain per token, up to this fraction of all tokens.
        augment: train on all distinct accepted rewrites of a row, not only on the best one.
        group: one of `GROUPS`.
    """

    description: str
    rows: str | None = None
    loss: Literal["ce", "dft", "asft", "stm"] = "ce"
    low_rates: bool = False
    share: float = 1.0
    trains_as_much_as: str | None = None
    gains_as_much_as: str | None = None
    teacher: Literal["target", "mapper"] | None = None
    teacher_update: float = 0.0
    budget: str | None = None
    times: int = 1
    start: str | None = None
    renewed: bool = False
    keep_original: bool = False
    select: float | None = None
    augment: bool = False
    group: str = "baseline"

    @property
    def trained(self) -> bool:
        """Whether the arm trains the target at all."""
        return bool(self.rows or self.budget or self.teacher)

    @property
    def adaptation(self) -> str | None:
        """The adaptation whose mapper or data set the arm uses; None if it uses none."""
        return "dart" if self.teacher == "mapper" else self.rows if self.rows in ADAPTATIONS else None

    @property
    def needs_probe(self) -> bool:
        """Whether the arm uses the probe of `dart` though it may not use its data: thresholds or worked examples."""
        return self.rows in ("own", "greedy") or self.teacher is not None

    @property
    def view(self) -> str:
        """Name of the view (`data/adapted_dataset.py`) of the adapted data set that the arm is trained on."""
        return "keep_original" if self.keep_original else "success_only"

    @property
    def needs(self) -> list[str]:
        """Arms that must be trained first."""
        budget_arm = "dart" if self.budget else None
        needed = (self.trains_as_much_as, self.gains_as_much_as, self.start, budget_arm)
        return list(dict.fromkeys(name for name in needed if name))


BUILT_IN: dict[str, Arm] = {
    "base": Arm("the target without fine-tuning", group="core"),
    "sft": Arm("fine-tuning on the demonstrations", rows="demonstrations", group="core"),
    "best_of_k": Arm(
        "fine-tuning on the best rewrites of the untrained mapper, from as many samples as dart",
        rows="best_of_k",
        group="core",
    ),
    "dart": Arm("fine-tuning on rewrites of the trained mapper", rows="dart", group="core"),
    "grpo_tokens": Arm("direct RL on the target with as many generated tokens as dart", budget="tokens", group="core"),
    "sft_low_lr": Arm("sft with a tenth of the learning rates", rows="demonstrations", low_rates=True),
    "sft_tokens": Arm("sft with as many trained tokens as dart", rows="demonstrations", trains_as_much_as="dart"),
    "sft_dft": Arm("sft with the DFT loss: tokens weighted by their probability", rows="demonstrations", loss="dft"),
    "sft_asft": Arm("sft with the ASFT loss: DFT plus a KL penalty to the target", rows="demonstrations", loss="asft"),
    "sft_stm": Arm(
        "sft without the tokens whose perplexity to the target exceeds 2.5", rows="demonstrations", loss="stm"
    ),
    "sft_matched": Arm(
        "sft until its dev accuracy reaches that of dart", rows="demonstrations", gains_as_much_as="dart"
    ),
    "sft_on_mapper_start": Arm("fine-tuning on greedy rewrites of the untrained mapper, without gates", rows="greedy"),
    "sdft": Arm("self-distillation: the target, shown the demonstration, teaches itself", teacher="target"),
    "opd_from_mapper": Arm("on-policy distillation from the trained mapper", teacher="mapper"),
    "rft": Arm("fine-tuning on the target's own correct solutions, from as many samples as dart", rows="own"),
    "rft_half": Arm("rft with half of its samples and steps", rows="own", share=0.5),
    "rft_iterated": Arm(
        "rft_half, then as much again on samples of that model", rows="own", share=0.5, start="rft_half", renewed=True
    ),
    "prompt_rewriter": Arm("fine-tuning on accepted rewrites of the untrained mapper", rows="prompt_rewriter"),
    "grpo_3x_tokens": Arm("direct RL on the target with three times as many tokens as dart", budget="tokens", times=3),
    "grpo_seconds": Arm("direct RL on the target for as many seconds as dart", budget="seconds"),
    "gold": Arm("fine-tuning on solutions in the target's own style; an upper bound, lab only", rows="gold"),
    "dart_dft": Arm("dart with the DFT loss", rows="dart", loss="dft", group="ablation"),
    "dart_keep_original": Arm(
        "dart, plus the demonstrations of rows without an accepted rewrite",
        rows="dart",
        keep_original=True,
        group="ablation",
    ),
    "dart_selected": Arm(
        "dart on the rewrites with the largest gain per token, half of all tokens",
        rows="dart",
        select=0.5,
        group="ablation",
    ),
    "dart_augmented": Arm(
        "dart on all distinct accepted rewrites of a row", rows="dart", augment=True, group="ablation"
    ),
    "no_anticheating": Arm(
        "dart with the answer gates only and without penalties", rows="no_anticheating", group="ablation"
    ),
    "no_alignment": Arm(
        "dart with a reward of 1 for passing the gates, without alignment", rows="no_alignment", group="ablation"
    ),
    "wrong_target": Arm("dart with rewrites adapted to another target", rows="wrong_target", group="ablation"),
    "dart_half": Arm("dart with half of its steps", rows="dart", share=0.5, group="ablation"),
    "dart_refreshed": Arm(
        "dart_half, then as many steps on new rewrites, selected for that model",
        rows="dart",
        share=0.5,
        start="dart_half",
        renewed=True,
        group="ablation",
    ),
    "dart_then_grpo": Arm(
        "dart, then direct RL with as many generated tokens again", budget="tokens", start="dart", group="ablation"
    ),
}
ARMS: Registry[Arm] = Registry(BUILT_IN, "arms", Arm)
"""The arms by name. A user-defined arm is named `module:name`, where `name` is an `Arm`."""
GROUPS = ("core", "baseline", "ablation")
"""The order in which help and report show the arms: what a run should have, alternatives, variants of dart."""


def by_group(arms: Iterable[str]) -> list[str]:
    """Return the arms with the core ones first; otherwise in the given order."""
    return sorted(arms, key=lambda name: GROUPS.index(ARMS[name].group))


def with_dependencies(arms: Iterable[str]) -> list[str]:
    """Return the arms and the arms that they need, in topological order; otherwise in the given order."""
    ordered: list[str] = []

    def add(name: str) -> None:
        for needed in ARMS[name].needs:
            add(needed)
        if name not in ordered:
            ordered.append(name)

    for name in arms:
        add(name)
    return ordered


def adaptations(arms: Iterable[str]) -> list[str]:
    """Return the names of the adapted data sets that the arms train on."""
    return [name for name in ADAPTATIONS if any(ARMS[arm].adaptation == name for arm in with_dependencies(arms))]


def adaptation_stage(stage: str, adaptation: str) -> str:
    """Return the name of an adaptation's stage: the plain name for `dart`, else with the adaptation as a suffix."""
    return stage if adaptation == "dart" else f"{stage}-{adaptation}"
