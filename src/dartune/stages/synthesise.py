"""Synthesis: the trained mapper rewrites every demonstration; the best accepted candidate is kept.

The gate is the one of mapper training. A row whose candidates all fail goes down the fallback
ladder; whatever it becomes, its provenance and the reason are recorded. No row is lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dartune import processes
from dartune.config import SynthesiseConfig
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.data.rows import Rows, Spool, open_rows, write_rows
from dartune.models.engine import COUNTED, Engine, SampleSpec
from dartune.progress import Progress
from dartune.rewards.reward import Reward, Scored
from dartune.rewards.text import same_text
from dartune.run import Cost
from dartune.train.mapper import mapper_prompt

CHUNK = 32
STRANGEST = 5  # percent of the demonstrations; less natural than these is no solution that is worth training on


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a row can become: a text, its alignment, and what the reward and the gates said of it."""

    text: str
    alignment: float
    reward: dict[str, float]
    gates: dict[str, bool]
    logprobs: Sequence[float]
    ids: Sequence[int]
    surplus: float = 0.0
    hacks: Sequence[str] = ()


def synthesise(
    demonstrations: Sequence[Demonstration],
    probed: Sequence[dict[str, Any]],
    mapper: Engine,
    target: Engine,
    reward: Reward,
    renderer: Renderer,
    config: SynthesiseConfig,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    path: Path,
    progress: Progress | None = None,
    spent: Callable[[], Cost] = Cost,
) -> Rows[dict[str, Any]]:
    """Append one adapted row per demonstration to `path`; rows already there are kept, not redone, and not read.

    A chunk's samples depend on its place and the seed alone, so a resumed synthesis ends with the
    rows of an uninterrupted one. `spent` says what the engines spent so far; a chunk's first row keeps the chunk's.
    """
    done = processes.agreed(_kept(path, demonstrations) if processes.is_first() else 0)
    if progress and done:
        progress.advance_to(done)
    written = rewritten = 0
    with Spool(path if processes.is_first() else None) as spool:
        # Where all rows are there, the last chunk, if it is short, must not be begun again.
        first = done // CHUNK * CHUNK if done < len(demonstrations) else done
        for low in range(first, len(demonstrations), CHUNK):
            chunk = list(demonstrations[low : low + CHUNK])
            spec = SampleSpec(
                config.samples,
                max_new_tokens,
                config.temperature,
                renderer.stop_ids,
                seed * 1_000_003 + 500_000 + low,
            )
            prompts = [renderer.prompt_ids(mapper_prompt(prompt, row)) for row in chunk]
            before = spent()
            rungs = {"rewrite": reward(chunk, mapper.generate(prompts, spec))}
            if "guided" in config.ladder:
                rungs["guided"] = reward(chunk, target.generate(prompts, spec))
            cost = {name: getattr(spent(), name) - getattr(before, name) for name in COUNTED}
            for index in range(max(0, done - low), len(chunk)):
                tried = {rung: groups[index] for rung, groups in rungs.items()}
                row = adapted_row(chunk[index], probed[low + index], tried, config.ladder, renderer)
                spool.add(row | {"spent": {} if index else cost})
                written, rewritten = written + 1, rewritten + (row["provenance"] == "rewrite")
            spool.keep()
            if progress:
                progress.update(low + len(chunk) - max(low, done), rewritten=rewritten / written)
    write_rows(path, settled(open_rows(path)) if processes.is_first() else ())
    processes.wait()
    return open_rows(path)


def _kept(path: Path, demonstrations: Sequence[Demonstration]) -> int:
    """Rows that an earlier attempt left; those of other demonstrations are removed."""
    rows = open_rows(path) if path.exists() else []
    count = len(rows)
    if count and (count > len(demonstrations) or rows[-1]["id"] != demonstrations[count - 1].id):
        path.unlink()
        return 0
    return count


def synthesis_cost(rows: Iterable[dict[str, Any]]) -> Cost:
    """What all attempts that these rows come from spent on them."""
    return sum((Cost(**row["spent"]) for row in rows), Cost())


