"""Putting a reward to the test: honest rewrites against hacked ones of the same question."""

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
from dartune.errors import InputError, counted
from dartune.models.engine import Sample
from dartune.rewards.hacks import HACKS
from dartune.rewards.items import GateInput
from dartune.rewards.reward import Reward, Scored

SHIPPED = Path(__file__).parent / "fixtures" / "english.jsonl"
HONEST = "honest"
GOOD = 0.95


@dataclass(frozen=True, slots=True)
class Fixture:
    """A rewrite of a demonstration with what it is: `honest`, or the name of a hack."""

    demonstration: Demonstration
    label: str
    rewrite: str
    finish: str = "stop"


@dataclass(frozen=True, slots=True)
class HackResult:
    """How a reward fared against one hack.

    `pairs` are all pairs of an honest and a hacked rewrite of one question; `won` counts those in which the honest one
    is worth more, and half of the ties; `preferred` those in which synthesis would choose it (the gates first, then the
    alignment). `stopped` is the share of the `n` hacked rewrites that fail a gate, `paid` of those that earn more than
    a failure; `failed` counts the gates.
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
        """Share of the pairs that are won, ties half; None where there are none."""
        return self.won / self.pairs if self.pairs else None


def load_fixtures(path: Path) -> list[Fixture]:
    """Rows of `question, solution, rewrite, label` and, if known, `answer`, `id`, `finish`, in any format read as data.

    Raises:
        InputError: rows that cannot be used, all of them; or no honest rewrite among them.
    """
    fixtures, problems = [], []
    for row in read_rows(path, "train"):
        if isinstance(row.content, str):
            problems.append(f"{row.place}: {row.content}")
            continue
        wanted = ("question", "solution", "rewrite", "label")
        bad = [name for name in wanted if not isinstance(row.content.get(name), str)]
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


def attacked(fixtures: Iterable[Fixture], seed: int = 0) -> list[Fixture]:
    """Every honest fixture, attacked with every hack of the catalogue that finds an occasion in it."""
    made = []
    for fixture in fixtures:
        if fixture.label == HONEST:
            row = fixture.demonstration
            item = GateInput(row.question, row.solution, fixture.rewrite, row.answer)
            for hack in HACKS:
                new = hack.apply(item, random.Random(f"{seed}-{hack.name}-{fixture.rewrite}"))
                if new is not None:
                    made.append(Fixture(row, hack.name, new.rewrite, new.finish))
    return made


def score_fixtures(
    fixtures: Sequence[Fixture],
    reward: Reward,
    renderer,
    context: int | None = None,
    scored: Callable[[int], None] = lambda n: None,
) -> list[Scored]:
    """The reward of every fixture, in order; those of one label go together, so that a batch is one way of writing.

    Args:
        context: what does not fit into the target's context (tokens) is cut there, as sampling would have cut it.
        scored: called with how many fixtures have just been scored.
    """
    order = sorted(range(len(fixtures)), key=lambda i: fixtures[i].label)
    found: list[Scored | None] = [None] * len(fixtures)
    for _, group in groupby(order, key=lambda i: fixtures[i].label):
        places = list(group)
        samples = [[_sample(fixtures[i], renderer, context)] for i in places]
        for i, (one,) in zip(places, reward([fixtures[i].demonstration for i in places], samples), strict=True):
            found[i] = one
        scored(len(places))
    return found


def _sample(fixture: Fixture, renderer, context: int | None) -> Sample:
    """What the mapper would have had to sample; its own log-probabilities are not known."""
    ids = renderer.response_ids(fixture.rewrite)
    if fixture.finish != "stop":
        return Sample(tuple(ids[:-1]), (), fixture.finish)
    room = len(ids) if context is None else context - len(renderer.prompt_ids(fixture.demonstration.question))
    return Sample(tuple(ids[:room]), (), "stop" if len(ids) <= room else "length")


def compare(fixtures: Sequence[Fixture], scored: Sequence[Scored]) -> list[HackResult]:
    """One result per hack, in the catalogue's order, then labels that are not in it."""
    honest: dict[str, list[Scored]] = defaultdict(list)
    hacked: dict[str, list[tuple[str, Scored]]] = defaultdict(list)
    for fixture, item in zip(fixtures, scored, strict=True):
        if fixture.label == HONEST:
            honest[fixture.demonstration.id].append(item)
        else:
            hacked[fixture.label].append((fixture.demonstration.id, item))
    order = [hack.name for hack in HACKS]
    results = []
    for name in sorted(hacked, key=lambda name: (order.index(name) if name in order else len(order), name)):
        pairs = [(good, item) for owner, item in hacked[name] for good in honest[owner]]
        items = [item for _, item in hacked[name]]
        results.append(
            HackResult(
                name,
                n=len(items),
                pairs=len(pairs),
                won=sum(_won(good.reward, bad.reward) for good, bad in pairs),
                preferred=sum(_won(_preference(good), _preference(bad)) for good, bad in pairs),
                stopped=sum(bool(item.failed) for item in items) / len(items),
                paid=sum(item.surplus > 0 for item in items) / len(items),
                failed=Counter(gate for item in items for gate in item.failed),
            )
        )
    return results


