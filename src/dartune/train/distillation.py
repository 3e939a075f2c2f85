"""On-policy distillation: the model samples, and a teacher that has read the demonstration corrects every token.

The loss is KL(teacher || model) at every sampled token, over the teacher's `TOP_TOKENS` most likely tokens and one
bucket for all others. With the untouched target as the teacher this is self-distillation (SDFT, arXiv 2601.19897; the
paper states the reverse KL, its authors' results use the forward one); with the trained mapper it is on-policy
distillation from the mapper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dartune import distributed
from dartune.config.schema import DEFAULT_EXECUTION, ExecutionConfig, SFTConfig
from dartune.data.chat_template import Renderer
from dartune.data.records import Demonstration
from dartune.engines.base import SampleSpec
from dartune.engines.distributed import LocalEngine, engine_on
from dartune.engines.seeds import DISTILLATION, sampling_seed
from dartune.engines.top_tokens import chosen_token_logprobs, top_logprobs
from dartune.errors import InputError
from dartune.models.flops import FORWARD, TRAINING, multiplied_weights
from dartune.models.loading import context_length
from dartune.models.lora import merge_lora
from dartune.run.cost import Cost
from dartune.run.files import append_jsonl
from dartune.train.loop import shuffled_rows, train_from_config
from dartune.train.losses import bucket_kl
from dartune.train.memory import max_forward_tokens
from dartune.train.microbatches import split_by_tokens
from dartune.train.rl import CHECKPOINT_EVERY, discard_rows_after, evenly_spaced, total_cost

TOP_TOKENS = 20
"""Tokens of the teacher's distribution in the loss. More change nothing measurable (arXiv 2601.19897, replications)."""
TEMPERATURE = 1.0
"""Sampling temperature of the model in training."""
Row = tuple[list[int], list[int], tuple[int, ...]]
"""Token ids: the question, the teacher's prompt with the demonstration, the sampled solution."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Samples of a step that go through one forward and backward; M sampled tokens, K tokens of the teacher.

    Args:
        rows: the samples with their prompts.
        ids: the teacher's most likely tokens at each position, (M, K).
        logprobs: their log-probabilities under the teacher, nats, (M, K).
        tokens: sampled tokens of the whole step, over all microbatches.
    """

    rows: list[Row]
    ids: torch.Tensor
    logprobs: torch.Tensor
    tokens: int


