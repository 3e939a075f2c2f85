"""The mapper's prompt: the request for a rewrite, with or without worked examples."""

from __future__ import annotations

from collections.abc import Sequence

from dartune.data.records import Demonstration
from dartune.data.run_records import ProbeRow

EXAMPLES_FROM = 512
"""Worked examples are chosen among this many first demonstrations."""


def mapper_prompt(template: str, demonstration: Demonstration) -> str:
    """The request for a rewrite; braces inside the data are left alone."""
    parts = template.split("{question}")
    return demonstration.question.join(part.replace("{solution}", demonstration.solution) for part in parts)


def with_examples(template: str, shown: Sequence[tuple[Demonstration, str]]) -> str:
    """The request preceded by worked examples: (demonstration, rewrite) pairs in the request's own words."""
    blocks = [f"{mapper_prompt(template, row)}\n{rewrite}" for row, rewrite in shown]
    return "\n\n".join([*blocks, template])


def worked_examples(
    demonstrations: Sequence[Demonstration], probe_rows: Sequence[ProbeRow], count: int
) -> list[tuple[Demonstration, str]]:
    """(demonstration, the target's own right solution) pairs, the shortest first; at most `count`.

    Args:
        probe_rows: one per demonstration; only the first `EXAMPLES_FROM` are read.
    """
    pairs = []
    for row, probe in zip(demonstrations[:EXAMPLES_FROM], probe_rows[:EXAMPLES_FROM], strict=True):
        solutions = [own["text"] for own in probe["own"]]
        texts = [row.question, row.solution, *solutions]
        # A text with a field's name in it would be filled in as part of the prompt.
        if solutions and not any(name in text for text in texts for name in ("{question}", "{solution}")):
            pairs.append((row, min(solutions, key=len)))
    return sorted(pairs, key=lambda pair: len(pair[0].question + pair[0].solution + pair[1]))[:count]
