"""Quality report on a data set before training, and a view of its rows as the model sees them."""

from __future__ import annotations

import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dartune.data.chat_template import Renderer
from dartune.data.findings import FindingCounts, row_label
from dartune.data.near_duplicates import answer_key, question_key
from dartune.data.records import Demonstration
from dartune.errors import counted
from dartune.run.number_format import percent
from dartune.run.redaction import printable

PERCENTILES = (5, 50, 95, 100)
UNKNOWN_SHARE = 0.01
"""Above this share of unknown tokens, a warning says that the tokenizer does not fit the data."""
SHOWN_CHARS = 40
"""Longer answers are shortened in messages."""
FEWEST_WORDS = 3
"""A solution with fewer words is a bare answer."""
GREEN, RESET = "\x1b[32m", "\x1b[0m"
INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u2028-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]|(?<=[\x00-\x7f])[\u200c-\u200f]|[\u200c-\u200f](?=[\x00-\x7f])"
)
"""Invisible characters. Joiners and direction marks, which some scripts require, only count next to ASCII."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
OPEN_THOUGHT = re.compile(r"<think>(?!.*</think>)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Counts and lengths of a data set.

    Args:
        rows: number of rows.
        checkable: rows with an answer that can be checked by program. None: not counted.
        tokens: percentile -> length of a row in tokens, prompt included. None without a tokenizer.
        solution_tokens: percentile -> length of the trained part in tokens, end token included. None without a
            tokenizer.
        unknown_share: share of unknown tokens in the solutions. None without a tokenizer.
        findings: rows by kind of warning, a key of `WARNINGS`.
        longest: maximum length of a rewrite in tokens, if rewrites are generated.
        ambiguous_questions: number of questions with several answers.
        characters: invisible character -> number of rows.
    """

    rows: int
    checkable: int | None
    tokens: dict[int, int] | None
    solution_tokens: dict[int, int] | None
    unknown_share: float | None
    findings: FindingCounts
    longest: int | None = None
    ambiguous_questions: int = 0
    characters: Counter[str] = field(default_factory=Counter)

    def lines(self, *, every: bool = False) -> list[str]:
        """Returns the counts, one per line, followed by the warnings.

        Args:
            every: warnings list all rows instead of the first ones.
        """
        lines = [counted(self.rows, "demonstration") + ":"]
        if self.checkable is not None:
            verb = "has" if self.checkable == 1 else "have"
            lines.append(f"{self.checkable} of {self.rows} {verb} a checkable answer")
        for name, lengths in (("row", self.tokens), ("solution", self.solution_tokens)):
            if lengths:
                percentiles = ", ".join(f"{_percentile_name(q)} {value}" for q, value in lengths.items())
                lines.append(f"tokens per {name}: {percentiles}")
        return lines + [f"warning: {warning}" for warning in self.warnings(every=every)]

    def warnings(self, *, every: bool = False) -> list[str]:
        """Returns likely mistakes in the data, each with its rows and a remedy."""
        warnings = []
        if self.unknown_share is not None and self.unknown_share > UNKNOWN_SHARE:
            warnings.append(
                f"{percent(self.unknown_share)}% of the tokens are unknown to the tokenizer; "
                "this model cannot read the data"
            )
        for kind, (singular, plural, remedy) in WARNINGS.items():
            if count := self.findings.count(kind):
                names = ", ".join(map(_character_name, self.characters))
                lengths = {"limit": self.longest, "most": self.solution_tokens and self.solution_tokens[100]}
                pronouns = {"it": "it", "it_is": "it is"} if count == 1 else {"it": "them", "it_is": "they are"}
                remedy = remedy.format(
                    names=names, several=counted(self.ambiguous_questions, "question"), **lengths, **pronouns
                )
                warnings.append(
                    f"{counted(count, singular, plural)}{remedy}: {self.findings.places(kind, every=every)}"
                )
        return warnings


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
        "; rewrites must still state the row's answer",
    ),
    "several": (
        "row asks a question that has several answers",
        "rows ask a question that has several answers",
        " ({several}); correct or remove the wrong ones",
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
        " ({limit}), so that a rewrite of that length is cut; set it to {most} or more, or remove {it}",
    ),
    "unclosed": (
        "solution opens a <think> block and never closes it",
        "solutions open a <think> block and never close it",
        "; add </think> after the reasoning, or remove <think>",
    ),
    "thinking": (
        "solution carries a <think> block",
        "solutions carry a <think> block",
        ", but the chat template closes one before the response; set target.thinking: true or remove the block",
    ),
    "thoughtless": (
        "solution has no <think> block",
        "solutions have no <think> block",
        ", but target.thinking is true: the model is trained to answer without thinking, where it usually thinks; set "
        "target.thinking: false",
    ),
    "invisible": (
        "row has invisible characters",
        "rows have invisible characters",
        " ({names}), which the model reads as they are; remove the characters",
    ),
}
"""Kind -> message for one row, message for several rows, and the remedy."""
OF_SOLUTIONS = ("near-empty", "long", "unclosed", "thinking", "thoughtless")
"""Kinds that only apply to rows whose solutions are trained on."""


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
    """Returns the quality report on a data set, computed in one pass over its rows.

    Args:
        renderer: the target's renderer. None: no lengths in tokens are computed.
        has_answer: returns whether a row's answer can be checked by program. None: not counted.
        wrong: rows whose solution contradicts the row's answer, each with the answer of the solution.
        silent: rows whose solution states no answer.
        longest: maximum length of a rewrite in tokens. None: no warning about long solutions.
        trained: whether the rows are trained on. False: warnings about solutions are omitted.
    """
    closes_thought = renderer is not None and "</think>" in renderer.tokenizer.decode(renderer.prompt_ids("question"))
    # Only a few numbers per row stay in memory: lengths in tokens, and 64-bit hashes to detect repetitions.
    lengths, trained_lengths, repeats = array("q"), array("q"), _Repeats()
    findings, characters, unknown = FindingCounts(), Counter(), 0
    for row in demonstrations:
        repeats.add(row)
        place = row_label(row)
        kinds = [*_solution_warnings(row, renderer, closes_thought)]
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
                findings.add(kind, place)
    for row, stated in wrong:
        findings.add("contradicted", f"{row_label(row)} (row: {_short(row.answer)}, solution: {_short(stated)})")
    for row in silent if trained else ():
        findings.add("silent", row_label(row))
    return QualityReport(
        rows=len(demonstrations),
        checkable=None if has_answer is None else len(demonstrations) - findings.count("unchecked"),
        tokens=_percentiles(lengths),
        solution_tokens=_percentiles(trained_lengths),
        unknown_share=unknown / max(1, sum(trained_lengths) - len(trained_lengths)) if renderer else None,
        findings=findings,
        longest=longest,
        ambiguous_questions=repeats.report(demonstrations, findings),
        characters=characters,
    )


