"""Mapper training: reinforcement learning on the reward, one on-policy step at a time.

Each step draws questions, samples a group of rewrites per question from the current mapper,
scores them under the frozen target and takes one policy-gradient step. The questions' prompts
are computed once per group in sampling, scoring and training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from dartune.config import MapperConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.models.engine import Engine, Sample, SampleSpec
from dartune.models.hf_engine import HFEngine
from dartune.models.loading import add_lora, merge_lora
from dartune.models.shared_prefix import group_logprobs
from dartune.rewards.hacks import HACKS
from dartune.rewards.reward import Reward, Scored
from dartune.rewards.text import same_text, skeleton
from dartune.run import Cost, append_jsonl, read_jsonl, write_jsonl
from dartune.train.loop import LoopConfig, shuffled_rows, train
from dartune.train.objectives import group_advantages, grpo, vargrad_advantages

GROUPS_PER_MICROBATCH = 6
SAMPLES_ON_DISK = 5


def mapper_prompt(template: str, demonstration: Demonstration) -> str:
    """The request for a rewrite; braces inside the data are left alone."""
    parts = template.split("{question}")
    return demonstration.question.join(part.replace("{solution}", demonstration.solution) for part in parts)


def reason_to_stop(earlier: Sequence[dict[str, Any]], now: dict[str, Any]) -> str | None:
    """Why to stop, if the reward has risen since the best gold probe while the target got worse.

    Worse is: paired over the development questions, by more than two standard errors.
    """
    best = max(earlier, key=lambda one: mean(one["solved"]), default=None)
    if best is None or now["reward"] <= best["reward"]:
        return None
    change = [float(a) - float(b) for a, b in zip(now["solved"], best["solved"], strict=True)]
    if len(change) < 2 or mean(change) + 2 * stdev(change) / len(change) ** 0.5 >= 0:
        return None
    return (
        f"since step {best['step']} the reward rose from {best['reward']:.3f} to {now['reward']:.3f}, while a target "
        f"fine-tuned on the rewrites fell from {mean(best['solved']):.1%} to {mean(now['solved']):.1%} on dev"
    )


def judged_rewards(group: Sequence[Scored]) -> list[float]:
    """A group's rewards; a sample the checker failed on gets the mean of the others, so that it has no say."""
    known = [item.reward for item in group if item.judged]
    instead = mean(known) if known else 0.0
    return [item.reward if item.judged else instead for item in group]


@dataclass(frozen=True, slots=True)
class Microbatch:
    groups: list[tuple[list[int], list[tuple[int, ...]]]]
    advantages: torch.Tensor
    start_logprobs: list[list[float]]
    tokens: int