def _won(good: Any, bad: Any) -> float:
    return float(good > bad) + 0.5 * (good == bad)


def _preference(item: Scored) -> tuple[bool, float]:
    return item.accepted, item.alignment if item.accepted else 0.0


SHOWN = 10


def _shown(pairs: Sequence[tuple[Fixture, str]]) -> list[str]:
    """The first fixtures by id, with what is said of each and the beginning of its rewrite."""
    lines = [f"  {f.demonstration.id[:40]}: {said}: {' '.join(f.rewrite.split())[:80]}" for f, said in pairs[:SHOWN]]
    return lines + ([f"  and {len(pairs) - SHOWN} more"] if len(pairs) > SHOWN else [])


def table(fixtures: Sequence[Fixture], scored: Sequence[Scored]) -> str:
    """The results as text, and what they come to."""
    honest = [item for fixture, item in zip(fixtures, scored, strict=True) if fixture.label == HONEST]
    passed = sum(item.accepted for item in honest)
    results = compare(fixtures, scored)
    lines = [f"{'hack':24}{'n':>6}{'pairwise':>10}{'preferred':>11}{'stopped':>9}{'paid':>7}  gates that stopped it"]
    for result in results:
        gates = ", ".join(f"{name} {count}" for name, count in result.failed.most_common(3))
        shares = [f"{won / result.pairs:.3f}" if result.pairs else "-" for won in (result.won, result.preferred)]
        figures = f"{result.n:6}{shares[0]:>10}{shares[1]:>11}{result.stopped:9.3f}{result.paid:7.3f}"
        lines.append(f"{result.hack:24}{figures}  {gates}")
    lines.append(f"\nhonest rewrites that pass the gates: {passed} of {len(honest)} ({passed / len(honest):.1%})")
    refused = Counter(gate for item in honest for gate in item.failed)
    if refused:
        lines.append("honest rewrites are refused by " + ", ".join(f"{k} {n}" for k, n in refused.most_common()))
        known = zip(fixtures, scored, strict=True)
        lines += _shown([(f, ", ".join(item.failed)) for f, item in known if f.label == HONEST and not item.accepted])
    if passed_hacks := [
        (f, f.label) for f, item in zip(fixtures, scored, strict=True) if f.label != HONEST and item.accepted
    ]:
        lines.append(f"{counted(len(passed_hacks), 'hack')} that pass the gates:")
        lines += _shown(passed_hacks)
    alone = [result.hack for result in results if result.accuracy is None]
    if alone:
        lines.append(f"no honest rewrite of the same question to compare with: {', '.join(alone)}")
    weak = [f"{r.hack} ({r.accuracy:.3f})" for r in results if r.accuracy is not None and r.accuracy < GOOD]
    every = "every other hack" if alone else "every hack"
    lines.append(
        f"pairwise accuracy below {GOOD}: {', '.join(weak)}" if weak else f"{every} at {GOOD} or above, pairwise"
    )
    return "\n".join(lines)
