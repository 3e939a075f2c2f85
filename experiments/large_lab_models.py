"""Pretraining a large lab's target and initial mapper on a GPU, within a time limit.

The recipe is that of `dartune lab build` (src/dartune/lab/build.py): the same examples, guidance, initial weights and
optimisers. What differs is what a GPU needs: large batches of examples of like length, drawn ahead by other
processes, bfloat16 arithmetic, and a schedule that follows the clock, so that every build ends in time. What was
measured on the way is written as it comes.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dartune.data.chat_template import Renderer
from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine
from dartune.lab.build import GUIDED_STEPS, MAPPER_PROMPT, Recipe, build_model, mapper_example, target_example
from dartune.lab.guidance import attention_loss
from dartune.lab.step_checker import check_solution
from dartune.lab.suites import DEEP, write_demonstrations
from dartune.lab.tokenizer import build_tokenizer
from dartune.lab.world import sample_problems
from dartune.models.fused_rmsnorm import fuse_norms
from dartune.models.loading import save_model
from dartune.models.precision import cast_to_compute_dtype, compute_in
from dartune.run.files import append_jsonl
from dartune.train.loop import LoopConfig, build_optimizers

LEVEL = DEEP
EXPERT = "values"
POOL = 4  # batches whose examples are sorted by length together
GUIDED_ROWS = 32  # of a batch; the guidance keeps every layer's attention
WARMUP_STEPS = 100
DECAY = 0.4  # share of the time in which the learning rate falls to zero
MAX_NEW_TOKENS = 200
IGNORED = -100
Row = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is pretrained; `batch` counts examples, `learning_rate` is the peak."""

    recipe: Recipe
    batch: int
    learning_rate: float
    seconds: float
    workers: int
    progress_every: float
    questions: int


class Examples(Dataset):
    """Item k: POOL batches of examples, each of like lengths; a function of the model's name and k alone."""

    def __init__(self, name: str, batch: int):
        self.name, self.batch, self.renderer = name, batch, Renderer(build_tokenizer())
        self.example = partial(mapper_example if name == "mapper" else target_example, level=LEVEL)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, k: int) -> list[tuple[torch.Tensor, torch.Tensor, list[Row]]]:
        rng = random.Random(f"pretrain-{self.name}-{k}")
        texts = [self.example(rng, self.name) for _ in range(POOL * self.batch)]
        rows = [(self.renderer.prompt_ids(prompt), self.renderer.response_ids(reply)) for prompt, reply in texts]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[i : i + self.batch] for i in range(0, len(rows), self.batch)]
        rng.shuffle(batches)
        guided = k * POOL < GUIDED_STEPS
        return [(*tensors(one), rng.sample(one, min(GUIDED_ROWS, self.batch)) if guided else []) for one in batches]


def tensors(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, right-padded, and the tokens to be predicted after each of them (IGNORED where none), both (N, S)."""
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    wanted = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for i, (prompt, reply) in enumerate(rows):
        ids[i, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        wanted[i, len(prompt) - 1 : len(prompt) + len(reply) - 1] = torch.tensor(reply)
    return ids, wanted


def batches(name: str, plan: Plan, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[Row]]]:
    """Batches without end, on `device`."""
    loader = DataLoader(
        Examples(name, plan.batch),
        batch_size=None,
        num_workers=plan.workers,
        prefetch_factor=4 if plan.workers else None,
    )
    for pool in loader:
        for ids, wanted, rows in pool:
            yield ids.to(device, non_blocking=True), wanted.to(device, non_blocking=True), rows


def learning_rate(plan: Plan, step: int, elapsed: float) -> float:
    """At 0-based `step`, `elapsed` seconds after the start."""
    left = max(0.0, 1 - elapsed / plan.seconds)
    return plan.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS, left / DECAY)


def pretrain(name: str, plan: Plan, folder: Path, attention: str = "sdpa") -> Path:
    """Pretrain a target, by the name of its dialect, or the "mapper", into `folder/name`.

    `folder/name.jsonl` gets a row of what was measured every `plan.progress_every` seconds and at the end; what an
    earlier call left there is dropped.
    """
    (folder / f"{name}.jsonl").unlink(missing_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = build_tokenizer()
    renderer = Renderer(tokenizer)
    model = fuse_norms(build_model(plan.recipe, len(tokenizer), renderer.end_id, seed=0).to(device))
    model.set_attn_implementation(attention)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # as `load_model` does
        torch.set_float32_matmul_precision("high")
        compute_in(model, torch.bfloat16)
    optimizers = build_optimizers(
        model, LoopConfig(steps=1, learning_rate=plan.learning_rate, weight_decay=0.01, optimizer="muon")
    )
    began, told, losses = time.monotonic(), 0.0, []
    measuring = 0.0  # seconds, which are no time of training
    for step, (ids, wanted, rows) in enumerate(batches(name, plan, device)):
        elapsed = time.monotonic() - began - measuring
        losses.append(_one_step(model, optimizers, ids, wanted, rows, learning_rate(plan, step, elapsed)))
        if elapsed - told >= plan.progress_every or elapsed >= plan.seconds:
            at = time.monotonic()
            row = {
                "model": name,
                "step": step + 1,
                "seconds": round(elapsed, 1),
                "examples": (step + 1) * plan.batch,
                "loss": round(float(torch.stack(losses).mean()), 4),
                **measured(name, model, renderer, plan.questions),
            }
            append_jsonl(folder / f"{name}.jsonl", row)
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            told, losses = elapsed, []
            measuring += time.monotonic() - at
        if elapsed >= plan.seconds:
            break
    return save_model(cast_to_compute_dtype(model).to(torch.bfloat16), tokenizer, folder / name)


def _one_step(model, optimizers, ids, wanted, rows: list[Row], rate: float) -> torch.Tensor:
    """One step of the optimisers; returns the loss without guidance, in nats a token."""
    model.train()
    # Padding comes last, where the causal order hides it.
    logits = model(input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    (loss + attention_loss(model, rows) if rows else loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def measured(name: str, model, renderer: Renderer, n: int) -> dict[str, Any]:
    """What a model can do so far, on `n` questions that no suite asks: shares of solutions right in every step."""
    model.eval()
    engine = HFEngine(model)
    if name == "mapper":
        problems = sample_problems("large-lab-progress", LEVEL.demonstrated, n)
        prompts = [
            MAPPER_PROMPT.format(question=row.question, solution=row.solution)
            for row in write_demonstrations(problems, EXPERT)
        ]
        verdicts = _verdicts(engine, renderer, problems, prompts, 2, 1.0)
        shares = Counter(verdict.dialect or "none" for verdict in verdicts)
        told = {dialect: count / len(verdicts) for dialect, count in sorted(shares.items())}
        return {"steps_right": mean(verdict.steps_correct for verdict in verdicts), "dialects": told}
    found = {}
    for suite in ("retention_short", "retention_long"):
        problems = sample_problems("large-lab-progress", LEVEL.suites[suite], n)
        verdicts = _verdicts(engine, renderer, problems, [problem.question for problem in problems], 1, 0.0)
        found[suite] = mean(verdict.steps_correct for verdict in verdicts)
    return found


def _verdicts(engine: HFEngine, renderer: Renderer, problems, prompts: list[str], samples: int, temperature: float):
    spec = SampleSpec(samples, MAX_NEW_TOKENS, temperature, (renderer.end_id,), 0)
    drawn = engine.generate([renderer.prompt_ids(prompt) for prompt in prompts], spec)
    return [
        check_solution(renderer.decode(sample.ids), problem)
        for problem, group in zip(problems, drawn, strict=True)
        for sample in group
    ]
