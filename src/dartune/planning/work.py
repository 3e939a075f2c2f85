"""The work of every stage of a run in tokens, from the config and the lengths of texts, before anything is computed.

What a stage generates, scores and trains on follows from the config, up to the lengths of the texts that models write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dartune.config.arm_config import learning_rates, samples_per_row
from dartune.config.arms import ADAPTATIONS, ARMS, adaptations, with_dependencies
from dartune.config.schema import Config
from dartune.models.flops import FORWARD, TRAINING
from dartune.stages.names import (
    adaptation_stages,
    evaluation_stage,
    greedy_stage,
    mapper_stage,
    own_stage,
    probe_stage,
    renewed_stage,
    synthesis_stage,
    train_stage,
    warmup_stage,
)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a run's texts.

    Args:
        question: a question with its chat template.
        request: the mapper's prompt, with the worked examples.
        solution: a demonstration's solution.
        own: a solution that the target writes.
        rewrite: a rewrite that the mapper writes.
    """

    question: float
    request: float
    solution: float
    own: float
    rewrite: float


@dataclass(frozen=True)
class Sizes:
    """Rows of a run's parts: training rows, development questions, and questions of all suites together."""

    train: int
    dev: int
    test: int


@dataclass(frozen=True)
class Work:
    """Tokens that a stage processes.

    `generated`, `scored` and `trained` are completion tokens, as a stage's cost counts them (`run/cost.py`). The others
    say how long it takes: `sampled` tokens are computed one after the other; `forward` and `backward` are all tokens
    that are read at once without and with gradients, prompts included. These three are weighted by the size of the
    model that processes them, in units of the target's.
    """

    generated: float = 0.0
    scored: float = 0.0
    trained: float = 0.0
    sampled: float = 0.0
    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.generated + other.generated,
            self.scored + other.scored,
            self.trained + other.trained,
            self.sampled + other.sampled,
            self.forward + other.forward,
            self.backward + other.backward,
        )

    def times(self, factor: float) -> Work:
        """The work done `factor` times."""
        return Work(
            factor * self.generated,
            factor * self.scored,
            factor * self.trained,
            factor * self.sampled,
            factor * self.forward,
            factor * self.backward,
        )

    def by_model(self, size: float) -> Work:
        """The same work by a model of another size."""
        return replace(self, sampled=size * self.sampled, forward=size * self.forward, backward=size * self.backward)

    def flops_per_weight(self) -> float:
        """FLOPs for each multiplied weight of the target (`models/flops.py`)."""
        return FORWARD * (self.sampled + self.forward) + TRAINING * self.backward


def sampling(prompts: float, prompt: float, samples: float, tokens: float) -> Work:
    """`samples` completions of `tokens` each, for each of `prompts` of length `prompt`."""
    completions = prompts * samples * tokens
    return Work(generated=completions, sampled=completions, forward=prompts * prompt)


def scoring(prompts: float, prompt: float, samples: float, tokens: float) -> Work:
    """The log-probabilities of `samples` completions for each prompt, which is read once."""
    completions = prompts * samples * tokens
    return Work(scored=completions, forward=prompts * prompt + completions)


def training(prompts: float, prompt: float, samples: float, tokens: float) -> Work:
    """A forward and backward over `samples` completions for each prompt, which is read once."""
    completions = prompts * samples * tokens
    return Work(trained=completions, backward=prompts * prompt + completions)


