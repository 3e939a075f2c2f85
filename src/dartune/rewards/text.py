"""What a solution's text says: its words, numbers, names and final answers, and how often it repeats itself.

Everything here is a pure function of text that works on natural English and on space-separated tokens alike.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

from dartune.rewards.phrases import is_remark, phrases
from dartune.rewards.spans import closing_braces, trimmed
from dartune.rewards.spelling import COMPOUND, TENS, UNITS, value_of

THOUGHT_END = "</think>"
_WORD = re.compile(r"\w+|[^\w\s]")
_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_LIST_MARK = re.compile(r"(?im)^[ \t]*(?:[*#]+[ \t]*)?(?:step[ \t]*\d{1,2}|\d{1,2}(?=[.)]))[.):][ \t]+(?=\S)")
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\[,!])(?=\d{3})")
_NUMBER = re.compile(
    r"(?:(?<![^\W\u3040-\u30ff\u4e00-\u9fff])|(?<=\d[xX]))(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?<=\d)(?!\d|st\b|nd\b|rd\b|th\b)"
)
LONGEST_NUMBER = 100
"""Longer runs of digits are loops, not numbers."""
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
"""Words that open sentences and are no names."""


REMEMBERED = 1024
"""Texts whose reading is kept: several gates read a question and its source, and again for each of their rewrites."""


def _remembered(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, once for a text; a new list or set each time, which the caller may change."""
    known = lru_cache(maxsize=REMEMBERED)(read)

    @wraps(read)
    def recalled(text: str) -> Any:
        return known(text).copy()

    return recalled


@_remembered
def words(text: str) -> list[str]:
    """Words, numbers and single punctuation marks, in order."""
    return _WORD.findall(text)


def same_text(one: str, other: str) -> bool:
    """Whether two texts differ in nothing but white space."""
    return one.split() == other.split()


def skeleton(text: str) -> str:
    """A text without its numbers and capitalised words: what is left is the way of writing."""
    return " ".join("#" if word[0].isdigit() else "N" if word[0].isupper() else word for word in words(text))


@_remembered
def numbers(text: str) -> list[str]:
    """Every number in order, in one spelling: `1,000` -> `1000`, `$5` -> `5`, `3.50` -> `3.5`, `1/2` -> `1`, `2`.

    A minus sign counts only where it cannot be a subtraction. Digits inside words (`x2`), ordinals
    (`3rd`), list marks (`1.` at a line's start, `Step 2:`) and calculator notes (`<<3*4=12>>`) are no numbers.
    """
    return [value for _, value in numbers_at(without_notes(text))]


def without_notes(text: str) -> str:
    """The text that `numbers` reads: calculator notes and list marks blanked out, signs and commas in one spelling."""
    text = _CALCULATOR_NOTE.sub(" ", text).replace("−", "-").replace("–", "-")
    return _SHORT_FRACTION.sub(r" \1 \2 ", _LATEX_COMMA.sub(",", _LIST_MARK.sub(" ", text)))


