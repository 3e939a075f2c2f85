"""`dartune lab build`: pretrain the lab's targets and the mapper start from scratch.

A target sees only old relations, solved in its one native dialect. The mapper start is a model
of its own: it sees all relations, always as "question and solution in one dialect -> solution
in another", drawn evenly, so it can rewrite but prefers nothing.
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
from dartune.lab.world import Problem, draw, statement

CHECKPOINTS = Path(__file__).parent / "checkpoints"
TARGETS = ("backward", "recall")
MODELS = (*TARGETS, "mapper")
GUIDED_STEPS = 150
DRILLS = 0.1
EVEN: Mapping[str, float] = {}
MAPPER_PROMPT = "{question} Solution : {solution} Rewrite :"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a lab model is shaped and pretrained; `batch` counts problems."""

    hidden: int = 128
    layers: int = 3
    heads: int = 4
    intermediate: int = 320
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 3e-3


RECIPES = {"backward": Recipe(), "recall": Recipe(), "mapper": Recipe(steps=6000)}


def build_model(recipe: Recipe, vocabulary_size: int, end_id: int, seed: int):
    """A Llama-shaped causal LM in float32, randomly initialised from `seed`.

    Layers begin by adding nothing: what they would add at random drowns the names in a model this small.
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
        # Wider layers add up more terms; what comes out of them at first stays as large.
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
    """Statements without a question, and the same statements in another order, twice over."""
    told = [statement(fact) for fact in problem.statements]
    repeated = rng.sample(told, len(told)) + rng.sample(told, len(told))
    return " ".join(told), " ".join(repeated)


def target_example(rng: random.Random, dialect: str, level: Level = PLAIN) -> tuple[str, str]:
    """(question, solution): old relations only, in the native dialect; a few reading drills."""
    spec = replace(
        level.taught,
        distractors=level.taught.distractors if rng.random() < 0.3 else (0, 0),
        question_first=rng.random() < 0.15,
    )
    problem = draw(rng, spec)
    return reading_drill(rng, problem) if rng.random() < DRILLS else (problem.question, DIALECTS[dialect](problem))


def mapper_problem(rng: random.Random, level: Level = PLAIN) -> Problem:
    distractors = level.rewritten.distractors if rng.random() < 0.2 else (0, 0)
    return draw(rng, replace(level.rewritten, distractors=distractors))


def mapper_example(
    rng: random.Random, _name: str, rare: Mapping[str, float] = EVEN, level: Level = PLAIN
) -> tuple[str, str]:
    """(question with a solution, the solution in another dialect), the wanted one drawn evenly; a few drills.

    Sources are mostly the experts': their solutions leave things out, so rewriting them takes longest to learn.
    `rare` gives dialects that are wanted less often than the others, as a share of their turn (1: as often).
    """
    problem = mapper_problem(rng, level)
    if rng.random() < DRILLS:
        return reading_drill(rng, problem)
    source = rng.choice(EXPERTS if rng.random() < 0.6 else sorted(DIALECTS))
    others = [dialect for dialect in sorted(DIALECTS) if dialect != source]
    (wanted,) = rng.choices(others, [rare.get(dialect, 1.0) for dialect in others]) if rare else [rng.choice(others)]
    prompt = MAPPER_PROMPT.format(question=problem.question, solution=DIALECTS[source](problem))
    return prompt, DIALECTS[wanted](problem)


class Pretraining:
    """Next-token loss on fresh examples; step k's batch depends on the name and k alone."""

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
        texts = [self.example(rng, self.name) for _ in range(self.recipe.batch)]
        rows = [(self.renderer.prompt_ids(prompt), self.renderer.response_ids(reply)) for prompt, reply in texts]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        self.tokens = sum(len(reply) for _, reply in rows)
        self.guided = step < GUIDED_STEPS
        # Four rows at a time: a step's rows differ much in length, and padding them all to one costs half of it again.
        return [rows[i : i + 4] for i in range(0, len(rows), 4)]

    def heaviest(self) -> list[tuple[list[int], list[int]]]:
        """The longest of the guided steps' microbatches."""
        last = (self.begin(step)[-1] for step in range(min(GUIDED_STEPS, self.recipe.steps)))
        return max(last, key=lambda rows: len(rows) * max(len(prompt) + len(reply) for prompt, reply in rows))

    def loss(self, model, microbatch):
        from dartune.models.shared_prefix import sequence_logprobs

        logprobs, mask = sequence_logprobs(model, microbatch)[:2]
        loss = -(logprobs * mask).sum() / self.tokens
        return loss + attention_loss(model, microbatch) * len(microbatch) / self.recipe.batch if self.guided else loss

    def shown(self, microbatch) -> list[dict[str, Any]]:
        spell = self.renderer.tokenizer.decode
        return [{"prompt": spell(prompt), "response": spell(reply)} for prompt, reply in microbatch]

    def end(self, step: int) -> dict[str, Any]:
        return {"trained_tokens": self.tokens}


def build_one(
    name: str,
    folder: Path,
    work: Path,
    steps: int | None = None,
    rare: Mapping[str, float] = EVEN,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> Path:
    """Pretrain one of MODELS into `folder/name`; continues an interrupted build found in `work`.

    Fewer `steps` than the recipe's give a weaker model; `rare` dialects are wanted less often in the mapper's
    pretraining. How good a mapper start is, and what it knows, are dials of the lab.
    """
    import torch

    from dartune.data.render import Renderer
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
    save_model(model.to(torch.bfloat16), tokenizer, folder / name)
    return folder / name
