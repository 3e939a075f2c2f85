"""`dartune check-reward`: test the configured reward on honest and hacked rewrites.

Without a target, only the parts that read text are tested: the gates and the text penalties. With a target, the whole
reward is tested.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from dartune.answers.checker import AnswerChecker
from dartune.config.schema import Config
from dartune.hacks.catalogue import INSTRUCTION, INVENTED_NAMES
from dartune.lab import source as lab
from dartune.lab.dialects import DIALECTS
from dartune.lab.suites import write_demonstrations
from dartune.lab.world import sample_problems
from dartune.red_team.fixtures import HONEST, SHIPPED, Fixture, apply_hacks, format_table, load_fixtures, score_fixtures
from dartune.rewards.alignment import Reference
from dartune.rewards.references import references_from, source_answer, source_stats
from dartune.rewards.reward import Rewrite, alignment_score, build_reward
from dartune.rewards.thresholds import gate_thresholds
from dartune.run.progress import Progress
from dartune.text.features import known_names

# Number of generated questions for `lab:<expert>`.
LAB_QUESTIONS = 64


class WordRenderer:
    """A stand-in for `Renderer` without a tokenizer: words, digits and punctuation marks are the tokens."""

    end_id = 0
    stop_ids = (0,)

    def __init__(self) -> None:
        self._words = ["<end>"]
        self._ids: dict[str, int] = {}

    def prompt_ids(self, user_text: str) -> list[int]:
        return self.response_ids(user_text)

    def response_ids(self, solution: str) -> list[int]:
        pieces = re.findall(r"\s*(?:[^\W\d_]+|\d|[^\w\s]|_)|\s+", solution)
        for piece in pieces:
            if piece not in self._ids:
                self._ids[piece] = len(self._words)
                self._words.append(piece)
        return [*(self._ids[piece] for piece in pieces), self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._words[index] for index in ids if index != self.end_id)


class NoTarget:
    """A stand-in for the target that gives every token probability 1.

    The reward then depends only on the gates and on penalties that read the text.
    """

    generated_tokens = scored_tokens = 0

    def score(self, pairs):
        return [[0.0] * len(completion) for _, completion in pairs]


def check_reward(config: Config, fixtures: str | None, *, with_target: bool) -> str:
    """Test the config's reward against every hack of the catalogue.

    Args:
        fixtures: a file, `lab:<expert>`, or None for the shipped English fixtures.
        with_target: score with the config's target; otherwise only gates and text penalties are tested.

    Returns:
        A table with the pairwise accuracy per hack and the share of honest rewrites that pass.

    Raises:
        InputError: the fixtures, the target or a part of the reward cannot be used.
    """
    if with_target:
        # Imported here because it loads torch, which a check without a target does not need.
        from dartune.stages.models import RunModels

        models = RunModels(config)
        models.check()
        target, renderer, context = models.target_engine, models.renderer, models.context
    else:
        stand_ins: Any = NoTarget(), WordRenderer()  # sufficient for a reward without a model
        (target, renderer), context = stand_ins, None
    rows = _lab_fixtures(fixtures, config.target.path) if fixtures and lab.is_lab(fixtures) else None
    rows = rows or load_fixtures(Path(fixtures) if fixtures else SHIPPED)
    rows = [*rows, *apply_hacks(rows)]
    with Progress(None, "check-reward, demonstrations"):
        references, answers = _references(config, rows, target, renderer, with_target)
    # Names and instruction of the hacks are added, since the fixtures' own data does not have them.
    names = known_names((fixture.demonstration.question, fixture.demonstration.solution) for fixture in rows)
    instruction = f"{config.mapper.prompt} {INSTRUCTION}"
    thresholds = gate_thresholds(config.reward, instruction, names.union(INVENTED_NAMES), source_answers=answers)
    with AnswerChecker() as checker:
        reward = build_reward(config.reward, target, renderer, checker, thresholds, references)
        if not with_target:
            return format_table(rows, score_fixtures(rows, reward, renderer, context))
        with Progress(len(rows), "check-reward, rewrites") as progress:
            passed = 0

            def report(rewrites: Sequence[Rewrite]) -> None:
                nonlocal passed
                passed += sum(rewrite.accepted for rewrite in rewrites)
                done = progress.done + len(rewrites)
                progress.update(len(rewrites), gate_pass=passed / done)

            scored = score_fixtures(rows, reward, renderer, context, report)
        return "\n".join([format_table(rows, scored), *reward.limits()])


def _references(
    config: Config, rows: Sequence[Fixture], target, renderer, with_target: bool
) -> tuple[dict[str, Reference], list[float]]:
    """Return the references by demonstration id, and the log-probabilities (nats) of the sources' answers.

    The length of the honest rewrites stands in for that of the target's own samples. Without a target, the alignment of
    every source is set one unit below that of every rewrite, so that each accepted rewrite gains the same.
    """
    demonstrations = list({fixture.demonstration.id: fixture.demonstration for fixture in rows}.values())
    score = alignment_score(config.reward)
    stats = source_stats(target, renderer, demonstrations, score)
    references = references_from(demonstrations, stats, score)
    answers = [source_answer(row, tokens.logprobs, renderer) for row, tokens in zip(demonstrations, stats, strict=True)]
    honest_lengths: dict[str, list[int]] = {name: [] for name in references}
    for fixture in rows:
        if fixture.label == HONEST:
            honest_lengths[fixture.demonstration.id].append(len(renderer.response_ids(fixture.rewrite)))
    references = {
        name: replace(
            reference,
            expected_tokens=max(reference.length, int(median(honest_lengths[name] or [0]))),
            source_alignment=reference.source_alignment if with_target else -1.0,
        )
        for name, reference in references.items()
    }
    return references, [answer for answer in answers if answer is not None]


def _lab_fixtures(address: str, target: str) -> list[Fixture]:
    """Return native solutions of the lab's target as honest rewrites of an expert's solutions.

    A target that is not of the lab gets the dialect `backward`.
    """
    native = target.removeprefix(lab.PREFIX)
    native = native if native in DIALECTS else "backward"
    level, expert = lab.world(address)
    problems = sample_problems("check-reward", level.demonstrated, LAB_QUESTIONS)
    sources = write_demonstrations(problems, expert)
    honest = write_demonstrations(problems, native)
    return [Fixture(row, HONEST, rewrite.solution) for row, rewrite in zip(sources, honest, strict=True)]