class WorkOfStages:
    """The work of every stage by name. Call it; the instance only keeps what its methods share.

    Args:
        seconds: seconds of some work; direct RL with a budget of seconds depends on it.
        mapper_size: multiplied weights of the mapper, in units of the target's.
    """

    def __init__(
        self,
        config: Config,
        sizes: Sizes,
        lengths: Lengths,
        seconds: Callable[[Work], float],
        mapper_size: float = 1.0,
    ):
        self.config, self.sizes, self.lengths, self.seconds = config, sizes, lengths, seconds
        self.mapper_size = mapper_size
        self.solution_tokens = min(lengths.own, config.evaluate.max_new_tokens)
        """Tokens of a solution in the evaluation."""

    def __call__(self) -> dict[str, Work]:
        """Stage name -> work, in the order of the run; stages without work for a model are left out."""
        config, work = self.config, dict[str, Work]()
        arms = with_dependencies(config.arms)
        if any(ARMS[arm].needs_probe for arm in arms):
            work[probe_stage("dart")] = self._probe()
        if config.mapper.format_steps and any(ARMS[arm].rows == "greedy" for arm in arms):
            work[warmup_stage("dart")] = self._warm_up()
        for adaptation in adaptations(arms):
            work.setdefault(probe_stage(adaptation), self._probe())
            if config.mapper.format_steps:
                work.setdefault(warmup_stage(adaptation), self._warm_up())
            for seed in config.seeds:
                if ADAPTATIONS[adaptation].trained:
                    work[mapper_stage(adaptation, seed)] = self._mapper()
                work[synthesis_stage(adaptation, seed)] = self._synthesis(adaptation)
        for seed in config.seeds:
            for arm in arms:
                for name, amount in self._arm(arm, seed, work):
                    work.setdefault(name, amount)
        return work

    def _probe(self) -> Work:
        """The target scores the demonstrations, and samples and scores solutions of its own."""
        rows, lengths, samples = self.sizes.train, self.lengths, self.config.reward.own_samples
        return (
            scoring(rows, lengths.question, 1, lengths.solution)
            + sampling(rows, lengths.question, samples, lengths.own)
            + scoring(rows, lengths.question, samples, lengths.own)
        )

    def _warm_up(self) -> Work:
        steps = self.config.mapper.format_steps * self.config.sft.batch_size
        return training(steps, self.lengths.request, 1, self.lengths.own).by_model(self.mapper_size)

    def _mapper(self) -> Work:
        """Every rewrite is sampled, scored by the target and by the initial mapper, and trained on."""
        mapper, lengths = self.config.mapper, self.lengths
        prompts = mapper.steps * min(mapper.questions_per_step, self.sizes.train)
        group = mapper.group_size
        by_mapper = (
            sampling(prompts, lengths.request, group, lengths.rewrite)
            + scoring(prompts, lengths.request, group, lengths.rewrite)
            + training(prompts, lengths.request, group, lengths.rewrite)
        )
        return by_mapper.by_model(self.mapper_size) + scoring(prompts, lengths.question, group, lengths.rewrite)

    def _synthesis(self, adaptation: str) -> Work:
        rows, lengths, samples = self.sizes.train, self.lengths, self.config.synthesise.samples
        if ADAPTATIONS[adaptation].matched:
            samples = samples_per_row(self.config, rows)
        rewriting = sampling(rows, lengths.request, samples, lengths.rewrite)
        return rewriting.by_model(self.mapper_size) + scoring(rows, lengths.question, samples, lengths.rewrite)

    def _arm(self, arm: str, seed: int, before: dict[str, Work]) -> Iterator[tuple[str, Work]]:
        spec, lengths, rows = ARMS[arm], self.lengths, self.sizes.train
        if spec.rows == "own":
            samples = spec.share * samples_per_row(self.config, rows)
            yield own_stage(arm, seed), sampling(rows, lengths.question, samples, lengths.own)
        elif spec.rows == "greedy":
            yield greedy_stage(), sampling(rows, lengths.request, 1, lengths.rewrite).by_model(self.mapper_size)
        elif spec.renewed:
            yield renewed_stage(arm, seed), self._synthesis("dart")
        for rate in learning_rates(self.config, arm) if spec.trained else ():
            dev = sampling(self.sizes.dev, lengths.question, 1, self.solution_tokens)
            yield train_stage(arm, seed, rate), self._training(arm, seed, before) + dev
        yield (
            evaluation_stage(arm, seed),
            sampling(self.sizes.test, lengths.question, 1 + self.config.evaluate.samples, self.solution_tokens),
        )

    def _training(self, arm: str, seed: int, before: dict[str, Work]) -> Work:
        """Training of an arm at one learning rate."""
        spec, lengths, sft = ARMS[arm], self.lengths, self.config.sft
        rows = spec.share * sft.steps * sft.batch_size
        if spec.budget:
            return self._direct_rl(arm, seed, before)
        if spec.teacher:
            return (
                sampling(rows, lengths.question, 1, self.solution_tokens)
                + scoring(rows, lengths.request, 1, self.solution_tokens)
                + training(rows, lengths.question, 1, self.solution_tokens)
            )
        length = lengths.solution if spec.rows == "demonstrations" else lengths.rewrite
        length = lengths.own if spec.rows == "own" else length
        if spec.trains_as_much_as:
            rows *= lengths.rewrite / max(1.0, length)
        work = training(rows, lengths.question, 1, length)
        if spec.loss in ("asft", "stm"):  # the untouched target reads the rows, too
            work += Work(forward=rows * (lengths.question + length))
        if spec.gains_as_much_as:  # four measurements of the dev accuracy per epoch (`stages/matched.py`)
            measurements = 4 * rows / max(1, self.sizes.train)
            work += sampling(measurements * self.sizes.dev, lengths.question, 1, self.solution_tokens)
        return work

    def _direct_rl(self, arm: str, seed: int, before: dict[str, Work]) -> Work:
        """Direct RL for the budget that `dart` spends on its data and one fine-tuning."""
        spec, lengths, group = ARMS[arm], self.lengths, self.config.mapper.group_size
        tokens = group * self.solution_tokens
        one_prompt = (
            sampling(1, lengths.question, group, self.solution_tokens)
            + scoring(1, lengths.question, group, self.solution_tokens)
            + training(1, lengths.question, group, self.solution_tokens)
        )
        spent = [before[name] for name in adaptation_stages(self.config, "dart", seed) if name in before]
        dart = sum((*spent, self._training("dart", seed, before)), Work())
        used = dart.generated / tokens if spec.budget == "tokens" else self.seconds(dart) / self.seconds(one_prompt)
        return one_prompt.times(spec.times * used)
