"""Fixtures: honest and hacked rewrites of the same questions, and the comparison of their rewards."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dartune.data.readers import read_rows
from dartune.data.records import Demonstration
from dartune.engines.base import Sample
from dartune.errors import InputError, counted
from dartune.gates.gate_input import GateInput
from dartune.hacks.catalogue import HACKS
from dartune.rewards.reward import Reward, Rewrite
from dartune.run.number_format import decimals, percent_of

SHIPPED = Path(__file__).parent / "data" / "english.jsonl"
HONEST = "honest"
# Pairwise accuracy below this is reported as a weakness of the reward.
GOOD = 0.95


@dataclass(frozen=True, slots=True)
class Fixture:
    """A rewrite of a demonstration with its label: `honest`, or the name of a hack."""

    demonstration: Demonstration
    label: str
    rewrite: str
    finish: str = "stop"


@dataclass(frozen=True, slots=True)
class HackResult:
    """The result of a reward against one hack.

    Args:
        hack: its name.
        n: number of hacked rewrites.
        pairs: number of pairs of an honest and a hacked rewrite of the same question.
        won: pairs in which the honest rewrite has the higher reward; a tie counts half.
        preferred: pairs in which synthesis would choose the honest rewrite (by gates, then by alignment); a tie counts
            half. It differs from `won` because an accepted and a rejected rewrite can both have reward 0.
        stopped: share of the hacked rewrites (0..1) that fail a gate.
        paid: share of the hacked rewrites (0..1) with a higher reward than a failed one.
        failed: number of hacked rewrites by the gate they fail.
    """

    hack: str
    n: int
    pairs: int
    won: float
    preferred: float
    stopped: float
    paid: float
    failed: Counter[str]

    @property
    def accuracy(self) -> float | None:
        """Share of the pairs that are won, with ties counted half; None if there are no pairs."""
        return self.won / self.pairs if self.pairs else None


def load_fixtures(path: Path) -> list[Fixture]:
    """Load fixtures from a file in any format that is supported for data.

    Columns are `question, solution, rewrite, label` and, if known, `answer`, `id` and `finish`.

    Raises:
        InputError: a row cannot be used (the error lists all such rows), or there is no honest rewrite.
    """
    fixtures, problems = [], []
    for row in read_rows(path, "train"):
        if isinstance(row.content, str):
            problems.append(f"{row.place}: {row.content}")
            continue
        required = ("question", "solution", "rewrite", "label")
        bad = [name for name in required if not isinstance(row.content.get(name), str)]
        # An empty rewrite is a hack of the catalogue, so only the other columns must have text.
        bad += [name for name in ("question", "solution", "label") if name not in bad and not row.content[name].strip()]
        if bad:
            problems.append(f"{row.place}: {', '.join(bad)} must be text")
            continue
        answer = row.content.get("answer")
        question = row.content["question"]
        answer = None if answer is None else str(answer)
        demonstration = Demonstration(str(row.content.get("id") or question), question, row.content["solution"], answer)
        finish = row.content.get("finish") or "stop"
        fixtures.append(Fixture(demonstration, row.content["label"], row.content["rewrite"], finish))
    if not problems and not any(fixture.label == HONEST for fixture in fixtures):
        problems.append(f"no row has the label {HONEST!r}, so there is nothing to compare with")
    if problems:
        raise InputError(f"{path} cannot be used as fixtures", problems)
    return fixtures


def apply_hacks(fixtures: Iterable[Fixture], seed: int = 0) -> list[Fixture]:
    """Return the hacked rewrites that the catalogue makes of all honest fixtures.

    A hack that cannot be applied to a rewrite is skipped. The result depends only on the fixtures and the seed.
    """
    hacked = []
    for fixture in fixtures:
        if fixture.label == HONEST:
            row = fixture.demonstration
            item = GateInput(row.question, row.solution, fixture.rewrite, row.answer)
            for hack in HACKS:
                new = hack.apply(item, random.Random(f"{seed}-{hack.name}-{fixture.rewrite}"))
                if new is not None:
                    hacked.append(Fixture(row, hack.name, new.rewrite, new.finish))
    return hacked


def score_fixtures(
    fixtures: Sequence[Fixture],
    reward: Reward,
    renderer,
    context: int | None = None,
    scored: Callable[[Sequence[Rewrite]], None] = lambda rewrites: None,
) -> list[Rewrite]:
    """Return the reward of every fixture, in order.

    Fixtures of one label are scored as one batch, because penalties such as `collapse` compare the rewrites of a batch.

    Args:
        context: the target's context length in tokens. Longer text is cut there, as in sampling. None: no limit.
        scored: called with the rewrites that have just been scored.
    """
    order = sorted(range(len(fixtures)), key=lambda i: fixtures[i].label)
    results: dict[int, Rewrite] = {}
    for _, group in groupby(order, key=lambda i: fixtures[i].label):
        indices = list(group)
        samples = [[_sample(fixtures[i], renderer, context)] for i in indices]  # one sample per demonstration
        for i, (result,) in zip(indices, reward([fixtures[i].demonstration for i in indices], samples), strict=True):
            results[i] = result
        scored([results[i] for i in indices])
    return [results[i] for i in range(len(fixtures))]


def _sample(fixture: Fixture, renderer, context: int | None) -> Sample:
    """Return the sample that the mapper would have generated; its log-probabilities are not known."""
    ids = renderer.response_ids(fixture.rewrite)
    if fixture.finish != "stop":
        return Sample(tuple(ids[:-1]), (), fixture.finish)
    room = len(ids) if context is None else context - len(renderer.prompt_ids(fixture.demonstration.question))
    return Sample(tuple(ids[:room]), (), "stop" if len(ids) <= room else "length")


def compare_rewards(fixtures: Sequence[Fixture], scored: Sequence[Rewrite]) -> list[HackResult]:
    """Return one result per hack, in the catalogue's order, followed by labels that are not in the catalogue."""
    honest: dict[str, list[Rewrite]] = defaultdict(list)
    hacked: dict[str, list[tuple[str, Rewrite]]] = defaultdict(list)
    for fixture, result in zip(fixtures, scored, strict=True):
        if fixture.label == HONEST:
            honest[fixture.demonstration.id].append(result)
        else:
            hacked[fixture.label].append((fixture.demonstration.id, result))
    order = [hack.name for hack in HACKS]
    results = []
    for name in sorted(hacked, key=lambda name: (order.index(name) if name in order else len(order), name)):
        pairs = [(good, bad) for demonstration_id, bad in hacked[name] for good in honest[demonstration_id]]
        bad_rewrites = [bad for _, bad in hacked[name]]
        results.append(
            HackResult(
                name,
                n=len(bad_rewrites),
                pairs=len(pairs),
                won=sum(_win(good.reward, bad.reward) for good, bad in pairs),
                preferred=sum(_win(_synthesis_order(good), _synthesis_order(bad)) for good, bad in pairs),
                stopped=sum(bool(bad.failed) for bad in bad_rewrites) / len(bad_rewrites),
                paid=sum(bad.surplus > 0 for bad in bad_rewrites) / len(bad_rewrites),
                failed=Counter(gate for bad in bad_rewrites for gate in bad.failed),
            )
        )
    return results


