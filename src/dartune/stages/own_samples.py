"""The target's own right solutions in quantity: what rejection-sampling fine-tuning (`rft`) is trained on.

As many samples a row as `dart` spends altogether, verified as in the probe: finished, without a loop, right, and with
true sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dartune import processes
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.data.rows import Spool, open_rows
from dartune.models.engine import COUNTED, Engine, SampleSpec
from dartune.progress import Progress
from dartune.rewards.checker import AnswerChecker
from dartune.rewards.gates import run_gates
from dartune.rewards.items import GateInput, GateThresholds
from dartune.run import Cost

CHUNK = 32
VERIFIED = ("finished", "no_loop", "correct_answer", "true_sums")
"""Gates that make an own sample verified. Those that compare with the demonstration apply to rewrites only: a right
solution by another method is right. A small model often reaches the right answer over `17 / 8 = 6`."""


def sample_own(
    demonstrations: Sequence[Demonstration],
    target: Engine,
    renderer: Renderer,
    checker: AnswerChecker,
    thresholds: GateThresholds,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    path: Path,
    progress: Progress | None = None,
    spent: Callable[[], Cost] = Cost,
) -> Cost:
    """Append a row per demonstration to `path`: {id, question, solutions, drawn, spent}; whole chunks are kept.

    Args:
        samples: drawn per row; `solutions` are the different verified ones among them.

    Returns:
        What all calls spent.
    """
    with Spool(path if processes.is_first() else None) as spool:
        if len(spool) < len(demonstrations):
            spool.cut(len(spool) // CHUNK * CHUNK)
        done = processes.agreed(len(spool))
        if progress and done:
            progress.advance_to(done)
        for low in range(done, len(demonstrations), CHUNK):
            chunk, before = list(demonstrations[low : low + CHUNK]), spent()
            spec = SampleSpec(samples, max_new_tokens, temperature, renderer.stop_ids, seed * 1_000_003 + 700_000 + low)
            groups = target.generate([renderer.prompt_ids(row.question) for row in chunk], spec)
            inputs = [
                GateInput(
                    question=row.question,
                    solution=row.solution,
                    rewrite=renderer.decode(sample.ids),
                    answer=row.answer,
                    finish=sample.finish,
                    token_ids=sample.ids,
                    family=row.task,
                )
                for row, group in zip(chunk, groups, strict=True)
                for sample in group
            ]
            verdicts = iter(zip(inputs, run_gates(inputs, thresholds, checker), strict=True))
            now = spent()
            cost = {name: getattr(now, name) - getattr(before, name) for name in COUNTED}
            for row, group in zip(chunk, groups, strict=True):
                judged = [next(verdicts) for _ in group]
                right = [item.rewrite for item, gates in judged if is_verified(row, gates)]
                kept = {"id": row.id, "question": row.question, "solutions": list(dict.fromkeys(right))}
                spool.add(kept | {"drawn": len(group), "spent": {} if row is not chunk[0] else cost})
            spool.keep()
            if progress:
                progress.update(len(chunk))
    processes.wait()
    return sum((Cost(**row["spent"]) for row in open_rows(path)), Cost())


def is_verified(row: Demonstration, gates: dict[str, bool]) -> bool:
    """Whether a sample of the target's own is a solution to train on; never where the row has no answer."""
    return row.answer is not None and all(gates.get(name, True) for name in VERIFIED)
