"""`dartune check-reward`: the configured reward against honest and hacked rewrites.

Without a target only what reads text is tried: the gates and the text penalties. With one, the whole reward is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from dartune.config import Config
from dartune.lab import source as lab
from dartune.lab.dialects import DIALECTS
from dartune.lab.suites import demonstrate
from dartune.lab.world import draw_many
from dartune.progress import Progress
from dartune.rewards.alignment import Reference, answer_threshold
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.hacks import INSTRUCTION, STRANGERS
from dartune.rewards.items import GateThresholds
from dartune.rewards.references import references_from, source_answer, source_stats
from dartune.rewards.reward import alignment_score, build_reward
from dartune.rewards.text import known_names
from dartune.rewards.trial import HONEST, SHIPPED, Fixture, attacked, load_fixtures, score_fixtures, table

LAB_QUESTIONS = 64


class WordRenderer:
    """Words, digits and marks as tokens, for rewards that no model takes part in; stands in for `Renderer`."""

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
    """Finds every text certain: a reward then depends on its gates and on what penalties read in the text."""

    generated_tokens = scored_tokens = 0

    def score(self, pairs):
        return [[0.0] * len(completion) for _, completion in pairs]


def check_reward(config: Config, fixtures: str | None, *, with_target: bool) -> str:
    """Try the config's reward; `fixtures` is a file, `lab:<expert>`, or None for the shipped English ones.

    Returns:
        A table: per hack the pairwise accuracy, and what share of honest rewrites passes.

    Raises:
        InputError: the fixtures, the target or a part of the reward cannot be used.
    """
    if with_target:
        from dartune.roster import Roster

        roster = Roster(config)
        roster.check()
        target, renderer, context = roster.target_engine, roster.renderer, roster.context
    else:
        target, renderer, context = NoTarget(), WordRenderer(), None
    rows = _lab_fixtures(fixtures, config.target.path) if fixtures and lab.is_lab(fixtures) else None
    rows = rows or load_fixtures(Path(fixtures) if fixtures else SHIPPED)
    rows = [*rows, *attacked(rows)]
    prompt = config.mapper.prompt.replace("{question}", " ").replace("{solution}", " ")
    thresholds = GateThresholds(
        quantity_coverage=config.reward.quantity_coverage,
        entity_coverage=config.reward.entity_coverage,
        answer_logprob=config.reward.answer_logprob,
        max_repeats=config.reward.max_repeats,
        leak_phrases=config.reward.leak_phrases,
        names=known_names((f.demonstration.question, f.demonstration.solution) for f in rows) | frozenset(STRANGERS),
        instruction=f"{prompt} {INSTRUCTION}",
    )
    if config.reward.length_band:
        low, high = config.reward.length_band
        thresholds = replace(thresholds, length_low=low, length_high=high)
    references, answers = _references(config, rows, target, renderer, with_target)
    if config.reward.answer_logprob is None:
        thresholds = replace(thresholds, answer_logprob=answer_threshold((), answers))
    with AnswerChecker() as checker:
        reward = build_reward(config.reward, target, renderer, checker, thresholds, references)
        if not with_target:
            return table(rows, score_fixtures(rows, reward, renderer, context))
        with Progress(len(rows), "check-reward, rewrites") as progress:
            scored = score_fixtures(rows, reward, renderer, context, progress.update)
        return "\n".join([table(rows, scored), *reward.limits()])


def _references(
    config: Config, rows: Sequence[Fixture], target, renderer, with_target: bool
) -> tuple[dict[str, Reference], list[float]]:
    """The references, and the log-probabilities of the sources' answers.

    Without a target every source is one unit of alignment behind every rewrite.
    """
    known = {fixture.demonstration.id: fixture.demonstration for fixture in rows}
    score = alignment_score(config.reward)
    stats = source_stats(target, renderer, list(known.values()), score)
    found = references_from(list(known.values()), stats, score)
    answers = [source_answer(row, one.logprobs, renderer) for row, one in zip(known.values(), stats, strict=True)]
    honest: dict[str, list[int]] = {name: [] for name in found}
    for fixture in rows:
        if fixture.label == HONEST:
            honest[fixture.demonstration.id].append(len(renderer.response_ids(fixture.rewrite)))
    references = {
        name: replace(
            own,
            expected_tokens=max(own.length, int(median(honest[name] or [0]))),
            source_alignment=own.source_alignment if with_target else -1.0,
        )
        for name, own in found.items()
    }
    return references, [answer for answer in answers if answer is not None]


def _lab_fixtures(address: str, target: str) -> list[Fixture]:
    """Native solutions of the lab's target (`backward` for any other) as honest rewrites of an expert's."""
    native = target.removeprefix(lab.PREFIX)
    native = native if native in DIALECTS else "backward"
    level, expert = lab.world(address)
    problems = draw_many("check-reward", level.demonstrated, LAB_QUESTIONS)
    sources = demonstrate(problems, expert)
    honest = demonstrate(problems, native)
    return [Fixture(row, HONEST, own.solution) for row, own in zip(sources, honest, strict=True)]
