"""What to know about a data set before anything is spent on it, and how its rows look to the model."""

from __future__ import annotations

import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dartune.data.findings import Tally, label
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.data.sameness import answer_key, question_key
from dartune.errors import counted
from dartune.redaction import printable

PERCENTILES = (5, 50, 95, 100)
UNKNOWN_SHARE = 0.01
"""Above this share of unknown tokens the tokenizer does not fit the data."""
SHOWN_CHARS = 40
"""Characters of an answer in a message."""
FEWEST_WORDS = 3
GREEN, RESET = "\x1b[32m", "\x1b[0m"
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u2028-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]|(?<=[\x00-\x7f])[\u200c-\u200f]|[\u200c-\u200f](?=[\x00-\x7f])"
)
"""Characters that do not show; joiners and marks of direction, which some scripts need, only beside ASCII."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
OPEN_THOUGHT = re.compile(r"<think>(?!.*</think>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Counts and lengths of a data set; what needs a tokenizer is None without one.

    `tokens` and `solution_tokens` map a percentile to a length in tokens: of the whole row as trained, and of
    its trained part (end token included). `found` has the rows of each kind of warning: the keys of `warnings`.
    `characters` counts the rows of each invisible character.
    """

    rows: int
    checkable: int | None
    tokens: dict[int, int] | None
    solution_tokens: dict[int, int] | None
    unknown_share: float | None
    found: Tally
    longest: int | None = None
    several: int = 0
    """Questions that have several answers."""
    characters: Counter[str] = field(default_factory=Counter)

    def lines(self, *, every: bool = False) -> list[str]:
        """The facts, one per line, then one line per warning; `every` row is named, not only the first ones."""
        lines = [counted(self.rows, "demonstration") + ":"]
        if self.checkable is not None:
            has = "has" if self.checkable == 1 else "have"
            lines.append(f"{self.checkable} of {self.rows} {has} a checkable answer")
        for name, lengths in (("row", self.tokens), ("solution", self.solution_tokens)):
            if lengths:
                shown = ", ".join(f"{_percentile_name(q)} {value}" for q, value in lengths.items())
                lines.append(f"tokens per {name}: {shown}")
        return lines + [f"warning: {warning}" for warning in self.warnings(every=every)]

    def warnings(self, *, every: bool = False) -> list[str]:
        """What is likely to be a mistake, each with its rows and what to do."""
        found = []
        if self.unknown_share is not None and self.unknown_share > UNKNOWN_SHARE:
            found.append(
                f"{100 * self.unknown_share:.1f}% of the tokens are unknown to the tokenizer; "
                "this model cannot read the data"
            )
        for kind, (one, many, rest) in WARNINGS.items():
            if count := self.found.count(kind):
                names = ", ".join(map(_character_name, self.characters))
                told = {"limit": self.longest, "most": self.solution_tokens and self.solution_tokens[100]}
                pronouns = {"it": "it", "it_is": "it is"} if count == 1 else {"it": "them", "it_is": "they are"}
                rest = rest.format(names=names, several=counted(self.several, "question"), **told, **pronouns)
                found.append(f"{counted(count, one, many)}{rest}: {self.found.places(kind, every=every)}")
        return found


WARNINGS = {
    "unchecked": (
        "row has no checkable answer",
        "rows have no checkable answer",
        "; only the other gates guard their rewrites; give an answer column (data.columns: {{answer: ...}})",
    ),
    "contradicted": (
        "solution ends in another answer than its row has, or fails its tests",
        "solutions end in another answer than their row has, or fail its tests",
        "; correct or remove {it}",
    ),
    "silent": (
        "solution states no answer that can be read",
        "solutions state no answer that can be read",
        "; rewrites must state the row's answer all the same",
    ),
    "several": (
        "row asks a question that has several answers",
        "rows ask a question that has several answers",
        " ({several}); correct or remove what is wrong",
    ),
    "repeated rows": (
        "row repeats the question and solution of an earlier row",
        "rows repeat the question and solution of an earlier row",
        "; {it_is} trained on twice",
    ),
    "repeated questions": (
        "row asks an earlier row's question with another solution",
        "rows ask an earlier row's question with another solution",
        "",
    ),
    "near-empty": (
        f"solution has fewer than {FEWEST_WORDS} words",
        f"solutions have fewer than {FEWEST_WORDS} words",
        "; a bare answer leaves nothing to adapt",
    ),
    "long": (
        "solution is longer than mapper.max_new_tokens",
        "solutions are longer than mapper.max_new_tokens",
        " ({limit}), so that a rewrite of that length is cut; set it to {most} or more, or leave {it} out",
    ),
    "unclosed": (
        "solution opens a <think> block and never closes it",
        "solutions open a <think> block and never close it",
        "; add </think> after the thought, or remove <think>",
    ),
    "thinking": (
        "solution carries a <think> block",
        "solutions carry a <think> block",
        ", but the chat template closes one before the response; set target.thinking: true or remove the block",
    ),
    "thoughtless": (
        "solution carries no <think> block",
        "solutions carry no <think> block",
        ", but target.thinking is true: the model is trained to answer without thinking, where it usually thinks; set "
        "target.thinking: false",
    ),
    "invisible": (
        "row has invisible characters",
        "rows have invisible characters",
        " ({names}), which the model reads as they are; remove the characters",
    ),
}
"""Kind -> what one row does, what several do, and what to do."""
OF_SOLUTIONS = ("near-empty", "long", "unclosed", "thinking", "thoughtless")
"""Kinds that matter only where the solutions are trained on."""


