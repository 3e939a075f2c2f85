"""Extracts features of a solution's text: words, numbers, names, stated answers and repetition.

All functions are pure functions of text. They work on natural English and on space-separated tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

from dartune.text.answer_phrases import is_remark, phrases
from dartune.text.number_spelling import COMPOUND, TENS, UNITS, value_of
from dartune.text.spans import closing_braces, trimmed

THOUGHT_END = "</think>"
_WORD = re.compile(r"\w+|[^\w\s]")
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_LIST_MARK = re.compile(r"(?im)^[ \t]*(?:[*#]+[ \t]*)?(?:step[ \t]*\d{1,2}|\d{1,2}(?=[.)]))[.):][ \t]+(?=\S)")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})")
_NUMBER = re.compile(
    r"(?:(?<![^\W\u3040-\u30ff\u4e00-\u9fff])|(?<=\d[xX]))(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)(?!\d|st\b|nd\b|rd\b|th\b)"
)
LONGEST_NUMBER = 100
"""Digits. A longer run is degenerate repetition, not a number."""
_CAPITALISED = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_RESULT = re.compile(
    r"=\s*\\?[$£€]?\s*(-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+))"
    r"(?![\w^%]|[.,]\d|[^\S\n]*(?:[+*/×÷·−-]|\\(?:cdot|times|div|pi))[^\S\n]*[\w\\($.]|\\pi)"
)
_BOXED = re.compile(r"\\f?boxed\s?\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac(\d)(\d)")
_SPELLED = re.compile(
    rf"\b(?:({'|'.join(TENS)})(?:-({'|'.join(UNITS)}))?|({'|'.join(w for w in UNITS if w != 'one')}))\b",
    re.IGNORECASE,
)
_OPENS_SENTENCE = re.compile(r"(?:^|[.!?:;\n\"“”‘*#(\[{]|(?:^|\s)')\s*$")
_TITLE = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof)\s?\.\s*$", re.IGNORECASE)

NOT_NAMES = frozenset(
    """i i'm i'll i've i'd a an the he she it they we you his her its their our my your this that these those
    how what who whom whose when where why which if then and or but so as at in on of to for from with by
    mr mrs ms dr prof miss answer question note hint step give find
    celsius fahrenheit kelvin joule joules newton newtons watt watts volt volts ohm ohms hz khz mhz ghz
    kg km mph kwh
    january february march april may june july august september october november december
    monday tuesday wednesday thursday friday saturday sunday""".split()
)

OPENERS = frozenset(
    """about above according across after again all alone also although altogether among another any are around before
    below between beyond both by calculate compute consider could determine did do does during each either every
    everyone everything finally first from given had has have hence here however in initially inside instead is
    it its last later let lets many most much multiply my neither next nobody none nothing now often on once one
    only other others otherwise out outside over per perhaps second several simplify since so solve some soon
    still subtract subtracting add adding divide dividing such suppose take taking ten that than there therefore
    third three through throughout thus today together tomorrow total two under until up using we were while who
    will with within without would yesterday yet four five six seven eight nine write evaluate express let's
    assume because were was be being been twice half""".split()
)
"""Words that often open a sentence and are not names."""


CACHE_SIZE = 1024
"""Texts whose features are cached: several gates read a question and its source again for each rewrite."""


def _cached(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """Cache a function of a text. Each call returns a copy of the list or set, which the caller may change."""
    cached = lru_cache(maxsize=CACHE_SIZE)(function)

    @wraps(function)
    def copied(text: str) -> Any:
        return cached(text).copy()

    return copied


@_cached
def words(text: str) -> list[str]:
    """Return the words, numbers and single punctuation marks of a text, in order."""
    return _WORD.findall(text)


def same_text(first: str, second: str) -> bool:
    """Return whether two texts differ in white space only."""
    return first.split() == second.split()


def skeleton(text: str) -> str:
    """Return a text with its numbers and capitalised words replaced by placeholders, which leaves its wording."""
    return " ".join("#" if word[0].isdigit() else "N" if word[0].isupper() else word for word in words(text))


@_cached
def numbers(text: str) -> list[str]:
    """Return every number in order, normalised: `1,000` -> `1000`, `$5` -> `5`, `3.50` -> `3.5`, `1/2` -> `1`, `2`.

    A minus sign counts only where it cannot be a subtraction. Digits inside words (`x2`), ordinals (`3rd`), list marks
    (`1.` at the start of a line, `Step 2:`) and calculator notes (`<<3*4=12>>`) are not numbers.
    """
    return [value for _, value in numbers_at(without_notes(text))]


def without_notes(text: str) -> str:
    """Return a text without calculator notes and list marks, and with normalised minus signs and thousands commas."""
    text = _CALCULATOR_NOTE.sub(" ", text).replace("−", "-").replace("–", "-")
    return _SHORT_FRACTION.sub(r" \1 \2 ", _LATEX_COMMA.sub(",", _LIST_MARK.sub(" ", text)))


def numbers_at(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, normalised number) for each number of a text `without_notes`."""
    for match in _NUMBER.finditer(text):
        plain = match[0].replace(",", "")
        if len(plain) > LONGEST_NUMBER:
            continue
        whole, _, fraction = plain.partition(".")
        fraction = fraction.rstrip("0")
        value = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
        yield match.start(), f"-{value}" if value != "0" and _is_negative(text, match.start()) else value