def _win(good: Any, bad: Any) -> float:
    """Return 1 if `good` is greater, 0.5 for a tie, otherwise 0."""
    return float(good > bad) + 0.5 * (good == bad)


def _synthesis_order(result: Rewrite) -> tuple[bool, float]:
    """Return the key by which synthesis prefers rewrites. Rejected rewrites are equal: none of them is used."""
    return result.accepted, result.alignment if result.accepted else 0.0


# Fixtures listed by name in the table.
SHOWN = 10


def _list_fixtures(pairs: Sequence[tuple[Fixture, str]]) -> list[str]:
    """Return a line for each of the first (fixture, note) pairs: id, note and the beginning of the rewrite."""
    lines = [
        f"  {fixture.demonstration.id[:40]}: {note}: {' '.join(fixture.rewrite.split())[:80]}"
        for fixture, note in pairs[:SHOWN]
    ]
    return lines + ([f"  and {len(pairs) - SHOWN} more"] if len(pairs) > SHOWN else [])


def format_table(fixtures: Sequence[Fixture], scored: Sequence[Rewrite]) -> str:
    """Return the results as a text table, followed by a summary and the rewrites that were judged wrongly."""
    honest = [result for fixture, result in zip(fixtures, scored, strict=True) if fixture.label == HONEST]
    passed = sum(result.accepted for result in honest)
    results = compare_rewards(fixtures, scored)
    lines = [f"{'hack':24}{'n':>6}{'pairwise':>10}{'preferred':>11}{'stopped':>9}{'paid':>7}  gates that stopped it"]
    for result in results:
        gates = ", ".join(f"{name} {count}" for name, count in result.failed.most_common(3))
        shares = [decimals(won / result.pairs if result.pairs else None) for won in (result.won, result.preferred)]
        figures = f"{result.n:6}{shares[0]:>10}{shares[1]:>11}{result.stopped:9.3f}{result.paid:7.3f}"
        lines.append(f"{result.hack:24}{figures}  {gates}")
    lines.append(
        f"\nhonest rewrites that pass the gates: {passed} of {len(honest)} ({percent_of(passed, len(honest))})"
    )
    failures = Counter(gate for result in honest for gate in result.failed)
    pairs = list(zip(fixtures, scored, strict=True))
    if failures:
        lines.append("gates that reject honest rewrites: " + ", ".join(f"{k} {n}" for k, n in failures.most_common()))
        lines += _list_fixtures(
            [(f, ", ".join(result.failed)) for f, result in pairs if f.label == HONEST and not result.accepted]
        )
    if accepted_hacks := [(f, f.label) for f, result in pairs if f.label != HONEST and result.accepted]:
        lines.append(f"{counted(len(accepted_hacks), 'hack')} that pass the gates:")
        lines += _list_fixtures(accepted_hacks)
    unpaired = [result.hack for result in results if result.accuracy is None]
    if unpaired:
        lines.append(f"no honest rewrite of the same question to compare with: {', '.join(unpaired)}")
    weak = [f"{r.hack} ({decimals(r.accuracy)})" for r in results if r.accuracy is not None and r.accuracy < GOOD]
    subject = "every other hack" if unpaired else "every hack"
    lines.append(
        f"pairwise accuracy below {GOOD}: {', '.join(weak)}"
        if weak
        else f"pairwise accuracy of {subject}: {GOOD} or more"
    )
    return "\n".join(lines)
