"""Quality of adapted data, measured by the lab's step checker, and example rows for the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dartune.data.adapted_dataset import ADAPTED
from dartune.data.row_store import open_rows
from dartune.errors import InputError
from dartune.run.number_format import decimals

EXAMPLES = 10
REJECTED_EXAMPLES = 3
"""Further rows that are shown because none of their rewrites was accepted."""


def adapted_quality(
    rows: Sequence[Mapping[str, Any]], judge: Callable[[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the share of adapted rows with correct steps and with correct names, and the shares of dialects."""
    verdicts = [judge(row["question"], row["solution"]) for row in rows if row["provenance"] in ADAPTED]
    names_correct = [verdict["names_correct"] for verdict in verdicts if verdict["names_correct"] is not None]
    dialects = Counter(verdict["dialect"] or "none" for verdict in verdicts)
    return {
        "rows": len(verdicts),
        "step_correct": sum(verdict["steps_correct"] for verdict in verdicts) / max(1, len(verdicts)),
        "names_correct": sum(names_correct) / max(1, len(verdicts)),
        "dialects": {dialect: count / len(verdicts) for dialect, count in sorted(dialects.items())},
    }


def tokens_with_logprobs(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], logprobs: Iterable[float]
) -> list[list[Any]]:
    """Return [[text, log-probability in nats], ...], one entry per token.

    A token's text is what it adds to the decoded prefix. Decoding tokens one by one would lose the spaces that many
    tokenizers insert between tokens.
    """
    tokens, prefix = [], ""
    for count, logprob in enumerate(logprobs, start=1):
        text = decode(ids[:count])
        tokens.append([text[len(prefix) :] if text.startswith(prefix) else text, logprob])
        prefix = text
    return tokens


def example_indices(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Indices of the rows that the report shows: the first ones, and some whose rewrites were all rejected."""
    rejected = (index for index, row in enumerate(rows) if index >= EXAMPLES and row.get("rejected"))
    return [*range(min(EXAMPLES, len(rows))), *islice(rejected, REJECTED_EXAMPLES)]


def examples(
    rows: Sequence[Mapping[str, Any]],
    sources: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    decode: Callable[[Sequence[int]], str],
) -> list[dict[str, Any]]:
    """Return rows before and after adaptation. Tokens have their log-probabilities under the target.

    Args:
        rows: the adapted rows at `example_indices`.
        sources: per row id, the source solution's response ids and their log-probabilities.
        decode: response ids to text.
    """
    shown = []
    for row in rows:
        shown.append(
            {
                **{key: row[key] for key in ("id", "question", "source_solution", "solution", "provenance")},
                "alignment_before": row["alignment_before"],
                "alignment_after": row["alignment_after"],
                "reason": row["reason"],
                "tokens_before": tokens_with_logprobs(decode, *sources[row["id"]]),
                "tokens_after": tokens_with_logprobs(decode, row["ids"], row["logprobs"]),
                "rejected": [
                    {
                        **{key: rewrite[key] for key in ("text", "failed", "alignment")},
                        "tokens": tokens_with_logprobs(decode, rewrite["ids"], rewrite["logprobs"]),
                    }
                    for rewrite in row.get("rejected", [])
                ],
            }
        )
    return shown


def format_rewrites(folder: Path) -> str:
    """Return the first adapted rows of every seed and adaptation of a run folder as text.

    Raises:
        InputError: no synthesis stage has written rows yet.
    """
    paths = sorted((folder / "stages").glob("synthesise-s*/rows.jsonl"))
    if not paths:
        raise InputError(f"{folder} has no rewrites yet; continue the run until its synthesis stage has finished")
    blocks = []
    for path in paths:
        for row in open_rows(path)[:EXAMPLES]:
            lines = [
                f"[{path.parent.name} {row['id']}] {row['provenance']}: {row['reason']}",
                f"  question  {row['question']}",
                f"  source    {row['source_solution']}   (alignment {decimals(row['alignment_before'], 2)})",
            ]
            if row["provenance"] in ADAPTED:
                lines.append(f"  adapted   {row['solution']}   (alignment {decimals(row['alignment_after'], 2)})")
            lines += [
                f"  rejected  {rewrite['text']}   (alignment {decimals(rewrite['alignment'], 2)}; failed "
                f"{', '.join(rewrite['failed'])})"
                for rewrite in row.get("rejected", [])
            ]
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