def numbers_at(text: str) -> Iterator[tuple[int, str]]:
    """Where each number of a text `without_notes` starts, and its one spelling."""
    for match in _NUMBER.finditer(text):
        plain = match[0].replace(",", "")
        if len(plain) > LONGEST_NUMBER:
            continue
        whole, _, fraction = plain.partition(".")
        fraction = fraction.rstrip("0")
        value = (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
        yield match.start(), f"-{value}" if value != "0" and _is_negative(text, match.start()) else value


@_remembered
def spelled_numbers(text: str) -> list[str]:
    """As `numbers`, with small numbers spelled as words among them (`ten`, `twenty-two`; not `one`, a pronoun)."""
    return numbers(in_digits(text))


def in_digits(text: str, least: int = 0) -> str:
    """The text with its small numbers in digits that are spelled as words, from `least` on."""
    text = COMPOUND.sub(lambda match: str(value) if (value := value_of(match[0])) >= least else match[0], text)
    return _SPELLED.sub(lambda match: str(value) if (value := _spelled(match)) >= least else match[0], text)


def _spelled(match: re.Match[str]) -> int:
    tens, unit = (match[1] or "").lower(), (match[2] or match[3] or "").lower()
    return TENS.get(tens, 0) + UNITS.get(unit, 0)


@_remembered
def results(text: str) -> list[str]:
    """Numbers that stand alone behind an equals sign, spelled as `numbers` does: what a solution works out.

    Not the first term of a longer expression (`= 60 - 9`), nor a coefficient (`= 3x`).
    """
    text = _BOXED.sub(r"\1", _LATEX_COMMA.sub(",", _CALCULATOR_NOTE.sub(" ", text).replace("−", "-")))
    return [number for match in _RESULT.finditer(text) for number in numbers(match[1])]


def borrowed(text: str, number: str) -> bool:
    """Whether `number` first appears as an operand (`18 + 20 = 38`), without having been worked out or stated."""
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
    """Whether the number at `start` carries a minus sign of its own, such as in `= -3` or `-$3`."""
    sign = start - 1
    if sign >= 0 and text[sign] == "$":
        sign -= 1
    if sign < 0 or text[sign] != "-":
        return False
    if sign and (text[sign - 1].isalnum() or text[sign - 1] in "-_"):
        return False
    before = text[:sign].rstrip(" \t\n$")
    return not before or not (before[-1].isdigit() or before[-1] in ")]}%")


@_remembered
def entities(question: str) -> list[str]:
    """Proper names in order of first appearance: capitalised words that occur inside a sentence.

    A capital at the start of a sentence proves nothing, so a name that only ever starts sentences
    is missed. Abbreviations in capitals (`TV`), units and question words are no names.
    """
    found: dict[str, None] = {}
    for match in _CAPITALISED.finditer(question):
        name = re.sub(r"['’]s?$", "", match[0])
        if not name[0].isupper() or not any(letter.islower() for letter in name[1:]):
            continue
        if name.lower() in NOT_NAMES or _starts_sentence(question, match.start()):
            continue
        found.setdefault(name)
    return list(found)


def known_names(texts: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The names in a data set's questions: never written in lower case by any (question, solution)."""
    names: set[str] = set()
    small: set[str] = set()
    for question, solution in texts:
        names.update(entities(question))
        small.update(word for word in words(f"{question} {solution}") if word[0].islower())
    return frozenset(name for name in names if name.lower() not in small)


def opening_names(question: str, solution: str) -> list[str]:
    """Likely names that the question only ever has at a sentence's start: both texts have them, always capitalised.

    Common words, and words that either text also has in lower case, are none.
    """
    both = f"{question}\n{solution}"
    small = {word.lower() for word in _CAPITALISED.findall(both) if word[0].islower()}
    used = mentions(solution)
    names = (re.sub(r"['’]s?$", "", match[0]) for match in _CAPITALISED.finditer(question) if match[0][0].isupper())
    likely = (name for name in names if any(map(str.islower, name[1:])) and name in used and len(name) > 2)
    return [n for n in dict.fromkeys(likely) if n.lower() not in small | NOT_NAMES | OPENERS]


def _starts_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - 40) : start]
    return bool(_OPENS_SENTENCE.search(before)) and not (start and _TITLE.search(before))


@_remembered
def mentions(text: str) -> set[str]:
    """The words a name can be looked up in: as written, possessives without their `'s`."""
    return {re.sub(r"['’]s?$", "", match[0]) for match in _CAPITALISED.finditer(text)}


def lcs_fraction(needle: Sequence[Hashable], hay: Sequence[Hashable]) -> float:
    """Share of `needle` found in `hay` in order: their longest common subsequence; 1 for an empty needle.

    One machine operation per item of `hay` (bit-parallel, Hyyrö 2004): bit i of `row` is 0 where
    `needle[i]` ends a longer match.
    """
    if not needle:
        return 1.0
    places: dict[Hashable, int] = {}
    for i, item in enumerate(needle):
        places[item] = places.get(item, 0) | 1 << i
    full = (1 << len(needle)) - 1
    row = full
    for item in hay:
        matched = row & places.get(item, 0)
        row = ((row + matched) | (row - matched)) & full
    return 1.0 - row.bit_count() / len(needle)


def ngram_repeats(tokens: Sequence[Hashable], n: int) -> int:
    """How often the most frequent run of `n` tokens occurs; 0 where there are fewer than `n` tokens."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    return max(counts.values(), default=0)


def tandem_repeats(tokens: Sequence[Hashable], longest: int = 32) -> int:
    """How often, at most, one block of up to `longest` tokens stands back to back with itself.

    Blocks shorter than 4 tokens count as parts of a block of 4, so that `7 + 7 + 7` is no loop yet.
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
    """How often the most frequent sentence of at least three words occurs, and how many sentences there are."""
    counts, n = _sentences(text)
    return max(counts.values(), default=0), n


def retold_share(text: str, n: int = 10) -> float:
    """Share of a text's words and marks (0..1) in runs of `n` that stand in it before."""
    told = words(text.lower())
    seen: set[tuple[str, ...]] = set()
    again = [False] * len(told)
    for i in range(len(told) - n + 1):
        run = tuple(told[i : i + n])
        if run in seen:
            again[i : i + n] = [True] * n
        seen.add(run)
    return sum(again) / max(1, len(told))


