"""The reward of a rewrite: `R(y) = form(G(y), A(y)) - P(y)`, by default `G(y) * clip(A(y) - A(s), 0, cap)`.

A failed rewrite is worth what the data set gets in its place, the original, so failing costs
nothing and no style is safer than its alignment: a fixed price for failure makes the policy collapse into
whatever passes the gate most safely. Gates G, alignment A, form and penalties P are parts that the config names.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from dartune.config import RewardConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.errors import InputError
from dartune.models.engine import Engine, Sample, TokenIds, TokenStats
from dartune.rewards.alignment import SCORES, AlignmentScore, Reference, content_logprob
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.content import answer_tokens
from dartune.rewards.forms import FORMS, Form, gain, gain_over_fallback
from dartune.rewards.gates import GATE_NAMES, Gate, run_gates, unjudged
from dartune.rewards.items import GateInput, GateThresholds
from dartune.rewards.penalties import PENALTIES, Penalty, Rewritten
from dartune.rewards.plugins import part
from dartune.rewards.references import response_stats, with_content
from dartune.rewards.signs import committed
from dartune.rewards.tasks import TASKS

SMALLEST_STAKE = 1e-3
"""A row in which less than this can be gained teaches nothing and does not count in the advantage scale."""
SMALLEST_SCALE = 0.05
"""Advantages are divided by no less than this (in the score's unit): a data set in which hardly anything can be gained
would otherwise turn noise into large steps that outweigh the KL term."""
FEW_GAINFUL = 0.5
LAX_ANSWER_LOGPROB = math.log(0.01)
"""A threshold of the gate `follows` below this probability of the answer tells sense from nonsense no more."""
NO_STATS = TokenStats(())


@dataclass(frozen=True, slots=True)
class Scored:
    """One rewrite and everything the reward knows of it.

    `ids` are the tokens that training on the text would see: a sample that ended with another end token has the
    template's. `logprobs` are the target's for them, per token in nats; `sampled_logprobs` the same at the temperature
    that the sample was drawn at; `stats` what the score read. `alignment` and `gain` are in the score's unit. `gates`
    has the verdict of every gate that fits the task, `accepted` says that those which count were passed; `hacks` are
    the catalogue's names for what it does wrong. Not `judged`: the answer check failed (time-out, crash), so the
    reward is missing rather than zero.
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
    hacks: tuple[str, ...] = ()
    accepted: bool = False
    penalties: dict[str, float] = field(default_factory=dict)
    sampled_logprobs: tuple[float, ...] = ()
    stats: TokenStats = NO_STATS
    surplus: float = 0.0
    """The reward beyond what the form gives a failure: only above 0 is a rewrite worth more than its fallback."""

    @property
    def failed(self) -> list[str]:
        """The gates it did not pass, by name."""
        return [name for name, passed in self.gates.items() if not passed]


ALL_GATES = "all"
"""In `reward.gates`: all built-in gates. User-defined gates can be listed after it."""


class Reward(Protocol):
    """Scores groups of samples, one group per demonstration; training and synthesis use the same object."""

    target: Engine
    """What scores the samples; its work is part of what training costs."""
    references: Mapping[str, Reference]
    """By demonstration id."""
    scale: float
    """What can be gained in a row, in the reward's unit: advantages are divided by it, so 1 is the whole way."""
    gainful: float
    """Share of the rows (0..1) in which something can be gained."""

    def limits(self) -> list[str]:
        """What this reward cannot tell with this target and these data, one sentence or two each."""

    def __call__(
        self, demonstrations: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> list[list[Scored]]:
        """Score each demonstration's samples; the order is kept."""


class GatedReward:
    """The reward that the config describes, under the frozen target.

    Args:
        score, form: how alignment is measured, and what it is worth.
        penalties: (name, weight, penalty), deducted from what passed and what failed alike.
        gates: names of the gates that count; all that fit the rows' task are measured.
        own_gates: the user's gates by name, (GateInput, GateThresholds) -> bool.
        at_temperature: also score samples at the temperature they were drawn at (`Scored.sampled_logprobs`), a second
            pass for those not drawn at 1.
    """

    def __init__(
        self,
        target: Engine,
        renderer: Renderer,
        checker: AnswerChecker,
        thresholds: GateThresholds,
        references: Mapping[str, Reference],
        *,
        score: AlignmentScore = content_logprob,
        form: Form = gain_over_fallback,
        penalties: Sequence[tuple[str, float, Penalty]] = (),
        gates: Sequence[str] = GATE_NAMES,
        own_gates: Mapping[str, Gate] | None = None,
        at_temperature: bool = True,
    ):
        self.target, self.renderer, self.checker = target, renderer, checker
        self.thresholds, self.references, self.at_temperature = thresholds, references, at_temperature
        self.score, self.form, self.penalties, self.gates = score, form, tuple(penalties), tuple(gates)
        self.own_gates = dict(own_gates or {})
        stakes = array("d")
        for one in references.values():
            failed = form(False, one.source_alignment, one)
            stakes.append(form(True, one.source_alignment + one.best_gain, one) - failed)
        paying = np.asarray(stakes)[np.asarray(stakes) > SMALLEST_STAKE]
        self.gainful = len(paying) / len(stakes) if stakes else 1.0
        self.scale = max(float(np.median(paying)), SMALLEST_SCALE) if len(paying) else 1.0

    def limits(self) -> list[str]:
        """What this reward cannot tell with this target and these data, one sentence or two each."""
        told = []
        if self.gainful < FEW_GAINFUL:
            told.append(
                f"Only {self.gainful:.0%} of the rows can gain anything: in the others the demonstration is as natural "
                "to the target as its own samples. Adapting such data changes little."
            )
        least = self.thresholds.answer_logprob
        if "follows" in self.gates and least is not None and least < LAX_ANSWER_LOGPROB:
            told.append(
                f"The gate 'follows' refuses little: it asks for an answer of probability {math.exp(least):.1g} after "
                "the reasoning (reward.answer_logprob; by default what this target reaches on its own verified samples "
                "or on the demonstrations). Wrong reasoning is left to the other gates and to alignment."
            )
        return told

    def __call__(
        self, demonstrations: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> list[list[Scored]]:
        """Score each demonstration's samples; the order is kept."""
        owners = [
            (row, self._as_trained(sample))
            for row, group in zip(demonstrations, samples, strict=True)
            for sample in group
        ]
        prompts = {row.id: self.renderer.prompt_ids(row.question) for row in demonstrations}
        pairs = [(prompts[row.id], sample.ids) for row, sample in owners]
        texts = [self.renderer.decode(sample.ids) for _, sample in owners]
        stats = [
            self._with_content(row, sample, text, tokens)
            for (row, sample), text, tokens in zip(
                owners, texts, response_stats(self.target, self.score, pairs), strict=True
            )
        ]
        sampled = self._at_their_temperatures(pairs, [sample.temperature for _, sample in owners], stats)
        rows = [
            Rewritten(row, sample, text, tokens.logprobs, at_temperature)
            for (row, sample), text, tokens, at_temperature in zip(owners, texts, stats, sampled, strict=True)
        ]
        inputs = [self._gate_input(row) for row in rows]
        gates = [
            known | {name: self._asked(name, gate, item) for name, gate in self.own_gates.items()}
            for item, known in zip(inputs, run_gates(inputs, self.thresholds, self.checker), strict=True)
        ]
        failed = unjudged(inputs, self.checker)
        deducted = self._penalties(rows)
        flat = iter(map(self._scored, rows, stats, inputs, gates, failed, deducted))
        return [[next(flat) for _ in group] for group in samples]

    def _asked(self, name: str, gate: Gate, item: GateInput) -> bool:
        """The verdict of a user's gate.

        Raises:
            InputError: the gate fails, or says something else than yes or no.
        """
        try:
            verdict = gate(item, self.thresholds)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(
                f"reward.gates: {name} fails with {what}; the question is {item.question[:80]!r}"
            ) from error
        if not isinstance(verdict, bool | np.bool_):
            raise InputError(f"reward.gates: {name} must return True or False, not {verdict!r}")
        return bool(verdict)

    def _with_content(self, row: Demonstration, sample: Sample, text: str, tokens: TokenStats) -> TokenStats:
        return with_content(tokens, sample.ids, text, self.renderer, row.task)

    def _as_trained(self, sample: Sample) -> Sample:
        """The sample with the end token that training on its text has."""
        if sample.finish != "stop" or sample.ids[-1] == self.renderer.end_id:
            return sample
        return replace(sample, ids=(*sample.ids[:-1], self.renderer.end_id))

    def _at_their_temperatures(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperatures: Sequence[float], stats: Sequence[TokenStats]
    ) -> list[tuple[float, ...]]:
        """The target's log-probabilities at the temperature that each sample was drawn at; at 1 they are known."""
        found = [tuple(tokens.logprobs) for tokens in stats]
        for temperature in sorted(set(temperatures) - {1.0}) if self.at_temperature else ():
            places = [i for i, value in enumerate(temperatures) if value == temperature]
            scores = self.target.score([pairs[i] for i in places], temperature)
            for i, row in zip(places, scores, strict=True):
                found[i] = tuple(row)
        return found

    def _gate_input(self, row: Rewritten) -> GateInput:
        task = TASKS[row.demonstration.task]
        positions = answer_tokens(row.sample.ids, row.text, self.renderer, task)
        return GateInput(
            question=row.demonstration.question,
            solution=row.demonstration.solution,
            answer=row.demonstration.answer,
            rewrite=row.text,
            finish=row.sample.finish,
            token_ids=row.sample.ids,
            expected_tokens=self.references[row.demonstration.id].expected_tokens,
            answer_logprob=sum(row.logprobs[i] for i in positions) if positions else None,
            family=task.name,
        )

    def _penalties(self, rows: Sequence[Rewritten]) -> list[dict[str, float]]:
        """Weighted deductions by name, for each row."""
        found = [(name, weight, penalty(rows, self.target, self.renderer)) for name, weight, penalty in self.penalties]
        return [{name: weight * values[i] for name, weight, values in found} for i in range(len(rows))]

    def _scored(
        self,
        row: Rewritten,
        tokens: TokenStats,
        item: GateInput,
        gates: dict[str, bool],
        failed: bool,
        penalties: dict[str, float],
    ) -> Scored:
        reference = self.references[row.demonstration.id]
        score = self.score(tokens, reference)
        accepted = all(gates.get(name, True) for name in self.gates)
        reward = self.form(accepted, score, reference) - sum(penalties.values())
        return Scored(
            text=row.text,
            ids=tuple(row.sample.ids),
            logprobs=tuple(row.logprobs),
            alignment=score,
            gain=gain(score, reference),
            reward=reward,
            answer_logprob=item.answer_logprob,
            judged=not failed,
            gates=gates,
            hacks=committed(item, gates, self.thresholds),
            accepted=accepted,
            penalties=penalties,
            sampled_logprobs=tuple(row.sampled_logprobs),
            stats=tokens,
            surplus=reward - self.form(False, reference.source_alignment, reference),
        )


def alignment_score(config: RewardConfig) -> AlignmentScore:
    return part(config.alignment, SCORES, "reward.alignment")


def build_reward(
    config: RewardConfig,
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    thresholds: GateThresholds,
    references: Mapping[str, Reference],
) -> GatedReward:
    """The reward of a config.

    Raises:
        InputError: it names a part that does not exist.
    """
    return GatedReward(target, renderer, checker, thresholds, references, **reward_parts(config))


def reward_parts(config: RewardConfig) -> dict[str, Any]:
    """The score, form, penalties and gates that a config names.

    Raises:
        InputError: a part does not exist.
    """
    gates, own_gates = _gates_of(config)
    return {
        "score": alignment_score(config),
        "form": part(config.form, FORMS, "reward.form"),
        "penalties": [(name, w, part(name, PENALTIES, "reward.penalties")) for name, w in config.penalties.items()],
        "gates": gates,
        "own_gates": own_gates,
    }


def _gates_of(config: RewardConfig) -> tuple[list[str], dict[str, Gate]]:
    """The names of the gates that count, and the user's gates by their functions' names.

    Raises:
        InputError: a gate that does not exist, or one of the user's with the name of another.
    """
    names: list[str] = []
    own: dict[str, Gate] = {}
    for name in (ALL_GATES,) if config.gates is None else config.gates:
        if name == ALL_GATES:
            names += GATE_NAMES
        elif name in GATE_NAMES:
            names.append(name)
        else:
            gate = part(name, dict.fromkeys((ALL_GATES, *GATE_NAMES)), "reward.gates")
            called = name.rpartition(":")[2]
            if called in GATE_NAMES or called in own:
                raise InputError(f"reward.gates: {name} has the name of another gate; rename the function {called!r}")
            own[called] = gate
            names.append(called)
    return list(dict.fromkeys(names)), own
