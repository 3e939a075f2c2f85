"""The arms: ways of training the target that are compared. Each is a line; what they share is in the pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ANSWER_GATES = ("finished", "one_answer", "correct_answer")


@dataclass(frozen=True, slots=True)
class Adaptation:
    """One way of making an adapted data set.

    Args:
        trained: whether the mapper is trained by reinforcement learning; otherwise it is the mapper start.
        matched: try as many rewrites a row as training and synthesis of `dart` together do.
        reward: keys of the config's `reward` that are other than the run's.
        other_target: adapt for `target.other` instead of the target.
    """

    trained: bool = True
    matched: bool = False
    reward: Mapping[str, Any] = field(default_factory=dict)
    other_target: bool = False

    @property
    def own_probe(self) -> bool:
        """Whether the untouched target is measured apart from the run's own reward."""
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
    """One way of training the target.

    Args:
        says: what it is, for the report.
        rows: `demonstrations`, `own` (the target's verified samples), `gold` (the lab's native solutions) or an entry
            of ADAPTATIONS; None where the target is not fine-tuned.
        loss: of fine-tuning.
        low_rates: learning rates a tenth of the grid's.
        trains_as_much_as: an arm whose number of trained tokens is matched.
        budget: `tokens` or `seconds`: direct RL on the target, for what `dart` took.
        times: that budget so many times over.
        start: the arm whose model is trained on, instead of the untouched target.
        keep_original: train on the rows that stayed originals, too.
        select: train on the adapted rows with the most gain per token only, up to this share of all tokens.
        augment: train on every different rewrite of a row that was accepted, not on the best alone.
    """

    says: str
    rows: str | None = None
    loss: str = "ce"
    low_rates: bool = False
    trains_as_much_as: str | None = None
    budget: str | None = None
    times: int = 1
    start: str | None = None
    keep_original: bool = False
    select: float | None = None
    augment: bool = False

    @property
    def trained(self) -> bool:
        return bool(self.rows or self.budget)

    @property
    def view(self) -> str:
        """Which rows of the adapted data set it is trained on."""
        return "keep_original" if self.keep_original else "success_only"

    @property
    def needs(self) -> list[str]:
        """Arms that must be trained before it."""
        costs = "dart" if self.budget else None
        return [name for name in (self.trains_as_much_as, self.start, costs) if name]


ARMS: dict[str, Arm] = {
    "base": Arm("the untouched target"),
    "sft": Arm("fine-tuned on the demonstrations as they are", rows="demonstrations"),
    "sft_low_lr": Arm("the same at a tenth of the learning rates", rows="demonstrations", low_rates=True),
    "sft_tokens": Arm(
        "the demonstrations for as many trained tokens as dart", rows="demonstrations", trains_as_much_as="dart"
    ),
    "sft_dft": Arm("the demonstrations, each token weighted by its probability", rows="demonstrations", loss="dft"),
    "sft_asft": Arm("dft with a pull back to the untouched target", rows="demonstrations", loss="asft"),
    "rft": Arm("the target's own right solutions, among as many samples as dart spends", rows="own"),
    "prompt_rewriter": Arm("rewrites of the untrained mapper that pass the gates", rows="prompt_rewriter"),
    "best_of_k": Arm(
        "the best of the untrained mapper's rewrites, as many a row as dart spends altogether", rows="best_of_k"
    ),
    "dart": Arm("rewrites of the trained mapper", rows="dart"),
    "dart_dft": Arm("rewrites of the trained mapper, dft loss", rows="dart", loss="dft"),
    "dart_keep_original": Arm("dart, and the demonstration where no rewrite passed", rows="dart", keep_original=True),
    "dart_selected": Arm(
        "the rewrites of dart with the most gain per token, half of all tokens", rows="dart", select=0.5
    ),
    "dart_augmented": Arm("every different accepted rewrite of dart", rows="dart", augment=True),
    "no_anticheating": Arm("dart whose reward asks for a right answer only", rows="no_anticheating"),
    "no_alignment": Arm("dart whose reward is passing the gates", rows="no_alignment"),
    "wrong_target": Arm("rewrites adapted for another target", rows="wrong_target"),
    "grpo_tokens": Arm("direct RL on the target, as many generated tokens as dart", budget="tokens"),
    "grpo_3x_tokens": Arm("direct RL on the target, three times as many generated tokens", budget="tokens", times=3),
    "grpo_seconds": Arm("direct RL on the target, as many seconds as dart", budget="seconds"),
    "dart_then_grpo": Arm("dart, then direct RL with as many generated tokens again", budget="tokens", start="dart"),
    "gold": Arm("solutions in the target's own style: the ceiling, on the lab only", rows="gold"),
}


def in_order(arms: Iterable[str]) -> list[str]:
    """The arms, and those they need, each after what it needs; otherwise in the order given."""
    found: list[str] = []

    def add(name: str) -> None:
        for needed in ARMS[name].needs:
            add(needed)
        if name not in found:
            found.append(name)

    for name in arms:
        add(name)
    return found


def adaptations(arms: Iterable[str]) -> list[str]:
    """The adapted data sets that the arms train on."""
    return [name for name in ADAPTATIONS if any(ARMS[arm].rows == name for arm in in_order(arms))]


def tagged(stage: str, adaptation: str) -> str:
    """A stage's name: that of `dart` is plain, others have the adaptation in it."""
    return stage if adaptation == "dart" else f"{stage}-{adaptation}"
