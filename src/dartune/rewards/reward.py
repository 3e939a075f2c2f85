"""The default reward: gain over fallback, behind gates.

`R(y) = G(y) * clip(A(y) - A(s), 0, cap)`. A failed rewrite is worth what the data set gets in its
place, the original, so failing costs nothing and no style is safer than its alignment: a fixed
price for failure makes the policy collapse into whatever passes the gate most safely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample
from dartune.rewards.alignment import Reference, alignment
from dartune.rewards.gates import GateInput, GateThresholds, run_gates, unjudged
from dartune.rewards.verify import AnswerChecker, answer_span


@dataclass(frozen=True, slots=True)
class Scored:
    """One rewrite and everything the reward knows of it.

    `logprobs` are the target's, per response token in nats; `alignment` and `gain` in nats per
    token of the question's L(x). Not `judged`: the answer checker failed (time-out, crash), so the
    gates say no though nobody knows, and the reward is missing rather than zero.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    alignment: float
    gain: float
    reward: float
    answer_logprob: float | None = None
    judged: bool = True
    gates: dict[str, bool] = field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        return all(self.gates.values())

    @property
    def hacks(self) -> list[str]:
        """The gates it failed, by name."""
        return [name for name, passed in self.gates.items() if not passed]


def answer_tokens(ids: Sequence[int], text: str, renderer: Renderer) -> range:
    """Positions of the tokens that write the last final answer; empty where there is none."""
    span = answer_span(text)
    if span is None:
        return range(0)
    last = len(ids)
    while last > 0 and len(renderer.decode(ids[: last - 1])) >= span[1]:
        last -= 1
    first = last
    while first > 0 and len(renderer.decode(ids[:first])) > span[0]:
        first -= 1
    return range(first, last)


class GainOverFallback:
    """Scores samples of demonstrations under the frozen target; used in training and at synthesis alike."""

    def __init__(
        self,
        target: Engine,
        renderer: Renderer,
        checker: AnswerChecker,
        thresholds: GateThresholds,
        references: Mapping[str, Reference],
    ):
        self.target, self.renderer, self.checker = target, renderer, checker
        self.thresholds, self.references = thresholds, references

    def __call__(
        self, demonstrations: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> list[list[Scored]]:
        """Score each demonstration's samples; the order is kept."""
        pairs, owners = [], []
        for demonstration, group in zip(demonstrations, samples, strict=True):
            prompt = self.renderer.prompt_ids(demonstration.question)
            for sample in group:
                pairs.append((prompt, sample.ids))
                owners.append((demonstration, sample))
        logprobs = self.target.score(pairs)
        texts = [self.renderer.decode(sample.ids) for _, sample in owners]
        inputs = [self._gate_input(*owner, text, row) for owner, text, row in zip(owners, texts, logprobs, strict=True)]
        gates = run_gates(inputs, self.thresholds, self.checker)
        failed = unjudged(inputs, self.checker)
        flat = iter(
            self._scored(self.references[demonstration.id], sample.ids, row, item, passed, not unknown)
            for (demonstration, sample), row, item, passed, unknown in zip(
                owners, logprobs, inputs, gates, failed, strict=True
            )
        )
        return [[next(flat) for _ in group] for group in samples]

    def _gate_input(
        self, demonstration: Demonstration, sample: Sample, text: str, logprobs: Sequence[float]
    ) -> GateInput:
        positions = answer_tokens(sample.ids, text, self.renderer)
        return GateInput(
            question=demonstration.question,
            solution=demonstration.solution,
            answer=demonstration.answer,
            rewrite=text,
            finish=sample.finish,
            token_ids=sample.ids,
            expected_tokens=self.references[demonstration.id].expected_tokens,
            answer_logprob=sum(logprobs[i] for i in positions) if positions else None,
        )

    @staticmethod
    def _scored(
        reference: Reference,
        ids: Sequence[int],
        logprobs: Sequence[float],
        item: GateInput,
        gates: dict[str, bool],
        judged: bool,
    ) -> Scored:
        score = alignment(logprobs, reference.length)
        gain = max(0.0, score - reference.source_alignment)
        if reference.cap is not None:
            gain = min(gain, reference.cap)
        reward = gain if all(gates.values()) else 0.0
        return Scored(
            item.rewrite, tuple(ids), tuple(logprobs), score, gain, reward, item.answer_logprob, judged, gates
        )