class DistillationObjective:
    """The `Objective` of on-policy distillation: one sample per question and step."""

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        policy: LocalEngine,
        teacher: torch.nn.Module,
        renderer: Renderer,
        teacher_prompt: Callable[[Demonstration], str],
        batch_size: int,
        max_new_tokens: int,
        seed: int,
        samples_path: Path,
        microbatch_tokens: int,
        teacher_update: float = 0.0,
    ):
        """Tokenises the prompts.

        Args:
            demonstrations: the questions, with the solutions that the teacher reads.
            policy: an engine on the model in training.
            teacher: the teacher; changed in place if `teacher_update` is not 0.
            renderer: chat template and tokenizer.
            teacher_prompt: the text that the teacher reads in front of the model's sample.
            batch_size: questions per step.
            max_new_tokens: the longest sample.
            seed: seed of the order of questions and of sampling.
            samples_path: file for a few samples of every step.
            microbatch_tokens: most padded tokens of a forward and backward.
            teacher_update: share of the model's weights that the teacher takes over after every step.

        Raises:
            InputError: a prompt with the longest sample exceeds a model's context; all of these are listed. Prompts are
                never truncated: without the question or the demonstration, the teacher would teach something else.
        """
        self.policy, self.teacher, self.renderer = policy, teacher.eval(), renderer
        self.prompts = [
            (renderer.prompt_ids(row.question), renderer.prompt_ids(teacher_prompt(row))) for row in demonstrations
        ]
        limits = context_length(policy.model), context_length(teacher)
        too_long = [
            f"row {number}: {len(prompt)} tokens and {max_new_tokens} for the sample, the context is {limit}"
            for number, prompts in enumerate(self.prompts, start=1)
            for prompt, limit in zip(prompts, limits, strict=True)
            if len(prompt) + max_new_tokens > limit
        ]
        if too_long:
            raise InputError("questions with demonstrations do not fit the context length", too_long)
        self.batch_size, self.seed = min(batch_size, len(self.prompts)), seed
        self.max_new_tokens, self.microbatch_tokens = max_new_tokens, microbatch_tokens
        self.samples_path, self.teacher_update = samples_path, teacher_update
        self._resumed = False
        self._student_weights, self._teacher_weights = map(multiplied_weights, (policy.model, teacher))

    def begin(self, step: int) -> list[Microbatch]:
        if not self._resumed:
            discard_rows_after(self.samples_path, step)
            self._resumed = True
        prompts = [self.prompts[i] for i in shuffled_rows(len(self.prompts), self.batch_size, step, self.seed)]
        spec = SampleSpec(
            1,
            self.max_new_tokens,
            TEMPERATURE,
            self.renderer.stop_ids,
            sampling_seed(self.seed, step, DISTILLATION),
        )
        self.policy.model.eval()
        before = self.policy.flops
        samples = self.policy.generate([question for question, _ in prompts], spec)
        rows = [(*pair, group[0].ids) for pair, group in zip(prompts, samples, strict=True)]
        rows.sort(key=_tokens)  # so that padding is short and each process gets rows of all lengths
        self._count(rows, self.policy.flops - before)
        self._keep_some(step, rows)
        batches = split_by_tokens(distributed.shard(rows), _padded_tokens, self.microbatch_tokens)
        return [self._taught(batch, self._sampled_tokens) for batch in batches]

    def _count(self, rows: Sequence[Row], sampling_flops: float) -> None:
        self._sampled_tokens = sum(len(sample) for _, _, sample in rows)
        read = sum(len(question) for question, _, _ in rows) + self._sampled_tokens
        taught = sum(len(prompt) for _, prompt, _ in rows) + self._sampled_tokens
        training = TRAINING * self._student_weights * read + FORWARD * self._teacher_weights * taught
        self._step_flops = sampling_flops + training

    def _taught(self, rows: list[Row], tokens: int) -> Microbatch:
        ids, logprobs = top_logprobs(self.teacher, [(prompt, sample) for _, prompt, sample in rows], TOP_TOKENS)
        return Microbatch(rows, ids, logprobs, tokens)

    def largest_microbatch(self) -> Microbatch:
        end = self.renderer.end_id
        rows = [(*pair, (end,) * self.max_new_tokens) for pair in self.prompts]
        rows = sorted(rows, key=_tokens, reverse=True)[: self.batch_size]
        largest = split_by_tokens(rows, _padded_tokens, self.microbatch_tokens)[0]
        return self._taught(largest, len(largest) * self.max_new_tokens)

    def loss(self, model: torch.nn.Module, microbatch: Microbatch) -> torch.Tensor:
        pairs = [(question, sample) for question, _, sample in microbatch.rows]
        student = chosen_token_logprobs(model, pairs, microbatch.ids)
        return bucket_kl(microbatch.logprobs, student).sum() / microbatch.tokens

    def shown(self, microbatch: Microbatch) -> list[dict[str, Any]]:
        return [self._readable(row) for row in microbatch.rows]

    def _readable(self, row: Row) -> dict[str, Any]:
        question, prompt, sample = map(self.renderer.tokenizer.decode, row)
        return {"prompt": question, "teacher_prompt": prompt, "response": sample}

    @distributed.main_only
    def _keep_some(self, step: int, rows: Sequence[Row]) -> None:
        for row in evenly_spaced(rows):
            append_jsonl(self.samples_path, {"step": step + 1} | self._readable(row))

    def end(self, step: int) -> dict[str, Any]:
        if self.teacher_update:
            self._update_teacher()
        tokens = self._sampled_tokens
        return {
            "generated_tokens": tokens,
            "scored_tokens": tokens,
            "trained_tokens": tokens,
            "flops": self._step_flops,
        }

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """Moves the teacher's weights towards the model's, as an exponential moving average."""
        for old, new in zip(self.teacher.parameters(), self.policy.model.parameters(), strict=True):
            old.lerp_(new.to(old), self.teacher_update)


def _tokens(row: Row) -> int:
    question, _, sample = row
    return len(question) + len(sample)


def _padded_tokens(rows: Sequence[Row]) -> int:
    """Returns the tokens of the larger of the two forwards over the rows, the model's and the teacher's."""
    longest = max(max(len(question), len(prompt)) + len(sample) for question, prompt, sample in rows)
    return len(rows) * longest


def distil(
    model: torch.nn.Module,
    demonstrations: Sequence[Demonstration],
    teacher: torch.nn.Module,
    renderer: Renderer,
    teacher_prompt: Callable[[Demonstration], str],
    config: SFTConfig,
    learning_rate: float,
    max_new_tokens: int,
    seed: int,
    folder: Path,
    *,
    teacher_update: float = 0.0,
    execution: ExecutionConfig = DEFAULT_EXECUTION,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[torch.nn.Module, Cost]:
    """Trains `model` on its own samples against the teacher, all weights or with LoRA (merged at the end).

    Args:
        config: steps, rows per step and adapter are those of fine-tuning, so that the arms can be compared.
        folder: metrics, samples and checkpoints; an interrupted call is continued from its last checkpoint.

    The other arguments are those of `DistillationObjective` and `fine_tune`.

    Returns:
        The trained model and the cost of its training.

    Raises:
        InputError: a prompt does not fit the context.
        MachineError: the loss or the gradient is not finite.
    """

    def objective(trained: torch.nn.Module) -> DistillationObjective:
        limit = max_forward_tokens(trained, execution.microbatch_tokens)
        return DistillationObjective(
            demonstrations,
            engine_on(trained),
            teacher,
            renderer,
            teacher_prompt,
            config.batch_size,
            max_new_tokens,
            seed,
            folder / "samples.jsonl",
            limit,
            teacher_update,
        )

    model, history = train_from_config(
        model,
        objective,
        config,
        folder,
        seed=seed,
        steps=config.steps,
        learning_rate=learning_rate,
        checkpoint_every=CHECKPOINT_EVERY,
        execution=execution,
        on_step=on_step,
    )
    return merge_lora(model), total_cost(history)