def check_report(
    demonstrations: Sequence[Demonstration],
    renderer: Renderer | None = None,
    has_answer: Callable[[Demonstration], bool] | None = None,
    wrong: Iterable[tuple[Demonstration, str]] = (),
    silent: Iterable[Demonstration] = (),
    *,
    longest: int | None = None,
    trained: bool = True,
) -> QualityReport:
    """Measures a data set in one pass over its rows.

    Args:
        renderer: the target's; without one nothing is counted in tokens.
        has_answer: whether a row's answer can be checked by program.
        wrong: the rows whose own solution gives another answer, each with it.
        silent: the rows whose own solution gives none.
        longest: tokens that a rewrite may have.
        trained: whether the rows are trained on; of test rows the solutions are of no matter.
    """
    closes = renderer is not None and "</think>" in renderer.tokenizer.decode(renderer.prompt_ids("question"))
    # Of every row a few numbers are kept: lengths in tokens, and hashes of 64 bits to see what repeats.
    lengths, trained_lengths, repeats = array("q"), array("q"), _Repeats()
    found, characters, unknown = Tally(), Counter(), 0
    for row in demonstrations:
        repeats.add(row)
        where = label(row)
        kinds = [*_marks(row, renderer, closes)]
        if has_answer is not None and not has_answer(row):
            kinds.append("unchecked")
        if hidden := _invisible(row):
            kinds.append("invisible")
            characters.update(hidden)
        if renderer:
            response = renderer.response_ids(row.solution)
            trained_lengths.append(len(response))
            lengths.append(len(renderer.prompt_ids(row.question)) + len(response))
            if longest is not None and len(response) > longest:
                kinds.append("long")
            # The end token is left out: some tokenizers use one token as end and as unknown.
            unknown += response[:-1].count(renderer.tokenizer.unk_token_id)
        for kind in kinds:
            if trained or kind not in OF_SOLUTIONS:
                found.add(kind, where)
    for row, stated in wrong:
        found.add("contradicted", f"{label(row)} (row: {_short(row.answer)}, solution: {_short(stated)})")
    for row in silent if trained else ():
        found.add("silent", label(row))
    return QualityReport(
        rows=len(demonstrations),
        checkable=None if has_answer is None else len(demonstrations) - found.count("unchecked"),
        tokens=_percentiles(lengths),
        solution_tokens=_percentiles(trained_lengths),
        unknown_share=unknown / max(1, sum(trained_lengths) - len(trained_lengths)) if renderer else None,
        found=found,
        longest=longest,
        several=repeats.tell(demonstrations, found),
        characters=characters,
    )


def _marks(row: Demonstration, renderer: Renderer | None, closes: bool) -> Iterable[str]:
    """Kinds of warnings about a solution's words and thought."""
    if len(row.solution.split()) < FEWEST_WORDS and len(row.solution) < 4 * FEWEST_WORDS:
        yield "near-empty"
    if OPEN_THOUGHT.search(row.solution):
        yield "unclosed"
    if closes and "<think>" in row.solution:
        yield "thinking"
    if renderer is not None and renderer.thinking and "</think>" not in row.solution:
        yield "thoughtless"


def _short(answer: str | None) -> str:
    answer = " ".join((answer or "").split())
    return answer if len(answer) <= SHOWN_CHARS else f"{answer[:SHOWN_CHARS]}..."


def _invisible(row: Demonstration) -> set[str]:
    texts = row.question, row.solution
    return {char for text in texts for char in (CONTROL if text.isascii() else INVISIBLE).findall(text)}


def _character_name(char: str) -> str:
    name = unicodedata.name(char, "control character")
    return f"U+{ord(char):04X} {name.lower()}"


class _Repeats:
    """What rows ask, say and answer, as hashes of 64 bits."""

    def __init__(self) -> None:
        self.asked, self.said, self.answers = array("q"), array("q"), array("q")

    def add(self, row: Demonstration) -> None:
        self.said.append(hash((row.question, row.solution)))
        self.asked.append(hash(question_key(row.question) or row.question))
        self.answers.append(0 if row.answer is None else hash(answer_key(row.answer)) or 1)

    def tell(self, rows: Sequence[Demonstration], found: Tally) -> int:
        """Name the rows that repeat something; returns how many questions have several answers."""
        said, asked_before = ~_firsts(self.said), ~_firsts(self.asked)
        for kind, which in (("repeated rows", said), ("repeated questions", asked_before & ~said)):
            for index in np.flatnonzero(which):
                found.add(kind, label(rows[int(index)]))
        asked, answers = np.asarray(self.asked), np.asarray(self.answers)
        told = np.flatnonzero(answers)
        pairs = np.stack([asked[told], answers[told]])
        distinct = np.unique(pairs, axis=1)[0]
        values, times = np.unique(distinct, return_counts=True)
        several = values[times > 1]
        for index in told[np.isin(asked[told], several)]:
            found.add("several", label(rows[int(index)]))
        return len(several)


def _firsts(hashes: array) -> np.ndarray:
    """(rows,) bool: whether no earlier row has the same."""
    firsts = np.zeros(len(hashes), bool)
    firsts[np.unique(np.asarray(hashes), return_index=True)[1]] = True
    return firsts


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
        body = "".join(f"{start}{printable(text)}{end}" if trained else printable(text) for text, trained in pieces)
        shown.append(
            f"--- {printable(label(row))}: {len(prompt)} prompt tokens, {len(response)} trained tokens\n{body}"
        )
    return "\n".join(shown)


def _percentiles(values: array) -> dict[int, int] | None:
    ordered = np.sort(np.asarray(values))
    return {q: int(ordered[(q * (len(ordered) - 1)) // 100]) for q in PERCENTILES} if len(ordered) else None


def _percentile_name(percentile: int) -> str:
    return {50: "median", 100: "longest"}.get(percentile, f"{percentile}%")
