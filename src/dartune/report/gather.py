"""What the report shows of the adapted data: measured quality and rows to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune.data.adapted import ADAPTED
from dartune.data.rows import open_rows
from dartune.errors import InputError

EXAMPLES = 10


def adapted_quality(
    rows: Sequence[Mapping[str, Any]], judge: Callable[[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    """Share of rewritten rows whose steps and names are right, and which dialects they are in."""
    judged = [judge(row["question"], row["solution"]) for row in rows if row["provenance"] in ADAPTED]
    named = [verdict["names_correct"] for verdict in judged if verdict["names_correct"] is not None]
    styles = Counter(verdict["dialect"] or "none" for verdict in judged)
    return {
        "rows": len(judged),
        "step_correct": sum(verdict["steps_correct"] for verdict in judged) / max(1, len(judged)),
        "names_correct": sum(named) / max(1, len(judged)),
        "dialects": {style: count / len(judged) for style, count in sorted(styles.items())},
    }


def pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int], logprobs: Iterable[float]) -> list[list[Any]]:
    """[[text, log-probability in nats], ...]: the text each token adds, whatever the tokenizer joins with."""
    parts, before = [], ""
    for count, logprob in enumerate(logprobs, start=1):
        text = decode(ids[:count])
        parts.append([text[len(before) :] if text.startswith(before) else text, logprob])
        before = text
    return parts


def examples(
    rows: Sequence[Mapping[str, Any]],
    sources: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """The first rows, unselected, before and after, with per-token log-probabilities under the target.

    Args:
        rows: adapted rows.
        sources: per row id, the source solution's response ids and their log-probabilities.
        decode: response ids to text.
    """
    shown = []
    for row in rows[:EXAMPLES]:
        shown.append(
            {
                **{key: row[key] for key in ("id", "question", "source_solution", "solution", "provenance")},
                "alignment_before": row["alignment_before"],
                "alignment_after": row["alignment_after"],
                "reason": row["reason"],
                "tokens_before": pieces(decode, *sources[row["id"]]),
                "tokens_after": pieces(decode, row["ids"], row["logprobs"]),
            }
        )
    return shown


def shown_rewrites(folder: Path) -> str:
    """The first adapted rows of a run folder as text; every seed's.

    Raises:
        InputError: the run has not synthesised anything yet.
    """
    places = sorted((folder / "stages").glob("synthesise-s*/rows.jsonl"))
    if not places:
        raise InputError(f"{folder} has no rewrites yet; run its recipe to the synthesis")
    blocks = []
    for place in places:
        for row in open_rows(place)[:EXAMPLES]:
            after = row["alignment_after"]
            blocks.append(
                f"[{place.parent.name} {row['id']}] {row['provenance']}: {row['reason']}\n"
                f"  question  {row['question']}\n"
                f"  source    {row['source_solution']}   (alignment {row['alignment_before']:.2f})\n"
                f"  adapted   {row['solution']}   (alignment {'-' if after is None else format(after, '.2f')})"
            )
    return "\n\n".join(blocks)
