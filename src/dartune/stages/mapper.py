"""Stage: train the mapper by reinforcement learning on the alignment reward, under the frozen target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from dartune import distributed
from dartune.config.schema import DEFAULT_EXECUTION, ExecutionConfig, MapperConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.data.run_records import RewriteSample, StepMetrics
from dartune.engines.base import Engine, Sample
from dartune.engines.distributed import LocalEngine, engine_on
from dartune.errors import InputError
from dartune.hacks.catalogue import HACKS
from dartune.rewards.reward import Reward, Rewrite
from dartune.run.cost import Cost
from dartune.run.files import append_jsonl, read_jsonl
from dartune.run.number_format import decimals, percent, rounded_percent
from dartune.run.progress import Progress, follow
from dartune.stages.base import Stage, StageInputs
from dartune.stages.context import StageContext
from dartune.stages.mapper_prompt import mapper_prompt
from dartune.stages.names import mapper_stage, probe_stage
from dartune.text.features import same_text, skeleton
from dartune.train.loop import train_from_config
from dartune.train.losses import group_advantages, vargrad_advantages
from dartune.train.rl import CHECKPOINT_EVERY, COST_METRICS, PolicyObjective, evenly_spaced, total_cost, zero_variance

STUCK_STEPS = 3
"""If all rewards of this many first steps are identical, a warning is logged: there is no gradient signal."""
EMPTY_STEPS = 5
"""If no rewrite of this many first steps passes the gates, the run stops with advice."""
Probe = Callable[[Engine], tuple[list[bool | None], Cost]]
"""Which development questions a target fine-tuned on an engine's rewrites solves (None: no verdict), and the cost."""


def reason_to_stop(earlier: Sequence[StepMetrics], now: StepMetrics) -> str | None:
    """Why to stop: the reward has risen since the best gold probe, while the target fine-tuned on rewrites got worse.

    "Worse" means a paired difference of more than two standard errors over the development questions that have a
    verdict in both probes.
    """
    best = max(earlier, key=lambda probe: share_solved(probe["solved"]), default=None)
    if best is None or now["reward"] <= best["reward"]:
        return None
    pairs = zip(best["solved"], now["solved"], strict=True)
    checked = [(float(then), float(later)) for then, later in pairs if then is not None and later is not None]
    differences = [later - then for then, later in checked]
    if len(differences) < 2 or mean(differences) + 2 * stdev(differences) / len(differences) ** 0.5 >= 0:
        return None
    then, later = map(mean, zip(*checked, strict=True))
    return (
        f"since step {best['step']} the reward rose from {decimals(best['reward'])} to {decimals(now['reward'])}, "
        f"while a target fine-tuned on the rewrites fell from {percent(then)}% to {percent(later)}% on dev"
    )


def share_solved(solved: Sequence[bool | None]) -> float:
    """Share of the questions with a verdict that are solved; 0 if none has a verdict."""
    verdicts = [verdict for verdict in solved if verdict is not None]
    return mean(verdicts) if verdicts else 0.0


def judged_rewards(group: Sequence[Rewrite]) -> list[float]:
    """A group's rewards.

    A rewrite whose answer check failed (timeout, crash) gets the mean reward of the others, so that its advantage is 0.
    """
    judged = [rewrite.reward for rewrite in group if rewrite.judged]
    group_mean = mean(judged) if judged else 0.0
    return [rewrite.reward if rewrite.judged else group_mean for rewrite in group]


