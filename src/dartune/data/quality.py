"""What to know about a data set before anything is spent on it, and how its rows look to the model."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dartune.data.records import Demonstration
from dartune.data.render import Renderer

PERCENTILES = (5, 50, 95, 100)
UNKNOWN_SHARE = 0.01
"""Above this share of unknown tokens the tokenizer does not fit the data."""
FEWEST_WORDS = 3
GREEN, RESET = "\x1b[32m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Counts and lengths of a data set; what needs a tokenizer is None without one.

    `tokens` and `solution_tokens` map a percentile to a length in tokens: of the whole row as trained, and of
    its trained part (end token included). `near_empty` and `contradicted` (solutions whose own answer is
    not the row's) list ids. `thinking` counts solutions with a thought where the prompt closes one, `thoughtless` those
    without where it leaves the thought to them.
    """

    rows: int
    checkable: int | None
    repeated_rows: int
    repeated_questions: int
    near_empty: tuple[str, ...]
    tokens: dict[int, int] | None
    solution_tokens: dict[int, int] | None
    unknown_share: float | None
    thinking: int
    thoughtless: int = 0
    contradicted: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The facts, one per line, then one line per warning."""
        lines = [f"{self.rows} demonstrations:"]
        if self.checkable is not None:
            lines.append(f"{self.checkable} of {self.rows} have a checkable answer")
        for name, lengths in (("row", self.tokens), ("solution", self.solution_tokens)):
            if lengths:
                shown = ", ".join(f"{_percentile_name(q)} {value}" for q, value in lengths.items())
                lines.append(f"tokens per {name}: {shown}")
        return lines + [f"warning: {warning}" for warning in self.warnings()]

    def warnings(self) -> list[str]:
        """What is likely to be a mistake, each with what to do."""
        found = []
        if self.checkable is not None and self.checkable < self.rows:
            found.append(
                f"{self.rows - self.checkable} rows have no checkable answer; only the other gates guard "
                "their rewrites; give an answer column (data.columns: {answer: ...})"
            )
        if self.contradicted:
            found.append(
                f"{len(self.contradicted)} solutions end in another answer than their row has, or fail its tests "
                f"({_some(self.contradicted)}); correct or remove them"
            )
        if self.unknown_share is not None and self.unknown_share > UNKNOWN_SHARE:
            found.append(
                f"{100 * self.unknown_share:.1f}% of the tokens are unknown to the tokenizer; "
                "this model cannot read the data"
            )
        if self.repeated_rows:
            found.append(f"{self.repeated_rows} rows repeat an earlier row word for word; they weigh double")
        if self.repeated_questions:
            found.append(f"{self.repeated_questions} rows ask an earlier row's question with another solution")
        if self.near_empty:
            found.append(
                f"{len(self.near_empty)} solutions have fewer than {FEWEST_WORDS} words "
                f"({_some(self.near_empty)}); a bare answer leaves nothing to adapt"
            )
        if self.thinking:
            found.append(
                f"{self.thinking} solutions carry a <think> block, but the chat template closes one before "
                "the response; set target.thinking: true or remove the blocks"
            )
        if self.thoughtless:
            found.append(
                f"{self.thoughtless} solutions carry no <think> block, but target.thinking is true: the model is "
                "trained to answer without thinking, where it usually thinks; set target.thinking: false"
            )
        return found


def check_report(
    demonstrations: Iterable[Demonstration],
    renderer: Renderer | None = None,
    has_answer: Callable[[Demonstration], bool] | None = None,
    wrong: Sequence[Demonstration] = (),
) -> QualityReport:
    """Measures a data set in one pass over its rows.

    Args:
        renderer: the target's; without one nothing is counted in tokens.
        has_answer: whether a row's answer can be checked by program.
        wrong: the rows whose own solution does not give it.
    """
    closes = renderer is not None and "</think>" in renderer.tokenizer.decode(renderer.prompt_ids("question"))
    # Of every row a few numbers are kept: lengths in tokens, and hashes of 64 bits to see what repeats.
    lengths, trained, questions, pairs = array("q"), array("q"), array("q"), array("q")
    near_empty = []
    unknown = checkable = thinking = thoughtless = 0
    for row in demonstrations:
        questions.append(hash(row.question))
        pairs.append(hash((row.question, row.solution)))
        checkable += has_answer is not None and has_answer(row)
        thinking += closes and "<think>" in row.solution
        thoughtless += renderer is not None and renderer.thinking and "</think>" not in row.solution
        if len(row.solution.split()) < FEWEST_WORDS:
            near_empty.append(row.id)
        if renderer:
            response = renderer.response_ids(row.solution)
            trained.append(len(response))
            lengths.append(len(renderer.prompt_ids(row.question)) + len(response))
            # The end token is left out: some tokenizers use one token as end and as unknown.
            unknown += response[:-1].count(renderer.tokenizer.unk_token_id)
    return QualityReport(
        rows=len(pairs),
        checkable=None if has_answer is None else checkable,
        repeated_rows=len(pairs) - _different(pairs),
        repeated_questions=_different(pairs) - _different(questions),
        near_empty=tuple(near_empty),
        tokens=_percentiles(lengths),
        solution_tokens=_percentiles(trained),
        unknown_share=unknown / max(1, sum(trained) - len(trained)) if renderer else None,
        thinking=thinking,
        thoughtless=thoughtless,
        contradicted=tuple(row.id for row in wrong),
    )


def show_rows(
    demonstrations: Sequence[Demonstration], renderer: Renderer, n: int = 3, *, colour: bool | None = None
) -> str:
    """The first `n` rows as the model sees them, trained tokens in green or, without colour, between ⟦ and ⟧.

    Args:
        colour: None decides by whether the output is a terminal.
    """
    start, end = (GREEN, RESET) if (sys.stdout.isatty() if colour is None else colour) else ("⟦", "⟧")
    shown = []
    for row in demonstrations[:n]:
        prompt, response = renderer.prompt_ids(row.question), renderer.response_ids(row.solution)
        pieces = renderer.marked(prompt, response)
        body = "".join(f"{start}{_safe(text)}{end}" if trained else _safe(text) for text, trained in pieces)
        shown.append(f"--- {row.id}: {len(prompt)} prompt tokens, {len(response)} trained tokens\n{body}")
    return "\n".join(shown)


def _safe(text: str) -> str:
    """Text from outside must not steer the terminal: control characters are spelled out, \\n and \\t stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def _different(hashes: array) -> int:
    return len(np.unique(np.asarray(hashes)))


def _percentiles(values: array) -> dict[int, int] | None:
    ordered = np.sort(np.asarray(values))
    return {q: int(ordered[(q * (len(ordered) - 1)) // 100]) for q in PERCENTILES} if len(ordered) else None


def _percentile_name(percentile: int) -> str:
    return {50: "median", 100: "longest"}.get(percentile, f"{percentile}%")


def _some(ids: Sequence[str], most: int = 5) -> str:
    return ", ".join(ids[:most]) + (", ..." if len(ids) > most else "")