@_cached
def spelled_numbers(text: str) -> list[str]:
    """Return `numbers` including small numbers in words (`ten`, `twenty-two`), but not `one`, which is a pronoun."""
    return numbers(in_digits(text))


def in_digits(text: str, least: int = 0) -> str:
    """Replace small numbers in words, from `least` on, by digits."""
    text = COMPOUND.sub(lambda match: str(value) if (value := value_of(match[0])) >= least else match[0], text)
    return _SPELLED.sub(lambda match: str(value) if (value := _spelled(match)) >= least else match[0], text)


def _spelled(match: re.Match[str]) -> int:
    """Return the value of a match of `_SPELLED`."""
    tens, unit = (match[1] or "").lower(), (match[2] or match[3] or "").lower()
    return TENS.get(tens, 0) + UNITS.get(unit, 0)


@_cached
def equation_results(text: str) -> list[str]:
    """Return the numbers that a solution works out: those alone behind an equals sign, normalised as by `numbers`.

    The first term of a longer expression (`= 60 - 9`) and a coefficient (`= 3x`) are not results.
    """
    text = _BOXED.sub(r"\1", _LATEX_COMMA.sub(",", _CALCULATOR_NOTE.sub(" ", text).replace("−", "-")))
    return [number for match in _RESULT.finditer(text) for number in numbers(match[1])]


def appears_first_as_operand(text: str, number: str) -> bool:
    """Return whether `number` first appears as an operand (`18 + 20 = 38`) instead of as a result or a statement."""
    plain = _CALCULATOR_NOTE.sub(" ", text).replace(",", "")
    first = re.search(rf"(?<![\w.]){re.escape(number)}(?![\w]|\.\d)", plain)
    if first is None:
        return False
    before, after = plain[: first.start()].rstrip(" $£€"), plain[first.end() :].lstrip(" $£€")
    chain = re.split(r"[.!?]\s|\n", before)[-1], re.split(r"[.!?]\s|\n", after)[0]
    if all("=" in part for part in chain):  # in the middle of `3 * 2 + 4 = 6 + 4 = 10`
        return False
    if re.search(r"[\d)%a-z]\s*=$", before):
        return False
    return bool(re.match(r"[+*/×÷−-]\s*[$£€]?\d", after) or re.search(r"\d\s*[+*/×÷−-]$", before))


def _is_negative(text: str, start: int) -> bool:
    """Return whether the minus sign in front of `start` is a sign (`= -3`, `-$3`) and not a subtraction."""
    sign = start - 1
    if sign >= 0 and text[sign] == "$":
        sign -= 1
    if sign < 0 or text[sign] != "-":
        return False
    if sign and (text[sign - 1].isalnum() or text[sign - 1] in "-_"):
        return False
    before = text[:sign].rstrip(" \t\n$")
    return not before or not (before[-1].isdigit() or before[-1] in ")]}%")


@_cached
def entities(question: str) -> list[str]:
    """Return proper names in order of first appearance: capitalised words inside a sentence.

    Every sentence starts with a capital, so names that occur only there are missed; see `opening_names`. Abbreviations
    in capitals (`TV`), units and question words are not names.
    """
    names: dict[str, None] = {}
    for match in _CAPITALISED.finditer(question):
        name = re.sub(r"['’]s?$", "", match[0])
        if not name[0].isupper() or not any(letter.islower() for letter in name[1:]):
            continue
        if name.lower() in NOT_NAMES or _starts_sentence(question, match.start()):
            continue
        names.setdefault(name)
    return list(names)