class MapperObjective:
    """The `Objective` of mapper training."""

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        reward: Reward,
        mapper: HFEngine,
        start: Engine,
        renderer: Renderer,
        config: MapperConfig,
        seed: int,
        samples_path: Path,
        describe: Callable[[Demonstration, str], str | None] | None = None,
        probe: Callable[[Engine], list[bool]] | None = None,
    ):
        """`start` scores under the mapper's initial weights; `describe` names a rewrite's style for the metrics.

        `probe` says, every `config.probe_every` steps, which questions a target fine-tuned on the rewrites solves.
        """
        self.probe, self.probed = probe, []
        self.demonstrations, self.reward, self.mapper, self.start = demonstrations, reward, mapper, start
        self.renderer, self.config, self.seed = renderer, config, seed
        self.samples_path, self.describe = samples_path, describe
        self._resumed = False

    def begin(self, step: int) -> list[Microbatch]:
        config = self.config
        if not self._resumed:
            self._forget_samples_after(step)
        n = min(config.questions_per_step, len(self.demonstrations))
        rows = [self.demonstrations[i] for i in shuffled_rows(len(self.demonstrations), n, step, self.seed)]
        prompts = [self.renderer.prompt_ids(mapper_prompt(config.prompt, row)) for row in rows]
        spec = SampleSpec(
            n=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop_ids=(self.renderer.end_id,),
            seed=self.seed * 1_000_003 + step,
        )
        self.mapper.model.eval()
        samples = self.mapper.generate(prompts, spec)
        scored = self.reward(rows, samples)
        rewards = torch.tensor([judged_rewards(group) for group in scored])
        pairs = [(prompt, sample.ids) for prompt, group in zip(prompts, samples, strict=True) for sample in group]
        start = self.start.score(pairs)
        self._sums = {"kl": 0.0, "entropy": 0.0, "tokens": sum(len(ids) for _, ids in pairs)}
        self._note(step, rows, samples, scored, rewards)
        return self._microbatches(prompts, samples, self._advantages(samples, scored, rewards), start)

    def _advantages(
        self, samples: Sequence[Sequence[Sample]], scored: Sequence[Sequence[Scored]], rewards: torch.Tensor
    ) -> torch.Tensor:
        """Weight of each sample's log-probability in the policy gradient, (questions, group size)."""
        if self.config.objective == "grpo":
            return group_advantages(rewards, self.reward.scale)
        return vargrad_advantages(
            torch.tensor([[sum(sample.logprobs) for sample in group] for group in samples]),
            torch.tensor([[sum(item.logprobs) for item in group] for group in scored]),
            torch.tensor([[item.accepted for item in group] for group in scored]),
        )

    def _microbatches(
        self,
        prompts: list[list[int]],
        samples: list[list[Sample]],
        advantages: torch.Tensor,
        start: list[list[float]],
    ) -> list[Microbatch]:
        size = self.config.group_size
        order = sorted(range(len(prompts)), key=lambda i: max(len(sample.ids) for sample in samples[i]))
        batches = []
        for low in range(0, len(order), GROUPS_PER_MICROBATCH):
            chosen = order[low : low + GROUPS_PER_MICROBATCH]
            batches.append(
                Microbatch(
                    groups=[(prompts[i], [sample.ids for sample in samples[i]]) for i in chosen],
                    advantages=advantages[chosen].reshape(-1),
                    start_logprobs=[row for i in chosen for row in start[i * size : (i + 1) * size]],
                    tokens=self._sums["tokens"],
                )
            )
        return batches

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        logprobs, mask, entropy = group_logprobs(model, microbatch.groups, with_entropy=True)
        start = torch.zeros_like(logprobs)
        for i, row in enumerate(microbatch.start_logprobs):
            start[i, : len(row)] = torch.as_tensor(row, dtype=start.dtype, device=start.device)
        advantages = microbatch.advantages.to(logprobs)
        loss, kl = grpo(logprobs, start * mask, advantages, mask, microbatch.tokens, self.config.kl)
        self._sums["kl"] += float(kl)
        self._sums["entropy"] += float((entropy.detach() * mask).sum())
        return loss

    def end(self, step: int) -> dict[str, Any]:
        tokens = max(1, self._sums["tokens"])
        return {
            **self._row,
            **self._probe(step + 1),
            "kl": self._sums["kl"] / tokens,
            "entropy": self._sums["entropy"] / tokens,
            "generated_tokens": self._sums["tokens"],
            "scored_tokens": 2 * self._sums["tokens"],
            "trained_tokens": self._sums["tokens"],
        }

    def _probe(self, step: int) -> dict[str, Any]:
        """The gold probe's result where one is due, and a reason to stop where the reward is no longer worth it."""
        if self.probe is None or step % self.config.probe_every:
            return {}
        self.mapper.model.eval()
        now = {"step": step, "reward": self._row["reward"], "solved": self.probe(self.mapper)}
        reason = reason_to_stop(self.probed, now)
        self.probed.append(now)
        return {"probe": now, "probe_accuracy": mean(now["solved"])} | ({"stop": reason} if reason else {})

    def _forget_samples_after(self, step: int) -> None:
        """Samples that an interrupted run wrote after its last checkpoint are drawn again; its probes are kept."""
        metrics = self.samples_path.parent / "metrics.jsonl"
        if step and metrics.exists():
            self.probed = [row["probe"] for row in read_jsonl(metrics) if row["step"] <= step and "probe" in row]
        if self.samples_path.exists():
            write_jsonl(self.samples_path, [row for row in read_jsonl(self.samples_path) if row["step"] <= step])
        self._resumed = True

    def _note(
        self,
        step: int,
        rows: Sequence[Demonstration],
        samples: Sequence[Sequence[Sample]],
        scored: Sequence[Sequence[Scored]],
        rewards: torch.Tensor,
    ) -> None:
        """Keep the step's metrics and write a few sample rewrites to disk."""
        flat = [(row, item) for row, group in zip(rows, scored, strict=True) for item in group]
        gates = {name: mean(item.gates[name] for _, item in flat) for name in flat[0][1].gates}
        peeking = [
            mean(a - b for a, b in zip(sample.logprobs, item.logprobs, strict=True))
            for group, items in zip(samples, scored, strict=True)
            for sample, item in zip(group, items, strict=True)
            if item.logprobs
        ]
        references = self.reward.references
        self._row = {
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
            "zero_variance": float((rewards.std(dim=1) < 1e-6).float().mean()),
        }
        if self.describe:
            styles = [self.describe(row, item.text) or "none" for row, item in flat]
            self._row["dialects"] = {style: styles.count(style) / len(styles) for style in sorted(set(styles))}
        for row, item in flat[:: max(1, len(flat) // SAMPLES_ON_DISK)][:SAMPLES_ON_DISK]:
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
    probe: Callable[[Engine], list[bool]] | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Train `model` to rewrite, fully or by LoRA (merged at the end); `samples.jsonl` keeps what it wrote.

    Ends early where the gold probe says that more reward buys a worse target (`reason_to_stop`).

    Continues from the checkpoints an interrupted call left in `folder`.
    """
    torch.manual_seed(seed)
    if config.adapter == "lora":
        model = add_lora(model, config.lora_rank)
    objective = MapperObjective(
        demonstrations,
        reward,
        HFEngine(model),
        start,
        renderer,
        config,
        seed,
        folder / "samples.jsonl",
        describe,
        probe if config.probe_every else None,
    )
    loop = LoopConfig(
        steps=config.steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        decay=0.0,
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=config.checkpoint_every,
    )
    history = train(model, objective, loop, folder, on_step=on_step)
    if config.adapter == "lora":
        model = merge_lora(model)
    totals = {key: sum(row[key] for row in history) for key in ("generated_tokens", "scored_tokens", "trained_tokens")}
    return model, Cost(**totals)
