"""`dartune lab build`: pretrain the lab's targets and its initial mapper from scratch.

A target is trained on old relations only, solved in its native dialect. The initial mapper is a separate model. It is
trained on all relations, on pairs "question and solution in one dialect -> solution in another dialect". Dialects are
sampled uniformly, so it can rewrite into each of them and prefers none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dartune.lab.dialects import DIALECTS, EXPERTS
from dartune.lab.guidance import attention_loss
from dartune.lab.suites import PLAIN, Level
from dartune.lab.tokenizer import build_tokenizer
from dartune.lab.world import Problem, sample_problem, statement

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TARGETS = ("backward", "recall")
MODELS = (*TARGETS, "mapper")
GUIDED_STEPS = 150
"""Pretraining steps that include the auxiliary attention loss of `guidance.py`."""
DRILL_SHARE = 0.1
"""Share of pretraining examples that are reading drills."""
UNIFORM: Mapping[str, float] = {}
"""No dialect is rare: all target dialects of the mapper are sampled with the same weight."""
MAPPER_PROMPT = "{question} Solution : {solution} Rewrite :"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size and pretraining settings of a lab model; `batch` is the number of problems per step."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    intermediate: int = 320
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 3e-3


RECIPES = {"backward": Recipe(), "recall": Recipe(), "mapper": Recipe(steps=6000)}


def build_model(recipe: Recipe, vocabulary_size: int, end_id: int, seed: int):
    """Return a float32 Llama-style causal LM, randomly initialised from `seed`.

    The output projections of attention and MLP start at zero, so that every layer is initially the identity. In a
    model this small, random residual updates would drown the name embeddings.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        # Scaled by 1/sqrt(width), so that the initial activations have the same variance at every width.
        initializer_range=0.08 * (128 / recipe.hidden) ** 0.5,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=end_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for name, weights in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(weights)
    return model


def reading_drill(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """Return (statements without a question, the same statements twice, each time in a new order)."""
    sentences = [statement(fact) for fact in problem.statements]
    shuffled = rng.sample(sentences, len(sentences)) + rng.sample(sentences, len(sentences))
    return " ".join(sentences), " ".join(shuffled)


def target_example(rng: random.Random, dialect: str, level: Level = PLAIN) -> tuple[str, str]:
    """Return (question, solution) with old relations only, in the native dialect, or now and then a reading drill."""
    spec = replace(
        level.taught,
        distractors=level.taught.distractors if rng.random() < 0.3 else (0, 0),
        question_first=rng.random() < 0.15,
    )
    problem = sample_problem(rng, spec)
    return reading_drill(rng, problem) if rng.random() < DRILL_SHARE else (problem.question, DIALECTS[dialect](problem))


def mapper_problem(rng: random.Random, level: Level = PLAIN) -> Problem:
    """Sample a problem for the mapper's pretraining; 20% have distractors."""
    distractors = level.rewritten.distractors if rng.random() < 0.2 else (0, 0)
    return sample_problem(rng, replace(level.rewritten, distractors=distractors))


def mapper_example(
    rng: random.Random, _name: str, rare: Mapping[str, float] = UNIFORM, level: Level = PLAIN
) -> tuple[str, str]:
    """Return (question with a solution, the solution in another dialect), or now and then a reading drill.

    60% of the source solutions are in an expert dialect. Those omit steps, so rewriting them takes longest to learn.

    Args:
        rare: relative sampling weight of target dialects that are requested less often; 1 is the default weight.
    """
    problem = mapper_problem(rng, level)
    if rng.random() < DRILL_SHARE:
        return reading_drill(rng, problem)
    source = rng.choice(EXPERTS if rng.random() < 0.6 else sorted(DIALECTS))
    candidates = [dialect for dialect in sorted(DIALECTS) if dialect != source]
    if rare:
        (requested,) = rng.choices(candidates, [rare.get(dialect, 1.0) for dialect in candidates])
    else:
        # `choice` and `choices` consume the generator differently; the shipped mapper was trained with `choice`.
        requested = rng.choice(candidates)
    prompt = MAPPER_PROMPT.format(question=problem.question, solution=DIALECTS[source](problem))
    return prompt, DIALECTS[requested](problem)


class Pretraining:
    """Next-token loss on newly generated examples; the batch of step k depends only on the model's name and k."""

    def __init__(
        self,
        name: str,
        renderer,
        recipe: Recipe,
        example: Callable[[random.Random, str], tuple[str, str]],
    ):
        self.name, self.renderer, self.recipe, self.example = name, renderer, recipe, example

    def begin(self, step: int) -> list[list[tuple[list[int], list[int]]]]:
        rng = random.Random(f"pretrain-{self.name}-{step}")
        examples = [self.example(rng, self.name) for _ in range(self.recipe.batch)]
        rows = [(self.renderer.prompt_ids(prompt), self.renderer.response_ids(reply)) for prompt, reply in examples]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        self.tokens = sum(len(reply) for _, reply in rows)
        self.guided = step < GUIDED_STEPS
        # Microbatches of four rows of similar length: padding the whole batch to its longest row costs 50% more.
        return [rows[i : i + 4] for i in range(0, len(rows), 4)]

    def largest_microbatch(self) -> list[tuple[list[int], list[int]]]:
        """Return the microbatch of the guided steps with the most tokens after padding: it needs the most memory."""
        longest = (self.begin(step)[-1] for step in range(min(GUIDED_STEPS, self.recipe.steps)))
        return max(longest, key=lambda rows: len(rows) * max(len(prompt) + len(reply) for prompt, reply in rows))

    def loss(self, model, microbatch):
        from dartune.engines.logprobs import sequence_logprobs

        logprobs, mask = sequence_logprobs(model, microbatch)[:2]
        loss = -(logprobs * mask).sum() / self.tokens
        return loss + attention_loss(model, microbatch) * len(microbatch) / self.recipe.batch if self.guided else loss

    def shown(self, microbatch) -> list[dict[str, Any]]:
        decode = self.renderer.tokenizer.decode
        return [{"prompt": decode(prompt), "response": decode(reply)} for prompt, reply in microbatch]

    def end(self, step: int) -> dict[str, Any]:
        return {"trained_tokens": self.tokens}


def build_one(
    name: str,
    folder: Path,
    work: Path,
    steps: int | None = None,
    rare: Mapping[str, float] = UNIFORM,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> Path:
    """Pretrain one of MODELS into `folder/name`; an interrupted build resumes from the checkpoints in `work`.

    Args:
        name: one of MODELS.
        folder: where the trained model is saved, as `folder/name`.
        work: where checkpoints are kept during training.
        steps: training steps; fewer than the recipe's give a weaker model. None: the recipe's.
        rare: sampling weights of dialects that the mapper sees less often as a target (see `mapper_example`).
        on_step: called after every step with its number and its metrics.
    """

    from dartune.data.chat_template import Renderer
    from dartune.models.loading import save_model
    from dartune.train.loop import LoopConfig, train

    recipe = replace(RECIPES[name], steps=steps or RECIPES[name].steps)
    tokenizer = build_tokenizer()
    renderer = Renderer(tokenizer)
    model = build_model(recipe, len(tokenizer), renderer.end_id, seed=MODELS.index(name))
    example = partial(mapper_example, rare=rare) if name == "mapper" else target_example
    config = LoopConfig(
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=50,
        decay=0.4,
        weight_decay=0.01,
        checkpoint_every=100,
        optimizer="muon",
    )
    train(model, Pretraining(name, renderer, recipe, example), config, work, on_step=on_step)
    save_model(model.bfloat16(), tokenizer, folder / name)
    return folder / name