def known_names(texts: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the names in a dataset's questions, without words that some (question, solution) writes in lower case."""
    names: set[str] = set()
    lower_case: set[str] = set()
    for question, solution in texts:
        names.update(entities(question))
        lower_case.update(word for word in words(f"{question} {solution}") if word[0].islower())
    return frozenset(name for name in names if name.lower() not in lower_case)


def opening_names(question: str, solution: str) -> list[str]:
    """Return likely names that the question has at the start of sentences only.

    They occur capitalised in both texts, and in lower case in neither. Common sentence openers are not names.
    """
    both = f"{question}\n{solution}"
    lower_case = {word.lower() for word in _CAPITALISED.findall(both) if word[0].islower()}
    solution_words = words_as_written(solution)
    names = (re.sub(r"['’]s?$", "", match[0]) for match in _CAPITALISED.finditer(question) if match[0][0].isupper())
    likely = (name for name in names if any(map(str.islower, name[1:])) and name in solution_words and len(name) > 2)
    return [name for name in dict.fromkeys(likely) if name.lower() not in lower_case | NOT_NAMES | OPENERS]


def _starts_sentence(text: str, start: int) -> bool:
    """Return whether the word at `start` opens a sentence. A title (`Mr.`) in front of it does not end one."""
    before = text[max(0, start - 40) : start]
    return bool(_OPENS_SENTENCE.search(before)) and not (start and _TITLE.search(before))


@_cached
def words_as_written(text: str) -> set[str]:
    """Return the set of a text's words as written, possessives without `'s`, to look names up in."""
    return {re.sub(r"['’]s?$", "", match[0]) for match in _CAPITALISED.finditer(text)}


def lcs_fraction(needle: Sequence[Hashable], hay: Sequence[Hashable]) -> float:
    """Return the length of the longest common subsequence of `needle` and `hay` as a share of `needle` (0..1).

    It is 1 for an empty needle. The bit-parallel algorithm (Hyyrö 2004) needs a few integer operations per item of
    `hay`: bit i of `row` is 0 where `needle[i]` ends a longer match.
    """
    if not needle:
        return 1.0
    masks: dict[Hashable, int] = {}
    for i, item in enumerate(needle):
        masks[item] = masks.get(item, 0) | 1 << i
    full = (1 << len(needle)) - 1
    row = full
    for item in hay:
        matched = row & masks.get(item, 0)
        row = ((row + matched) | (row - matched)) & full
    return 1.0 - row.bit_count() / len(needle)


def ngram_repeats(tokens: Sequence[Hashable], n: int) -> int:
    """Return how often the most frequent n-gram of tokens occurs; 0 for fewer than `n` tokens."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    return max(counts.values(), default=0)


def tandem_repeats(tokens: Sequence[Hashable], longest: int = 32) -> int:
    """Return the largest number of consecutive copies of a block of up to `longest` tokens.

    Copies of blocks with fewer than 4 tokens are counted in units of 4 tokens, so that `7 + 7 + 7` is not a loop.
    """
    most = min(1, len(tokens))
    for period in range(1, min(longest, len(tokens) // 2) + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= period:
                most = max(most, (run + period) // max(period, 4))
    return most


def sentence_repeats(text: str) -> tuple[int, int]:
    """Return how often the most frequent sentence of at least three words occurs, and the number of sentences."""
    counts, sentence_count = _sentences(text)
    return max(counts.values(), default=0), sentence_count


def repeated_ngram_share(text: str, n: int = 10) -> float:
    """Return the share (0..1) of a text's words and punctuation marks in n-grams that occur earlier in the text."""
    tokens = words(text.lower())
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(tokens)
    for i in range(len(tokens) - n + 1):
        ngram = tuple(tokens[i : i + n])
        if ngram in seen:
            repeated[i : i + n] = [True] * n
        seen.add(ngram)
    return sum(repeated) / max(1, len(tokens))


def repeated_sentence_share(text: str) -> float:
    """Return the share (0..1) of words in repeated sentences, among sentences of at least three words."""
    counts, _ = _sentences(text)
    lengths = {sentence: len(sentence.split()) for sentence in counts}
    repeated = sum(lengths[sentence] * (count - 1) for sentence, count in counts.items())
    return repeated / max(1, sum(lengths[sentence] * count for sentence, count in counts.items()))


def _sentences(text: str) -> tuple[Counter[str], int]:
    """Return the counts of sentences of at least three words, without end marks, and the number of all sentences."""
    parts = [" ".join(part.split()).rstrip(".!?;") for part in re.split(r"(?<=[.!?;])\s|\n", text)]
    return Counter(part for part in parts if part.count(" ") > 1), len(parts)


@lru_cache(maxsize=CACHE_SIZE)
def space_separated(text: str) -> str:
    """Return a text in lower case with one space around each word, so that phrases match regardless of spacing."""
    return f" {' '.join(words(text.lower()))} "


# ---------------------------------------------------------------- final answers


@dataclass(frozen=True, slots=True)
class StatedAnswer:
    """A final answer in a text: characters `start:end` are the answer, `cue:stop` include the announcement."""

    text: str
    start: int
    end: int
    cue: int
    stop: int


_BOX = re.compile(r"\\f?boxed\s*(?:\{|(-?\w+(?:\.\d+)?))")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_LIKE = re.compile(r"[-−+($.]*\d|\$?\\")
_MATHS = re.compile(r"\d|\\(?!text)|[=<>^+]")


def count_thinking_blocks(text: str) -> int:
    """Return the number of thinking blocks that a text closes (`</think>`)."""
    return text.count(THOUGHT_END)


def without_thinking(text: str) -> str:
    """Return the text behind the last thinking block; all of a text without one."""
    return text.rpartition(THOUGHT_END)[2]


@lru_cache(maxsize=CACHE_SIZE)
def stated_answers(text: str) -> tuple[StatedAnswer, ...]:
    """Return every final answer that a text states, in order.

    The forms are `\\boxed{...}`, `#### 42`, `The answer is 42 .`, `final answer: 42` and `Answer: 42`. Combined forms
    (`The answer is \\boxed{42}`) are one answer.
    """
    boxes = list(_boxes(text))
    marked = boxes + [mark for mark in _hashes(text) if not _overlaps(mark, boxes)]
    marked.sort(key=lambda answer: answer.cue)
    announced = [StatedAnswer(text[phrase.start : phrase.end], *phrase) for phrase in phrases(text)]
    announced = [answer for answer in announced if not _overlaps(answer, marked) and not _only_remarks(answer, marked)]
    return tuple(sorted(marked + announced, key=lambda answer: answer.start))


def _only_remarks(phrase: StatedAnswer, marked: Sequence[StatedAnswer]) -> bool:
    """Return whether a phrase only comments on an answer that a box or `####` marks."""
    spelled = bool(_SPELLED.match(phrase.text))
    return bool(marked) and not spelled and is_remark(phrase.text, any(_MATHS.search(mark.text) for mark in marked))


def _overlaps(answer: StatedAnswer, marked: Sequence[StatedAnswer]) -> bool:
    """Return whether an answer overlaps one of the `marked` answers, which are in order."""
    # Only the last two that start before the answer's end can reach into it; a scan of all would be quadratic.
    place = bisect_right(marked, answer.stop, key=lambda mark: mark.cue)
    return any(answer.cue <= mark.stop for mark in marked[max(0, place - 2) : place])


def _boxes(text: str) -> Iterator[StatedAnswer]:
    """Yield the answers in `\\boxed{...}` or `\\boxed 7`. A box inside a box is part of the outer one."""
    closing = closing_braces(text)
    inside = 0
    for match in _BOX.finditer(text):
        start = match.end() if match[1] is None else match.start(1)
        end = closing.get(match.end() - 1) if match[1] is None else match.end()
        answer = trimmed(text, start, end) if end is not None else None
        if answer and end is not None and match.start() >= inside:
            inside = end + 1 if match[1] is None else end
            yield StatedAnswer(text[slice(*answer)], *answer, match.start(), inside)


def nested_boxes(text: str) -> bool:
    """Return whether a box contains another box."""
    closing, inside = closing_braces(text), 0
    for match in _BOX.finditer(text):
        if match.start() < inside:
            return True
        inside = max(inside, closing.get(match.end() - 1, 0))
    return False


def _hashes(text: str) -> Iterator[StatedAnswer]:
    """Yield the answers `#### 42`. The marks may be a Markdown heading, so words count on the last line only."""
    for match in _HASHES.finditer(text):
        answer = trimmed(text, match.start(1), match.end(1))
        if answer and (_ANSWER_LIKE.match(match[1]) or not text[match.end() :].strip()):
            yield StatedAnswer(text[slice(*answer)], *answer, match.start(), match.end())