def _solution_warnings(row: Demonstration, renderer: Renderer | None, closes_thought: bool) -> Iterable[str]:
    """Yields the kinds of warnings about a solution's length and its `<think>` block.

    Args:
        closes_thought: the chat template closes a `<think>` block before the response.
    """
    # The second condition exempts languages that are written without spaces.
    if len(row.solution.split()) < FEWEST_WORDS and len(row.solution) < 4 * FEWEST_WORDS:
        yield "near-empty"
    if OPEN_THOUGHT.search(row.solution):
        yield "unclosed"
    if closes_thought and "<think>" in row.solution:
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
    """Detects repeated rows, repeated questions and contradictory answers with 64-bit hashes."""

    def __init__(self) -> None:
        self.questions, self.texts, self.answers = array("q"), array("q"), array("q")

    def add(self, row: Demonstration) -> None:
        self.texts.append(hash((row.question, row.solution)))
        self.questions.append(hash(question_key(row.question) or row.question))
        # 0 marks a row without an answer.
        self.answers.append(0 if row.answer is None else hash(answer_key(row.answer)) or 1)

    def report(self, rows: Sequence[Demonstration], findings: FindingCounts) -> int:
        """Adds repeated rows and questions to `findings`; returns the number of questions with several answers."""
        repeated_text, repeated_question = ~_firsts(self.texts), ~_firsts(self.questions)
        kinds = {"repeated rows": repeated_text, "repeated questions": repeated_question & ~repeated_text}
        for kind, mask in kinds.items():
            for index in np.flatnonzero(mask):
                findings.add(kind, row_label(rows[int(index)]))
        questions, answers = np.asarray(self.questions), np.asarray(self.answers)
        answered = np.flatnonzero(answers)  # (rows with an answer,)
        pairs = np.stack([questions[answered], answers[answered]])  # (2, rows with an answer)
        # Each question once per distinct answer: questions that occur twice have several answers.
        question_per_answer = np.unique(pairs, axis=1)[0]
        values, counts = np.unique(question_per_answer, return_counts=True)
        several = values[counts > 1]
        for index in answered[np.isin(questions[answered], several)]:
            findings.add("several", row_label(rows[int(index)]))
        return len(several)


def _firsts(hashes: array) -> np.ndarray:
    """Returns (rows,) bool: True where no earlier row has the same hash."""
    firsts = np.zeros(len(hashes), bool)
    firsts[np.unique(np.asarray(hashes), return_index=True)[1]] = True
    return firsts


def show_rows(
    demonstrations: Sequence[Demonstration], renderer: Renderer, n: int = 3, *, colour: bool | None = None
) -> str:
    """Returns the first `n` rows as the model sees them; trained tokens are green or, without colour, in ⟦ and ⟧.

    Args:
        colour: None: use colour if the output is a terminal.
    """
    start, end = (GREEN, RESET) if (sys.stdout.isatty() if colour is None else colour) else ("⟦", "⟧")
    blocks = []
    for row in demonstrations[:n]:
        prompt, response = renderer.prompt_ids(row.question), renderer.response_ids(row.solution)
        pieces = renderer.marked(prompt, response)
        body = "".join(f"{start}{printable(text)}{end}" if trained else printable(text) for text, trained in pieces)
        blocks.append(
            f"--- {printable(row_label(row))}: {len(prompt)} prompt tokens, {len(response)} trained tokens\n{body}"
        )
    return "\n".join(blocks)


def _percentiles(values: array) -> dict[int, int] | None:
    ordered = np.sort(np.asarray(values))
    return {q: int(ordered[(q * (len(ordered) - 1)) // 100]) for q in PERCENTILES} if len(ordered) else None


def _percentile_name(percentile: int) -> str:
    return {50: "median", 100: "longest"}.get(percentile, f"{percentile}%")