def repeated_share(text: str) -> float:
    """Share of the words of sentences of at least three words (0..1) in sentences that were there before."""
    counts, _ = _sentences(text)
    sizes = {sentence: len(sentence.split()) for sentence in counts}
    again = sum(sizes[sentence] * (count - 1) for sentence, count in counts.items())
    return again / max(1, sum(sizes[sentence] * count for sentence, count in counts.items()))


def _sentences(text: str) -> tuple[Counter[str], int]:
    """Sentences of at least three words with how often each occurs, whatever ends them, and how many there are."""
    parts = [" ".join(part.split()).rstrip(".!?;") for part in re.split(r"(?<=[.!?;])\s|\n", text)]
    return Counter(part for part in parts if part.count(" ") > 1), len(parts)


@lru_cache(maxsize=REMEMBERED)
def spaced(text: str) -> str:
    """Lower-case words with one space around each, so that phrases can be found whatever the spacing."""
    return f" {' '.join(words(text.lower()))} "


# ---------------------------------------------------------------- final answers


@dataclass(frozen=True, slots=True)
class StatedAnswer:
    """One final answer in a text: characters `start:end` are the answer, `cue:stop` with what announces it."""

    text: str
    start: int
    end: int
    cue: int
    stop: int


_BOX = re.compile(r"\\f?boxed\s*(?:\{|(-?\w+(?:\.\d+)?))")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_ANSWER_LIKE = re.compile(r"[-−+($.]*\d|\$?\\")
_MATHS = re.compile(r"\d|\\(?!text)|[=<>^+]")


def thoughts(text: str) -> int:
    """Blocks of thinking that a text ends (`</think>`)."""
    return text.count(THOUGHT_END)


def aloud(text: str) -> str:
    """What is said after the last block of thinking; all of a text without one."""
    return text.rpartition(THOUGHT_END)[2]


@lru_cache(maxsize=REMEMBERED)
def stated_answers(text: str) -> tuple[StatedAnswer, ...]:
    """Every final answer stated in `text`, in order; `The answer is \\boxed{42}` is one answer.

    Read are `\\boxed{...}`, `#### 42`, `The answer is 42 .`, `final answer: 42`, `Answer: 42`.
    """
    boxes = list(_boxes(text))
    marked = boxes + [mark for mark in _hashes(text) if not _overlaps(mark, boxes)]
    marked.sort(key=lambda answer: answer.cue)
    told = [StatedAnswer(text[one.start : one.end], *one) for one in phrases(text)]
    told = [phrase for phrase in told if not _overlaps(phrase, marked) and not _only_remarks(phrase, marked)]
    return tuple(sorted(marked + told, key=lambda answer: answer.start))


def _only_remarks(phrase: StatedAnswer, marked: Sequence[StatedAnswer]) -> bool:
    """Whether a phrase says nothing but how the answer marked by a box or `####` is."""
    spelled = bool(_SPELLED.match(phrase.text))
    return bool(marked) and not spelled and is_remark(phrase.text, any(_MATHS.search(mark.text) for mark in marked))


def _overlaps(one: StatedAnswer, others: Sequence[StatedAnswer]) -> bool:
    """Whether an answer stands in one of others, which are in order."""
    place = bisect_right(others, one.stop, key=lambda other: other.cue)
    return any(one.cue <= other.stop for other in others[max(0, place - 2) : place])


def _boxes(text: str) -> Iterator[StatedAnswer]:
    closing = closing_braces(text)
    inside = 0
    for match in _BOX.finditer(text):
        start = match.end() if match[1] is None else match.start(1)
        end = closing.get(match.end() - 1) if match[1] is None else match.end()
        answer = trimmed(text, start, end) if end is not None else None
        if answer and match.start() >= inside:
            inside = end + 1 if match[1] is None else end
            yield StatedAnswer(text[slice(*answer)], *answer, match.start(), inside)


def nested_boxes(text: str) -> bool:
    """Whether a box stands inside a box."""
    closing, inside = closing_braces(text), 0
    for match in _BOX.finditer(text):
        if match.start() < inside:
            return True
        inside = max(inside, closing.get(match.end() - 1, 0))
    return False


def _hashes(text: str) -> Iterator[StatedAnswer]:
    """`#### 42`. The same marks are a heading elsewhere, so words only count on the last line."""
    for match in _HASHES.finditer(text):
        answer = trimmed(text, match.start(1), match.end(1))
        if answer and (_ANSWER_LIKE.match(match[1]) or not text[match.end() :].strip()):
            yield StatedAnswer(text[slice(*answer)], *answer, match.start(), match.end())