def settled(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, what stayed an original judged by how the demonstrations suit the target on the whole.

    They suit it where most rows for which some solution was accepted have none that is worth more than the original:
    then originals are `natural`. Otherwise originals are not trained on (a few of an unnatural kind teach the target to
    use that kind for the questions like theirs, the hardest). There an accepted solution is taken though the original
    seemed likelier, for what it competes with is no row at all; but none that is stranger to the target than nearly all
    demonstrations are.
    """
    left = ("natural", "original", "dropped")
    judged, kept, before = 0, 0, array("d")
    for row in rows:
        before.append(row["alignment_before"])
        judged += bool(row["accepted"])
        kept += bool(row["accepted"]) and row["provenance"] in left
    if 2 * kept > judged:
        yield from (row | {"provenance": "natural"} if row["provenance"] == "original" else row for row in rows)
        return
    floor = np.percentile(before, STRANGEST)

    def taken(row: dict[str, Any]) -> bool:
        second = row["runner_up"]
        return row["provenance"] in left and second is not None and second["alignment_after"] >= floor

    yield from (row | row["runner_up"] if taken(row) else row for row in rows)


def adapted_row(
    demonstration: Demonstration,
    probe: dict[str, Any],
    tried: dict[str, list[Scored]],
    ladder: Sequence[str],
    renderer: Renderer,
) -> dict[str, Any]:
    """Take the first rung of the ladder that holds; "original" always does, an exhausted ladder drops the row.

    A rung holds where an accepted candidate is worth more than a failure; the best paid is kept, the first of equals.
    """
    reasons: list[str] = []
    accepted: list[tuple[str, Candidate]] = []
    kept = ("dropped", None)
    for rung in ladder:
        if rung == "original":
            kept = ("original", _original(demonstration, probe, renderer))
            break
        candidates = _own(probe) if rung == "own" else [_candidate(item) for item in tried[rung] if item.accepted]
        accepted += [(rung, item) for item in candidates]
        best = max(candidates, key=lambda item: item.surplus, default=None)
        if best is not None and best.surplus > 0:
            row = _row(demonstration, probe, rung, best, "; ".join(reasons), tried)
            others = dict.fromkeys(item.text for item in candidates if item.surplus > 0 and item.text != best.text)
            return row | {"alternatives": list(others), "accepted": len(accepted), "runner_up": None}
        reasons.append(f"{rung}: {_why_none(rung, candidates, demonstration.solution, tried)}")
    reason = "; ".join(reasons)
    second = max(accepted, key=lambda item: item[1].alignment, default=None)
    runner_up = _row(demonstration, probe, *second, reason, tried) if second else None
    return _row(demonstration, probe, *kept, reason, tried) | {"accepted": len(accepted), "runner_up": runner_up}


def _candidate(item: Scored) -> Candidate:
    parts = {"reward": item.reward, "gain": item.gain} | item.penalties
    return Candidate(item.text, item.alignment, parts, item.gates, item.logprobs, item.ids, item.surplus, item.hacks)


def _own(probe: dict[str, Any]) -> list[Candidate]:
    return [
        Candidate(
            own["text"],
            own["alignment"],
            dict.fromkeys(("reward", "gain"), own["alignment"] - probe["source_alignment"]),
            own["gates"],
            own["logprobs"],
            own["ids"],
            own["alignment"] - probe["source_alignment"],
        )
        for own in probe["own"]
    ]


def _original(demonstration: Demonstration, probe: dict[str, Any], renderer: Renderer) -> Candidate:
    ids = renderer.response_ids(demonstration.solution)
    parts = {"reward": 0.0, "gain": 0.0}
    return Candidate(demonstration.solution, probe["source_alignment"], parts, {}, probe["source_logprobs"], ids)


def _why_none(rung: str, accepted: Sequence[Candidate], source: str, tried: dict[str, list[Scored]]) -> str:
    if accepted:
        copies = sum(same_text(item.text, source) for item in accepted)
        note = f" ({copies} of them its verbatim copies)" if copies else ""
        return f"{len(accepted)} passed the gate, none is worth more than the original{note}"
    if rung == "own":
        return "the target has no verified sample of its own"
    counts: dict[str, int] = {}
    for item in tried[rung]:
        for name in item.failed:
            counts[name] = counts.get(name, 0) + 1
    failed = ", ".join(f"{name} {count}x" for name, count in sorted(counts.items(), key=lambda kv: -kv[1]))
    return f"none of {len(tried[rung])} passed the gate ({failed})"


def _row(
    demonstration: Demonstration,
    probe: dict[str, Any],
    provenance: str,
    kept: Candidate | None,
    reason: str,
    tried: dict[str, list[Scored]],
) -> dict[str, Any]:
    solution = kept.text if kept else ""
    return {
        "id": demonstration.id,
        "question": demonstration.question,
        "solution": solution,
        "messages": [
            {"role": "user", "content": demonstration.question},
            {"role": "assistant", "content": solution},
        ],
        "source_solution": demonstration.solution,
        "answer": demonstration.answer,
        "provenance": provenance,
        "alignment_before": probe["source_alignment"],
        "alignment_after": kept.alignment if kept else None,
        "reward": kept.reward if kept else {},
        "gates": kept.gates if kept else {},
        "hacks": list(kept.hacks) if kept else [],
        "hacks_refused": sorted({name for items in tried.values() for item in items for name in item.hacks}),
        "reason": reason or "the best accepted candidate",
        "alternatives": [],
        "ids": list(kept.ids) if kept else [],
        "logprobs": [round(value, 4) for value in kept.logprobs] if kept else [],
    }
