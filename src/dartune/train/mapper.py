"""Mapper training: reinforcement learning on the alignment reward, under the frozen target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from dartune import processes
from dartune.config import LOCAL, ExecutionConfig, MapperConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample
from dartune.models.parallel_engine import LocalEngine, engine_on
from dartune.rewards.hacks import HACKS
from dartune.rewards.reward import Reward, Scored
from dartune.rewards.text import same_text, skeleton
from dartune.run import Cost, append_jsonl, read_jsonl
from dartune.train.loop import train_as_set
from dartune.train.objectives import group_advantages, vargrad_advantages
from dartune.train.policy import CHECKPOINT_EVERY, COUNTED, PolicyObjective, a_few, totals, zero_variance

EXAMPLES_FROM = 512
"""Demonstrations among which worked examples are looked for."""
Probe = Callable[[Engine], tuple[list[bool | None], Cost]]
"""Which development questions a target fine-tuned on an engine's rewrites solves (None: no verdict), and the cost."""


def mapper_prompt(template: str, demonstration: Demonstration) -> str:
    """The request for a rewrite; braces inside the data are left alone."""
    parts = template.split("{question}")
    return demonstration.question.join(part.replace("{solution}", demonstration.solution) for part in parts)


def with_examples(template: str, shown: Sequence[tuple[Demonstration, str]]) -> str:
    """The request preceded by worked examples: (demonstration, rewrite) pairs in the request's own words."""
    asked = [f"{mapper_prompt(template, row)}\n{rewrite}" for row, rewrite in shown]
    return "\n\n".join([*asked, template])


def worked_examples(
    demonstrations: Sequence[Demonstration], probed: Sequence[dict[str, Any]], count: int
) -> list[tuple[Demonstration, str]]:
    """Rows with a right solution of the target's own, the shortest first; fewer than `count` where there are no more.

    Args:
        probed: the probe's rows, one per demonstration; only the first `EXAMPLES_FROM` are read.
    """
    found = []
    for row, known in zip(demonstrations[:EXAMPLES_FROM], probed[:EXAMPLES_FROM], strict=True):
        texts = [own["text"] for own in known["own"]]
        whole = [row.question, row.solution, *texts]
        if texts and not any(name in text for text in whole for name in ("{question}", "{solution}")):
            found.append((row, min(texts, key=len)))
    return sorted(found, key=lambda pair: len(pair[0].question + pair[0].solution + pair[1]))[:count]


def reason_to_stop(earlier: Sequence[dict[str, Any]], now: dict[str, Any]) -> str | None:
    """Why to stop, if the reward has risen since the best gold probe while the target got worse.

    Worse is: paired over the development questions that have a verdict in both, by more than two standard errors.
    """
    best = max(earlier, key=lambda one: share_solved(one["solved"]), default=None)
    if best is None or now["reward"] <= best["reward"]:
        return None
    pairs = zip(best["solved"], now["solved"], strict=True)
    known = [(float(then), float(later)) for then, later in pairs if then is not None and later is not None]
    change = [later - then for then, later in known]
    if len(change) < 2 or mean(change) + 2 * stdev(change) / len(change) ** 0.5 >= 0:
        return None
    then, later = map(mean, zip(*known, strict=True))
    return (
        f"since step {best['step']} the reward rose from {best['reward']:.3f} to {now['reward']:.3f}, while a target "
        f"fine-tuned on the rewrites fell from {then:.1%} to {later:.1%} on dev"
    )


def share_solved(solved: Sequence[bool | None]) -> float:
    """Share of the questions with a verdict that are solved; 0 where none has one."""
    known = [one for one in solved if one is not None]
    return mean(known) if known else 0.0


def judged_rewards(group: Sequence[Scored]) -> list[float]:
    """A group's rewards; a sample the checker failed on gets the mean of the others, so that it has no say."""
    known = [item.reward for item in group if item.judged]
    instead = mean(known) if known else 0.0
    return [item.reward if item.judged else instead for item in group]


