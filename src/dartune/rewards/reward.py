"""The reward of a rewrite: `R(y) = form(G(y), A(y)) - P(y)`, by default `G(y) * clip(A(y) - A(s), 0, cap)`.

G is 1 if all gates pass, A the alignment score, P the sum of weighted penalties, y the rewrite and s the source. The
config names all of these parts.

A failed rewrite gets the reward of what replaces it in the data set, the original, which is 0. A fixed negative reward
for failing would make the policy collapse into the style that passes the gates most safely, at any alignment.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from dartune.answers.checker import AnswerChecker
from dartune.answers.task_families import TASKS
from dartune.config.plugins import load_part, plain_name
from dartune.config.schema import RewardConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import Engine, Sample, TokenIds, TokenStats
from dartune.errors import InputError
from dartune.gates.gate_input import GateInput, GateThresholds
from dartune.gates.registry import GATE_NAMES, Gate, find_unjudged, run_gates
from dartune.hacks.detect import detect_hacks
from dartune.rewards.alignment import SCORES, AlignmentScore, Reference, content_logprob
from dartune.rewards.content_tokens import answer_tokens
from dartune.rewards.penalties import PENALTIES, Penalty, Rewritten
from dartune.rewards.references import response_stats, with_content
from dartune.rewards.shape import FORMS, Form, gain, gain_over_fallback
from dartune.run.number_format import rounded_percent

# A row whose largest possible reward over failing is below this gives no gradient signal and is left out of the scale.
SMALLEST_STAKE = 1e-3
# Lower bound of the advantage scale, in the score's unit. In a data set in which almost nothing can be gained, a
# smaller divisor would turn noise into large steps that outweigh the KL term.
SMALLEST_SCALE = 0.05
# Below this share of rows with a possible gain, `limits` warns that adapting the data changes little.
FEW_GAINFUL = 0.5
# A threshold of the gate `follows` below this probability of the answer no longer separates sound from meaningless
# reasoning, so `limits` warns.
LAX_ANSWER_LOGPROB = math.log(0.01)
NO_STATS = TokenStats(())


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One rewrite with its reward and all parts of it.

    Args:
        ids: the tokens as training on the text sees them: the end token is the chat template's.
        logprobs: the target's log-probabilities (nats), shape (tokens,), given the question alone.
        alignment: A(y), in the score's unit.
        gain: `clip(A(y) - A(s), 0, cap)`, in the score's unit.
        reward: the form's value minus the penalties.
        answer_logprob: log-probability (nats) of the answer after the reasoning; None if it was not measured.
        judged: False if the answer check failed (timeout or crash): the reward is missing, not zero.
        gates: the verdict of every gate that applies to the task family.
        hacks: names of the hacks in the catalogue that the rewrite commits.
        accepted: whether all gates that count were passed.
        penalties: weighted deductions by name.
        sampled_logprobs: as `logprobs`, at the temperature of the sample.
        stats: the token statistics that the score read.
        surplus: the reward minus that of a failed rewrite. Only above 0 is the rewrite better than its fallback.
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

    @property
    def failed(self) -> list[str]:
        """Names of the gates that the rewrite did not pass, whether or not they count."""
        return [name for name, passed in self.gates.items() if not passed]


ALL_GATES = "all"
"""Value of `reward.gates` that stands for all built-in gates. User-defined gates can be listed after it."""


class Reward(Protocol):
    """Scores groups of samples, one group per demonstration.

    Training and synthesis use the same object, so synthesis applies the same gates as training.
    """

    target: Engine
    """The engine that scores the samples. Its FLOPs are part of the cost of training."""
    references: Mapping[str, Reference]
    """References by demonstration id."""
    scale: float
    """The typical largest gain of a row, in the reward's unit. Advantages are divided by it, so 1 is a full gain."""
    gainful_share: float
    """Share of the rows (0..1) in which a gain is possible."""

    def limits(self) -> list[str]:
        """Return warnings about this reward with this target and data, one or two sentences each."""
        ...

    def __call__(
        self, demonstrations: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> list[list[Rewrite]]:
        """Score the samples of each demonstration.

        Args:
            samples: one group per demonstration, shape (demonstrations, samples).

        Returns:
            The results in the same order and shape.
        """
        ...


class GatedReward:
    """The reward under the frozen target, made of the parts that the config names.

    Args:
        target: the frozen target, which scores the samples given the question alone.
        references: references by demonstration id.
        score: the alignment score.
        form: the reward as a function of passing and alignment.
        penalties: (name, weight, penalty) triples. They are deducted from accepted and rejected rewrites.
        gates: names of the gates that count. All gates that apply to the task family are evaluated and logged.
        own_gates: user-defined gates by name, (GateInput, GateThresholds) -> bool.
        at_temperature: also score the samples at their sampling temperature (`Rewrite.sampled_logprobs`), which needs a
            second forward pass for temperatures other than 1.
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
        # The largest possible reward over failing, for each row; an array, since there can be millions of rows.
        stakes = array("d")
        for reference in references.values():
            failed = form(False, reference.source_alignment, reference)
            stakes.append(form(True, reference.source_alignment + reference.best_gain, reference) - failed)
        # The median is over rows that can gain: zeros of the others would make the scale tiny and advantages huge.
        gainful_stakes = np.asarray(stakes)[np.asarray(stakes) > SMALLEST_STAKE]
        self.gainful_share = len(gainful_stakes) / len(stakes) if stakes else 1.0
        self.scale = max(float(np.median(gainful_stakes)), SMALLEST_SCALE) if len(gainful_stakes) else 1.0

    def limits(self) -> list[str]:
        """Return warnings about this reward with this target and data, one or two sentences each."""
        warnings = []
        if self.gainful_share < FEW_GAINFUL:
            warnings.append(
                f"Only {rounded_percent(self.gainful_share)} of the rows can gain anything: in the others the "
                "demonstration is as natural to the target as its own samples. Adapting such data changes little."
            )
        threshold = self.thresholds.answer_logprob
        if "follows" in self.gates and threshold is not None and threshold < LAX_ANSWER_LOGPROB:
            warnings.append(
                f"The gate 'follows' rejects little: it accepts answers of probability {math.exp(threshold):.1g} or "
                "more after the reasoning (reward.answer_logprob; the default is what this target reaches on its own "
                "verified samples or on the demonstrations). Wrong reasoning is left to the other gates and to the "
                "alignment score."
            )
        return warnings

    def __call__(
        self, demonstrations: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> list[list[Rewrite]]:
        """Score the samples of each demonstration; see `Reward.__call__`."""
        # All groups are scored as one flat batch of (demonstrations * samples) completions.
        demonstrated = [
            (demonstration, self._with_template_end(sample))
            for demonstration, group in zip(demonstrations, samples, strict=True)
            for sample in group
        ]
        prompts = {row.id: self.renderer.prompt_ids(row.question) for row in demonstrations}
        # The sampled tokens are scored. Tokenising the text again could merge them differently.
        pairs = [(prompts[row.id], sample.ids) for row, sample in demonstrated]
        texts = [self.renderer.decode(sample.ids) for _, sample in demonstrated]
        stats = [
            with_content(tokens, sample.ids, text, self.renderer, row.task)
            for (row, sample), text, tokens in zip(
                demonstrated, texts, response_stats(self.target, self.score, pairs), strict=True
            )
        ]
        sampled = self._score_at_temperatures(pairs, [sample.temperature for _, sample in demonstrated], stats)
        rewrites = [
            Rewritten(row, sample, text, tokens.logprobs, at_temperature)
            for (row, sample), text, tokens, at_temperature in zip(demonstrated, texts, stats, sampled, strict=True)
        ]
        inputs = [self._gate_input(rewrite) for rewrite in rewrites]
        gates = [
            verdicts | {name: run_own_gate(name, gate, item, self.thresholds) for name, gate in self.own_gates.items()}
            for item, verdicts in zip(inputs, run_gates(inputs, self.thresholds, self.checker), strict=True)
        ]
        check_failed = find_unjudged(inputs, self.checker)
        penalties = self._weighted_penalties(rewrites)
        flat = iter(map(self._scored, rewrites, stats, inputs, gates, check_failed, penalties))
        return [[next(flat) for _ in group] for group in samples]

    def _with_template_end(self, sample: Sample) -> Sample:
        """Return the sample with the chat template's end token.

        Sampling stops at several end tokens, but SFT on the text uses the template's, so that is the one to score.
        """
        if sample.finish != "stop" or sample.ids[-1] == self.renderer.end_id:
            return sample
        return replace(sample, ids=(*sample.ids[:-1], self.renderer.end_id))

    def _score_at_temperatures(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperatures: Sequence[float], stats: Sequence[TokenStats]
    ) -> list[tuple[float, ...]]:
        """Return the target's log-probabilities at the temperature of each sample, one tuple (tokens,) per sample.

        At temperature 1 these are the log-probabilities in `stats`, so only other temperatures need a forward pass.
        """
        logprobs = [tuple(tokens.logprobs) for tokens in stats]
        for temperature in sorted(set(temperatures) - {1.0}) if self.at_temperature else ():
            indices = [i for i, value in enumerate(temperatures) if value == temperature]
            scores = self.target.score([pairs[i] for i in indices], temperature)
            for i, row in zip(indices, scores, strict=True):
                logprobs[i] = tuple(row)
        return logprobs

    def _gate_input(self, rewrite: Rewritten) -> GateInput:
        demonstration = rewrite.demonstration
        task = TASKS[demonstration.task]
        positions = answer_tokens(rewrite.sample.ids, rewrite.text, self.renderer, task)
        return GateInput(
            question=demonstration.question,
            solution=demonstration.solution,
            answer=demonstration.answer,
            rewrite=rewrite.text,
            finish=rewrite.sample.finish,
            token_ids=rewrite.sample.ids,
            expected_tokens=self.references[demonstration.id].expected_tokens,
            answer_logprob=sum(rewrite.logprobs[i] for i in positions) if positions else None,
            family=task.name,
        )

    def _weighted_penalties(self, rewrites: Sequence[Rewritten]) -> list[dict[str, float]]:
        """Return the weighted deductions by name, for each rewrite."""
        columns = [
            (name, weight, penalty(rewrites, self.target, self.renderer)) for name, weight, penalty in self.penalties
        ]
        return [{name: weight * values[i] for name, weight, values in columns} for i in range(len(rewrites))]

    def _scored(
        self,
        rewrite: Rewritten,
        tokens: TokenStats,
        item: GateInput,
        gates: dict[str, bool],
        check_failed: bool,
        penalties: dict[str, float],
    ) -> Rewrite:
        reference = self.references[rewrite.demonstration.id]
        score = self.score(tokens, reference)
        # A gate that does not apply to the task family has no verdict and does not reject.
        accepted = all(gates.get(name, True) for name in self.gates)
        reward = self.form(accepted, score, reference) - sum(penalties.values())
        return Rewrite(
            text=rewrite.text,
            ids=tuple(rewrite.sample.ids),
            logprobs=tuple(rewrite.logprobs),
            alignment=score,
            gain=gain(score, reference),
            reward=reward,
            answer_logprob=item.answer_logprob,
            judged=not check_failed,
            gates=gates,
            hacks=detect_hacks(item, gates, self.thresholds),
            accepted=accepted,
            penalties=penalties,
            sampled_logprobs=tuple(rewrite.sampled_logprobs),
            stats=tokens,
            surplus=reward - self.form(False, reference.source_alignment, reference),
        )


def run_own_gate(name: str, gate: Gate, item: GateInput, thresholds: GateThresholds) -> bool:
    """Return the verdict of a user-defined gate.

    Raises:
        InputError: the gate raises an exception, or returns something other than a bool. A count or a text is more
            likely an error than a verdict, because it would be true for almost every rewrite.
    """
    try:
        verdict = gate(item, thresholds)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"reward.gates: {name} fails with {cause}; the question is {item.question[:80]!r}") from error
    if not isinstance(verdict, bool | np.bool_):
        raise InputError(f"reward.gates: {name} must return True or False, not {verdict!r}")
    return bool(verdict)


def alignment_score(config: RewardConfig) -> AlignmentScore:
    """Return the alignment score that a config names.

    Raises:
        InputError: the score does not exist.
    """
    return load_part(config.alignment, SCORES, "reward.alignment")


def build_reward(
    config: RewardConfig,
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    thresholds: GateThresholds,
    references: Mapping[str, Reference],
) -> GatedReward:
    """Build the reward that a config describes.

    Raises:
        InputError: the config names a part that does not exist.
    """
    return GatedReward(target, renderer, checker, thresholds, references, **reward_parts(config))


def reward_parts(config: RewardConfig) -> dict[str, Any]:
    """Return the score, form, penalties and gates that a config names, as keyword arguments of `GatedReward`.

    Raises:
        InputError: a part does not exist; all such parts are listed.
    """
    parts, problems = load_reward_parts(config)
    if problems:
        raise InputError("the reward cannot be used", problems)
    return parts


def load_reward_parts(config: RewardConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the parts that can be loaded, see `reward_parts`, and the problems of the others."""
    problems: list[str] = []

    def load(name: str, built_in: Mapping[str, Any], key: str) -> Any:
        try:
            return load_part(name, built_in, key)
        except InputError as error:
            problems.append(error.message)
            return None

    penalties = [(name, weight, load(name, PENALTIES, "reward.penalties")) for name, weight in config.penalties.items()]
    gates, own_gates = _gates_of(config, load, problems)
    parts = {
        "score": load(config.alignment, SCORES, "reward.alignment"),
        "form": load(config.form, FORMS, "reward.form"),
        "penalties": penalties,
        "gates": gates,
        "own_gates": own_gates,
    }
    return parts, problems


def _gates_of(
    config: RewardConfig, load: Callable[[str, Mapping[str, Any], str], Any], problems: list[str]
) -> tuple[list[str], dict[str, Gate]]:
    """Return the names of the gates that count, and the user-defined gates by name; add to `problems`.

    A user-defined gate is named after its function and must not have the name of another gate.
    """
    names: list[str] = []
    accepted_names: Any = dict.fromkeys((ALL_GATES, *GATE_NAMES))
    own_gates: dict[str, Gate] = {}
    for name in (ALL_GATES,) if config.gates is None else config.gates:
        if name == ALL_GATES:
            names += GATE_NAMES
        elif name in GATE_NAMES:
            names.append(name)
        elif gate := load(name, accepted_names, "reward.gates"):
            function_name = plain_name(name)
            if function_name in GATE_NAMES or function_name in own_gates:
                problems.append(
                    f"reward.gates: {name} has the name of another gate; rename the function {function_name!r}"
                )
                continue
            own_gates[function_name] = gate
            names.append(function_name)
    return list(dict.fromkeys(names)), own_gates