class MapperObjective(PolicyObjective):
    """The `Objective` of mapper training."""

    config: MapperConfig

    def __init__(
        self,
        *arguments: Any,
        reward: Reward,
        describe: Callable[[Demonstration, str], str | None] | None = None,
        probe: Probe | None = None,
    ):
        """`arguments` are those of `PolicyObjective`; `describe` names a rewrite's dialect for the metrics.

        `probe` is called every `config.probe_every` steps; its tokens are counted in that step's metrics.
        """
        super().__init__(*arguments)
        self.reward, self.describe, self.probe, self.probed = reward, describe, probe, []
        self.engines.append(reward.target)

    def prompt(self, row: Demonstration) -> str:
        return mapper_prompt(self.config.prompt, row)

    def score_samples(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, StepMetrics]:
        scored = self.reward(rows, samples)
        rewards = torch.tensor([judged_rewards(group) for group in scored])
        self._keep_some(step, rows, scored)
        return self._advantages(samples, scored, rewards), self._metrics(rows, samples, scored, rewards)

    def _advantages(
        self, samples: Sequence[Sequence[Sample]], scored: Sequence[Sequence[Rewrite]], rewards: torch.Tensor
    ) -> torch.Tensor:
        """Weight of each sample's log-probability in the policy gradient, (questions, group size)."""
        if self.config.objective == "grpo":
            return group_advantages(rewards, self.reward.scale)
        return vargrad_advantages(
            torch.tensor([[sum(sample.logprobs) for sample in group] for group in samples]),
            torch.tensor([[sum(item.sampled_logprobs) for item in group] for group in scored]),
            torch.tensor([[item.accepted for item in group] for group in scored]),
        )

    def end(self, step: int) -> StepMetrics:
        row = super().end(step)
        # The reference model scores every sample once, and so does the target, for the reward.
        row["scored_tokens"] += row["generated_tokens"]
        if self.probe is None or (step + 1) % self.config.probe_every:
            return row
        probe_metrics, cost = self._probe(step + 1)
        return row | probe_metrics | {name: row[name] + getattr(cost, name) for name in COST_METRICS}

    def _probe(self, step: int) -> tuple[StepMetrics, Cost]:
        """The gold probe's result and cost; with a reason to stop if the target got worse while the reward rose."""
        self.policy.model.eval()
        assert self.probe is not None  # `end` asks for it
        solved, cost = distributed.broadcast(self.probe(self.policy))
        now = {"step": step, "reward": self._row["reward"], "solved": solved}
        reason = reason_to_stop(self.probed, now)
        self.probed.append(now)
        return {"probe": now, "probe_accuracy": share_solved(solved)} | ({"stop": reason} if reason else {}), cost

    def discard_samples_after(self, step: int) -> None:
        """As in `PolicyObjective`; the probes up to `step` are kept."""
        metrics = self.samples_path.parent / "metrics.jsonl"
        if step and metrics.exists():
            self.probed = [row["probe"] for row in read_jsonl(metrics) if row["step"] <= step and "probe" in row]
        super().discard_samples_after(step)

    def _metrics(
        self,
        rows: Sequence[Demonstration],
        samples: Sequence[Sequence[Sample]],
        scored: Sequence[Sequence[Rewrite]],
        rewards: torch.Tensor,
    ) -> StepMetrics:
        flat = [(row, item) for row, group in zip(rows, scored, strict=True) for item in group]
        gates = {name: mean(item.gates[name] for _, item in flat) for name in flat[0][1].gates}
        peeking = [
            mean(a - b for a, b in zip(sample.logprobs, item.sampled_logprobs, strict=True))
            for group, items in zip(samples, scored, strict=True)
            for sample, item in zip(group, items, strict=True)
            if item.logprobs
        ]
        references = self.reward.references
        metrics = {
            "reward": float(rewards.mean()),
            "gain": mean(item.gain for _, item in flat),
            "gate_pass": mean(item.accepted for _, item in flat),
            "gates": gates,
            "hacks": {hack.name: mean(hack.name in item.hacks for _, item in flat) for hack in HACKS},
            "alignment_before": mean(references[row.id].source_alignment for row in rows),
            "alignment_after": mean(item.alignment for _, item in flat),
            "unjudged": mean(not item.judged for _, item in flat),
            "peeking": mean(peeking) if peeking else 0.0,
            "length": mean(len(item.ids) for _, item in flat),
            "verbatim": mean(same_text(item.text, row.solution) for row, item in flat),
            "skeletons": len({skeleton(item.text) for _, item in flat}) / len(flat),
            "zero_variance": zero_variance(rewards),
        }
        if self.describe:
            styles = [self.describe(row, item.text) or "none" for row, item in flat]
            metrics["dialects"] = {style: styles.count(style) / len(styles) for style in sorted(set(styles))}
        return metrics

    def _keep_some(self, step: int, rows: Sequence[Demonstration], scored: Sequence[Sequence[Rewrite]]) -> None:
        flat = [(row, item) for row, group in zip(rows, scored, strict=True) for item in group]
        for row, item in evenly_spaced(flat):
            sample: RewriteSample = {
                "step": step + 1,
                "id": row.id,
                "question": row.question,
                "source": row.solution,
                "rewrite": item.text,
                "reward": item.reward,
                "alignment": item.alignment,
                "failed": item.failed,
                "hacks": list(item.hacks),
            }
            append_jsonl(self.samples_path, sample)