class MapperObjective(PolicyObjective):
    """The `Objective` of mapper training."""

    config: MapperConfig

    def __init__(
        self,
        *words: Any,
        reward: Reward,
        describe: Callable[[Demonstration, str], str | None] | None = None,
        probe: Probe | None = None,
    ):
        """`words` are those of `PolicyObjective`; `describe` names a rewrite's style for the metrics.

        `probe` is asked every `config.probe_every` steps; what it spends is in that step's counts.
        """
        super().__init__(*words)
        self.reward, self.describe, self.probe, self.probed = reward, describe, probe, []
        self.engines.append(reward.target)

    def prompt(self, row: Demonstration) -> str:
        return mapper_prompt(self.config.prompt, row)

    def rewarded(
        self, step: int, rows: Sequence[Demonstration], samples: Sequence[Sequence[Sample]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        scored = self.reward(rows, samples)
        rewards = torch.tensor([judged_rewards(group) for group in scored])
        self._keep_some(step, rows, scored)
        return self._advantages(samples, scored, rewards), self._metrics(rows, samples, scored, rewards)

    def _advantages(
        self, samples: Sequence[Sequence[Sample]], scored: Sequence[Sequence[Scored]], rewards: torch.Tensor
    ) -> torch.Tensor:
        """Weight of each sample's log-probability in the policy gradient, (questions, group size)."""
        if self.config.objective == "grpo":
            return group_advantages(rewards, self.reward.scale)
        return vargrad_advantages(
            torch.tensor([[sum(sample.logprobs) for sample in group] for group in samples]),
            torch.tensor([[sum(item.sampled_logprobs) for item in group] for group in scored]),
            torch.tensor([[item.accepted for item in group] for group in scored]),
        )

    def end(self, step: int) -> dict[str, Any]:
        row = super().end(step)
        # The target scores every sample once more than the start does.
        row["scored_tokens"] += row["generated_tokens"]
        if self.probe is None or (step + 1) % self.config.probe_every:
            return row
        found, cost = self._probe(step + 1)
        return row | found | {name: row[name] + getattr(cost, name) for name in COUNTED}

    def _probe(self, step: int) -> tuple[dict[str, Any], Cost]:
        """The gold probe's result, with a reason to stop where the reward is no longer worth it, and its cost."""
        self.policy.model.eval()
        solved, cost = processes.agreed(self.probe(self.policy))
        now = {"step": step, "reward": self._row["reward"], "solved": solved}
        reason = reason_to_stop(self.probed, now)
        self.probed.append(now)
        return {"probe": now, "probe_accuracy": share_solved(solved)} | ({"stop": reason} if reason else {}), cost

    def _forget_samples_after(self, step: int) -> None:
        """As in `PolicyObjective`; the probes up to `step` are kept."""
        metrics = self.samples_path.parent / "metrics.jsonl"
        if step and metrics.exists():
            self.probed = [row["probe"] for row in read_jsonl(metrics) if row["step"] <= step and "probe" in row]
        super()._forget_samples_after(step)

    def _metrics(
        self,
        rows: Sequence[Demonstration],
        samples: Sequence[Sequence[Sample]],
        scored: Sequence[Sequence[Scored]],
        rewards: torch.Tensor,
    ) -> dict[str, Any]:
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

    def _keep_some(self, step: int, rows: Sequence[Demonstration], scored: Sequence[Sequence[Scored]]) -> None:
        flat = [(row, item) for row, group in zip(rows, scored, strict=True) for item in group]
        for row, item in a_few(flat):
            append_jsonl(
                self.samples_path,
                {
                    "step": step + 1,
                    "id": row.id,
                    "question": row.question,
                    "source": row.solution,
                    "rewrite": item.text,
                    "reward": item.reward,
                    "alignment": item.alignment,
                    "failed": item.failed,
                    "hacks": list(item.hacks),
                },
            )


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
    execution: ExecutionConfig = LOCAL,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Train `model` to rewrite, fully or by LoRA (which stays on); `samples.jsonl` keeps what it wrote.

    `policy` makes the engine that samples from the model that is trained.

    Ends early where the gold probe says that more reward buys a worse target (`reason_to_stop`).

    Continues from the checkpoints an interrupted call left in `folder`.
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

    model, history = train_as_set(
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
    return model, totals(history)