def train_mapper(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    reward: Reward,
    start: Engine,
    renderer: Renderer,
    config: MapperConfig,
    seed: int,
    folder: Path,
    *,
    describe: Callable[[Demonstration, str], str | None] | None = None,
    probe: Probe | None = None,
    policy: Callable[[torch.nn.Module], LocalEngine] = engine_on,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    on_step: Callable[[int, StepMetrics], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Train `model` to rewrite, fully or by LoRA (the adapter stays attached); `samples.jsonl` keeps some rewrites.

    Continues from the checkpoints an interrupted call left in `folder`. Ends early if the gold probe finds a reason
    (`reason_to_stop`).

    Args:
        start: the reference model of the KL penalty, and the model before training.
        policy: makes the engine that samples from the model being trained.
    """

    def objective(trained: torch.nn.Module) -> MapperObjective:
        return MapperObjective(
            demonstrations,
            policy(trained),
            start,
            renderer,
            config,
            seed,
            folder / "samples.jsonl",
            execution,
            reward=reward,
            describe=describe,
            probe=probe if config.probe_every else None,
        )

    model, history = train_from_config(
        model,
        objective,
        config,
        folder,
        seed=seed,
        steps=config.steps,
        learning_rate=config.learning_rate,
        decay=0.0,
        checkpoint_every=CHECKPOINT_EVERY,
        execution=execution,
        on_step=on_step,
    )
    return model, total_cost(history)


def watch_first_steps(
    say: Callable[[str], None], progress: Progress, folder: Path
) -> Callable[[int, StepMetrics], None]:
    """A step callback that updates the progress, logs once if the first steps have identical rewards, and stops the run
    if no rewrite passes the gates.

    `folder` is the stage's, which messages name as the place to read samples.
    """
    shown = follow(progress, "reward", "gate_pass", "alignment_after")
    first: list[StepMetrics] = []

    def step_done(step: int, row: StepMetrics) -> None:
        shown(step, row)
        if len(first) == EMPTY_STEPS:
            return
        first.append(row)
        if len(first) == STUCK_STEPS and all(metrics["zero_variance"] == 1 for metrics in first):
            say(f"All rewards were equal in the first {STUCK_STEPS} steps: no gradient signal. {_why(first, folder)}")
        if len(first) == EMPTY_STEPS and not any(metrics["gate_pass"] for metrics in first):
            raise InputError(
                f"no rewrite passed the gates in {EMPTY_STEPS} steps of mapper training", _advice(first, folder)
            )

    return step_done


def _why(rows: Sequence[StepMetrics], folder: Path) -> str:
    if any(row["gate_pass"] for row in rows):
        return (
            "Rewrites pass the gates, but none is more natural to the target than its demonstration: the initial "
            "mapper does not write in the target's style. Use one that does (mapper.path: null is the target itself)."
        )
    return "No rewrite passes the gates: " + "; ".join(_advice(rows, folder))


def _advice(rows: Sequence[StepMetrics], folder: Path) -> list[str]:
    """What the rewrites fail, where they can be read, and what helps."""
    failing = {gate: mean(1 - row["gates"][gate] for row in rows) for gate in rows[0]["gates"]}
    worst = [gate for gate in sorted(failing, key=failing.__getitem__, reverse=True) if failing[gate]][:3]
    return [
        f"failed most: {', '.join(f'{gate} ({rounded_percent(failing[gate])})' for gate in worst)}",
        f"read some rewrites in {folder / 'samples.jsonl'}",
        "small models often ramble at temperature 1: try mapper.temperature: 0.5",
        "a model that does not follow requests needs a warm-up (mapper.format_steps: 50) or examples "
        "(mapper.examples: 3)",
        "rewrites that are cut need more mapper.max_new_tokens",
    ]


class TrainMapper(Stage):
    """Reinforcement learning of an adaptation's mapper against the frozen target."""

    def __init__(self, context: StageContext, adaptation: str, seed: int):
        super().__init__(context, mapper_stage(adaptation, seed))
        self.adaptation, self.seed = adaptation, seed
        self.config, self.models = context.view(adaptation)

    def inputs(self) -> StageInputs:
        return {
            "probe": self.context.key(probe_stage(self.adaptation)),
            "sft": self.config.sft.model_dump() if self.config.mapper.probe_every else None,
            "mapper": self.config.mapper.model_dump(),
            "start": self.models.mapper_fingerprint,
            "seed": self.seed,
        }

    def run(self, folder: Path) -> Cost:
        from dartune.stages.gold_probe import GoldProbe

        context, config, models, data = self.context, self.config, self.models, self.context.data
        _, reward = context.probe_and_reward(self.adaptation)
        for limit in reward.limits():
            context.log(limit)
        mapper = context.mapper_config(self.adaptation)
        probe = GoldProbe(
            config.model_copy(update={"mapper": mapper}),
            partial(models.to_train, models.target_path, config.sft),
            data.train,
            data.dev,
            reward,
            models.renderer,
            context.checker,
        )
        with context.progress(config.mapper.steps, self.name) as progress:
            model, cost = train_mapper(
                models.mapper_to_train(),
                data.train,
                reward,
                models.start_engine,
                models.renderer,
                mapper,
                self.seed,
                folder,
                describe=context.describe,
                probe=probe,
                policy=partial(models.policy, stage_folder=folder),
                execution=config.execution,
                on_step=context.trackers.follow(self.name, folder, watch_first_steps(context.log, progress, folder)),
            )
        models.keep(model, folder)
        return cost
