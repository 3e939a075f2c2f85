"""Written sums, checked: `12 + 3 = 24` in a rewrite is a wrong step, however natural the target finds it.

Only arithmetic of plain numbers is judged, on either side of an equals sign, in plain text and in LaTeX; whatever has
letters in it is left alone.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from functools import lru_cache

from dartune.rewards.prefix import with_infix
from dartune.rewards.spelling import VULGAR, vulgar_fraction
from dartune.rewards.text import REMEMBERED, in_digits
from dartune.rewards.units import MEASURES

_NOTE = re.compile(r"<<[^<>]*>>")
_LIST_MARK = re.compile(r"(?im)^[ \t]*(?:[-*•#–]+[ \t]+)?(?:(?:step[ \t]*\d{1,2}|\d{1,2}(?=[.)]))[.):][ \t]+)?")
_BRACED = r"\{([^{}]*)\}"
_MARKED = r"\\(?:f?box|boxed|underline|emph|bm|boldsymbol|(?:math|text)(?:bf|rm|it|sf|tt)?|mbox)\s*"
Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), new) for pattern, new in pairs)


_LAYOUT = _rules(
    # Bold starts at a word's start and ends at a word's end; `2 ** 3` and `2**3` are powers.
    (r"(?<![\w)\]}*.])\*\*(?=[^\s*])((?:[^*\n]|\*(?!\*)){1,200}?)(?<![\s*])\*\*(?![\w(*])", r"\1"),
    (r"(?<==)([ \t]{0,3})([*_])(-?[$£€]?[\d,.]{1,30})\2(?![\w*(])", r"\1\3"),
    (r"`", ""),
    (r"\\\\\*?(?:\[[^\[\]]{0,12}\])?\s{0,20}&\s{0,3}(?=[+*/×÷−–-])", " "),
    (r"\\\\\*?(?:\[[^\[\]]{0,12}\])?", "\n"),
    (r"&(?=\s{0,3}[=+*/×÷−–-])|(?<==)\s{0,3}&", " "),
)
_LATEX = _rules(
    (r"\\(?:left|right|displaystyle|[,;!: ()\[\]])", " "),
    (r"\\[dt]?frac\s*" + _BRACED + r"\s*" + _BRACED, r"((\1)/(\2))"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"(\1/\2)"),
    (r"\\sqrt\s*" + _BRACED, r"sqrt(\1)"),
    (r"\^\s*" + _BRACED, r"**(\1)"),
    (r"\^\s*(\d)", r"**\1"),
    (r"\\(?:text|mathrm|mbox)\s*\{\s*([a-z]{2,14})\s*\}", r" \1"),
    (_MARKED + r"\{([^{}A-Za-z\\]*)\}|\\f?boxed\s*" + _BRACED, r" \1\2"),
    (r"(?<![\w\\^_}\])])\{([^{}A-Za-z\\]*)\}", r"\1"),
)
_SIGNS = _rules(
    (r"²", "**2"),
    (r"³", "**3"),
    (r"\\(?:times|cdot)(?![a-z])|[×·⋅✕✖]|(?<=[\d)]) x (?=[\d(])|(?<=[1-9])x(?=\d)", "*"),
    (r"√\s?(\d{1,20}(?:\.\d{1,20})?)", r"sqrt(\1)"),
    (r"( [-+*/] [$£€]?\d[\d.,]{0,20}(?: [a-z]{2,14})?) (?:is equal to|equals) (?=[$£€]?\d)", r"\1 = "),
    # A percentage that is added or taken off is one of what stands before it: 50 - 20% = 40.
    (
        r"(?<![\d.*/+-])(?<![*/+-] )(\d{1,20}(?:\.\d{1,20})?) ?([-+]) ?(\d{1,20}(?:\.\d{1,20})?)\s?\\?%(?=\s?=)",
        r"\1*(1\2\3/100)",
    ),
    (r"\\div(?![a-z])|÷", "/"),
    (r"[−–]", "-"),
    (r"\\approx(?![a-z])", "≈"),
    (r"(?<![\d.])(\d{1,20}(?:\.\d{1,20})?)\s?\\?%\s+of\s+(?=[$£€]?\d)", r"(\1/100) * "),
    (r"(?<![\d.])(\d{1,20}(?:\.\d{1,20})?)\s?\\?%(?=\s{0,3}(?:[+\-*/)]|\\cdot|\\times|=))", r"(\1/100)"),
    (r"(?<=\d)(?=\(\d{1,20}(?:\.\d{1,20})?\))", "*"),
    (r"\\?[$£€]|\*\*(?![\d(]|(?<=[\d)]\s\*\*)\s[\d(])", ""),
    (r"(?<=\d)\{?,\}?(?=\d{3}(?!\d))", ""),
)
_MIXED = re.compile(r"(?<![\w.,/)^])(\d{1,9}) (?:and )?(\d{1,4})/(\d{1,4})(?![\w/(]|[.,]\d)")
_MIXED_LATEX = re.compile(r"(?<![\w.,/)^}])(\d{1,9})\s?\\[dt]?frac\s?\{(\d{1,4})\}\s?\{(\d{1,4})\}")
_OPERATOR_AT_START = re.compile(r"(?:^|\n)[ \t]*[-+*/×÷][ \t]+\Z")
_LINES = _rules(
    # A calculation goes on in a line that opens with an equals sign, and in one that holds nothing but a result.
    (r"\n[ \t]{0,40}(?:\n[ \t]{0,40}){0,2}(?==(?!=))", " "),
    (r"(?<=[\d)\s]=)[ \t]{0,40}\n\s{0,40}(?=-?[\d,.]{0,30}\d[ \t.]{0,9}(?:\n|$))", " "),
)
# Possessive: numbers that may be split up in several ways would be tried in all of them.
_RUN = r"(?>sqrt\(|\d++(?:\.\d++)?+|\.\d++|\*\*|[+\-*/()]|\s)"
_LEFT = re.compile(rf"{_RUN}++$")
_RIGHT = re.compile(rf"{_RUN}++")
_TOUCHES = re.compile(r"[\w%\\^_{}.]$|\d:$")
_RELATION = re.compile("([=≈])")
_OF_ANOTHER_KIND = re.compile(
    r"[\s(\\]{0,8}(?:[pb]?mod\b|%|(?:text\s?\{)?\s?(?:[Rr](?:\b|\d)|,?\s?(?:with )?(?:an? )?remainder)"
    r"|(?:with|and) (?:\d{1,9}|an?|some|\w{1,20} \w{1,20}) (?:\w{1,20} )?(?:left|remaining|over)\b"
    r"|(?:full|whole|complete|entire)\b|,?\s?rounded)"
)
"""What stands behind a quotient that is not exact: `17/5 = 3 full boxes`, `22/4 = 5 R2`."""
_LABEL = re.compile(
    r"\b(?:week|day|month|year|person|option|box|case|group|team|part|page|room|bag|child|student|player|trip|round|game|"
    r"class|grade|level|chapter|question|problem|item|number|phase|stage|shelf|row|column|car|bus|house|floor|method|"
    r"city|store|worker|friend|machine|tank|jar|plan|order|shift|lap|test|quiz|set|batch)s? #?\d{1,3}(?=\s?[=+])",
    re.IGNORECASE,
)
"""Numbers that are names: `Week 1 = 5 + 3`."""
_EQUATION = re.compile(r"(?:[^=\n.;]|\.\d){1,80}=(?:[^=\n.;]|\.\d){1,40}")
_CENTS = re.compile(r"\d ?(?:cents?\b|¢)")
_CONTINUES = re.compile(r"\b(?:of|x|times|plus|minus|squared|modulo|mod|(?:divided|multiplied) by)\s*$", re.IGNORECASE)
_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
_WITH_UNITS = re.compile(
    r"(?<![\d.])(\d++(?:\.\d++)?+(?: ?[a-z]{2,14})?(?: ?[-+*/] ?\d++(?:\.\d++)?+(?: ?[a-z]{2,14})?)+) ?([=≈]) ?"
    r"(\d++(?:\.\d++)?+(?: ?[a-z]{2,14})?)(?![\w%/*+^]|[.,]\d|\.\.| ?[-+*/^=%(])"
)
_BEFORE_UNITS = re.compile(r"[\w.,:)%^/*+=(<>-]\Z|[-+*/^(<>\d] *\Z|[\d)] *= *\Z")
OPERATIONS_IN_WORDS = {"divided by": "/", "times": "*", "multiplied by": "*", "plus": "+", "minus": "-"}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fifth": 5, "tenth": 10}
_NUMBER = r"\d++(?:\.\d++)?+"
_THING = r"(?: [a-z]{2,14}s?)?"
_COMES_TO = (
    r"(?:,? (?:which|that) (?:is|are|equals|gives|makes|leaves|comes to)|,? (?:is|are|equals?|gives?|makes?|leaves?)"
    r"(?: equal to)?)"
)
_IN_WORDS = re.compile(
    rf"(?<![\d.])(?:(?P<left>{_NUMBER}){_THING} (?P<word>{'|'.join(OPERATIONS_IN_WORDS)}) (?P<right>{_NUMBER}){_THING}"
    rf"|(?:a |one )?\b(?P<part>{'|'.join(PARTS)}) of (?P<whole>{_NUMBER}){_THING}"
    rf"|\(?(?P<top>\d{{1,3}})/(?P<bottom>\d{{1,3}})\)? of (?P<of>{_NUMBER}){_THING}"
    rf"|\((?P<percent>{_NUMBER})/100\) \* (?P<base>{_NUMBER}){_THING})"  # what `_SIGNS` makes of 20% of 250
    rf"{_COMES_TO} (?P<result>{_NUMBER})"
    r"(?![\w%/*+^]|[.,:]\d| ?[-+*/^=%(]| (?:more|less|times|percent|of|and|remainder|with|or|\d))",
    re.IGNORECASE,
)
_GOES_BEFORE = re.compile(rf"\b(?:{'|'.join(OPERATIONS_IN_WORDS)}|of|by|and)\s*\Z", re.IGNORECASE)
_UNIT = re.compile(r"(?<=\d) ?([a-z]{2,14})")
NOT_UNITS = frozenset(
    "dozen hundred thousand million billion half halve third quarter of time plus minu percent".split()
)
_UNIT_INSIDE = re.compile(r"(?<=\d) ?(?!x\b)[A-Za-z]{1,14}(?:/[A-Za-z]{1,14})?(?= ?[-+*/)=])")
_PART_OF = re.compile(r"(?<=\d/\d)(\d{0,3}\)?) of (?=[$£€]?\d)")
_CALCULATION = re.compile(rf"{_RUN}++")
_LOOSE_ENDS = re.compile(r"\A[\s+\-*/]+|[\s+\-*/]+\Z")
_OPERATOR = re.compile(r"[\d)]\s*[-+*/]{1,2}\s*[\d(.]|sqrt")
LONGEST = 120
LONGEST_LINE = 4000
"""Characters; a longer line is a loop, in which sums with words are not looked for."""
ROUGHLY = 0.1
"""`≈` tells an estimate, such as 615 ≈ 600; what is further off is a wrong step."""
SHORT_OF = 0.01
"""Results of two decimals and more may be rounded from longer ones: money, for instance."""
LARGEST_POWER = 12
LARGEST_BITS = 1024


@lru_cache(maxsize=REMEMBERED)
def false_sums(text: str) -> frozenset[str]:
    """The equations `a + b = c` of plain numbers that do not hold, normalised and without spaces.

    With decimals, quotients or roots, a result that is rounded, or cut to a whole number or to two decimals, holds
    (`100/7 = 14.3`, not `15`); what two decimals can tell (`1.5 * 7 = 10.5`), and a sum of whole numbers, is exact.
    `25% * 28` is 7. What is written with `≈` may be a tenth off.
    """
    found = set()
    for line in _plain(text).split("\n"):
        sides = _RELATION.split(line)  # side, sign, side, sign, ...
        for i in range(1, len(sides), 2):
            left, right = _left(sides[i - 1]), _right(sides[i + 1])
            if left and right and _judged(left, right) and not _known_to_hold(left, right, sides[i] != "="):
                found.add(re.sub(r"\s", "", f"{left}{sides[i]}{right}"))
        if len(line) <= LONGEST_LINE:
            found.update(_false_with_units(line))
            found.update(_false_in_words(line))
    return frozenset(found)


def calculations(text: str) -> list[tuple[frozenset[Fraction], Fraction | float]]:
    """Every written calculation of two numbers or more: its operands without those that change nothing, its value.

    A calculation within a longer one counts, too. Signs in plain text and in LaTeX are read, units between the numbers
    passed over (`12 beads + 15 beads`). A number that is calculated with itself (`12 + 12`) stands with its double.
    """
    found = []
    for line in _plain(text).split("\n"):
        for run in _CALCULATION.findall(_UNIT_INSIDE.sub("", _PART_OF.sub(r"\1*", line))):
            trimmed = _LOOSE_ENDS.sub("", run[:LONGEST])
            expression = _balanced(_balanced(trimmed, at_end=True) or "", at_end=False)
            if expression and _OPERATOR.search(expression):
                found += _parts(re.sub(r"\)\s*\(", ")*(", expression))
    return found


def _parts(expression: str) -> Iterator[tuple[frozenset[Fraction], Fraction | float]]:
    """The operands and the value of an expression and of each calculation within it."""
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.BinOp | ast.Call):
            continue
        with suppress(ValueError, ZeroDivisionError, OverflowError, TypeError):
            value = _evaluate(node)
            terms = [_evaluate(leaf) for leaf in ast.walk(node) if isinstance(leaf, ast.Constant)]
            scaled = any(isinstance(part, ast.Mult | ast.Div | ast.Pow) for part in ast.walk(node))
            operands = [term for term in terms if term != 0 and not (scaled and term == 1)]
            if isinstance(node, ast.Call):
                operands.append(value)
            if len(operands) > 1:
                found = frozenset(operands)
                yield found | {2 * operands[0]} if len(found) == 1 else found, value


def _false_in_words(line: str) -> Iterator[str]:
    """Wrong calculations in words: `36 divided by 1.5 is 20`, `20% of 250 is 60`, `half of 300 is 160`."""
    for match in _IN_WORDS.finditer(in_digits(line)):
        before = match.string[max(0, match.start() - LONGEST) : match.start()]
        if _BEFORE_UNITS.search(before) or _GOES_BEFORE.search(before):
            continue
        if match["part"]:
            calculation = f"(1/{PARTS[match['part'].lower()]})*{match['whole']}"
        elif match["top"]:
            calculation = f"({match['top']}/{match['bottom']})*{match['of']}"
        elif match["percent"]:
            calculation = f"({match['percent']}/100)*{match['base']}"
        else:
            calculation = f"{match['left']}{OPERATIONS_IN_WORDS[match['word'].lower()]}{match['right']}"
        if not _known_to_hold(calculation, match["result"], roughly=False):
            yield f"{calculation}={match['result']}"


def _false_with_units(line: str) -> Iterator[str]:
    """Equations of numbers with units in words (`12 beads + 15 beads = 28 beads`) that do not hold.

    Judged where no unit can be another one's multiple: sums of one unit, other calculations with at most one measure.
    """
    for match in _WITH_UNITS.finditer(line):
        left, sign, right = match.groups()
        before = line[max(0, match.start() - LONGEST) : match.start()]
        if _BEFORE_UNITS.search(before) or _CONTINUES.search(before) or _GOES_BEFORE.search(before):
            continue
        if not _UNIT.search(left) or re.search(r"/[^=]*/", left):  # without units on the left it is judged above
            continue
        units = [unit.removesuffix("s") for unit in _UNIT.findall(left + " = " + right)]
        bare = [_UNIT.sub("", side).strip() for side in (left, right)]
        sums = bool(re.search(r"\d\s*[-+]", bare[0]))
        alike = len(set(units)) < 2 if sums else len(MEASURES.intersection(units)) < 2
        if alike and not NOT_UNITS.intersection(units) and not _known_to_hold(*bare, sign != "="):
            yield re.sub(r"\s", "", f"{bare[0]}{sign}{bare[1]}")


def _plain(text: str) -> str:
    text = _LABEL.sub("that", with_infix(_NOTE.sub("", text)))
    if "$" in text and _CENTS.search(text):
        text = _EQUATION.sub(_in_one_currency, text)
    text = _MIXED_LATEX.sub(_improper, text)
    text = _MIXED.sub(_improper, VULGAR.sub(lambda sign: f" {vulgar_fraction(sign[0])}", text))
    text = _LIST_MARK.sub("", _rewritten(text, _LAYOUT))
    return _rewritten(text, _LATEX + _LATEX + _SIGNS + _LINES)  # twice: fractions and boxes stand in each other


def _in_one_currency(equation: re.Match[str]) -> str:
    """An equation, or if it has dollars and cents the same without its sign: it is not judged."""
    mixed = "$" in equation[0] and _CENTS.search(equation[0])
    return equation[0].replace("=", " is ") if mixed else equation[0]


def _improper(mixed: re.Match[str]) -> str:
    """A mixed number as a sum, `2 1/2` as `(2+1/2)`; prefix notation (`- 5 1/2`) stays."""
    proper = int(mixed[2]) < int(mixed[3])
    if not proper or _OPERATOR_AT_START.search(mixed.string[max(0, mixed.start() - 40) : mixed.start()]):
        return mixed[0]
    return f"({mixed[1]}+{mixed[2]}/{mixed[3]})"


def _rewritten(text: str, rules: Rules) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def _left(side: str) -> str | None:
    """The arithmetic that ends at an equals sign; None where it is part of something longer."""
    match = _LEFT.search(side[-LONGEST:])
    if match is None:
        return None
    before, run = side[-LONGEST:][: match.start()], match[0]
    if _CONTINUES.search(before) or (before and before[-1] in "<>!≤≥≠"):
        return None
    # "Ann - 9" is no negative number, and "x(3) + 1" no sum.
    if before and (
        _TOUCHES.search(before) if not run[0].isspace() else before[-1] not in ",:;" and run.strip()[:1] == "-"
    ):
        return None
    return _balanced(run.strip(), at_end=False)


def _right(side: str) -> str | None:
    """The arithmetic that starts at an equals sign; None where it is part of something longer."""
    match = _RIGHT.match(side[:LONGEST])
    if match is None:
        return None
    run, after = match[0], side[match.end() : match.end() + 2]
    if after and not run[-1].isspace() and not run.endswith(" (") and re.match(r"[\w%\\^_{]|[.,:]\d", after):
        return None
    shorter = re.sub(r"[\s(]+$", "", run)
    if (shorter and shorter[-1] in "+-*/") or _OF_ANOTHER_KIND.match(side, len(shorter)):
        return None
    return _balanced(shorter.strip(), at_end=True)


def _balanced(run: str, *, at_end: bool) -> str | None:
    """`run` without brackets that belong to the text around it; None where nothing is left."""
    if at_end:
        while run.endswith(")") and run.count(")") > run.count("("):
            run = run[:-1].rstrip()
    else:
        while run.startswith("(") and run.count("(") > run.count(")"):
            run = run[1:].lstrip()
    return run or None


def _judged(left: str, right: str) -> bool:
    """Whether one side calculates: two plain numbers may be equal for reasons we do not see."""
    if any(re.search(r"/\s*[\d.]+\s*/", side) for side in (left, right)):
        return False  # 12 / 1 / 3 is written for 12 / (1/3) as well
    return any(re.search(r"[\d)]\s*[+\-*/]|sqrt", side) for side in (left, right)) and left[0] not in "+*/)"


def _known_to_hold(left: str, right: str, roughly: bool) -> bool:
    """Whether an equation holds, `roughly` or exactly, or has numbers that are too large to tell."""
    try:
        return _holds_roughly(left, right) if roughly else _holds(left, right)
    except OverflowError:
        return True


def _holds(left: str, right: str) -> bool:
    values = _value(left), _value(right)
    if None in values:
        return True
    rounded = re.search(r"\.\d|/|sqrt", left + right)
    if not rounded:
        return values[0] == values[1]
    if not re.fullmatch(r"-?\d*\.?\d+", right):
        return abs(values[0] - values[1]) < 0.01 * max(1.0, abs(values[0]))
    unit = 10.0 ** -len(right.partition(".")[2])
    if _few_decimals(values[0]):
        return abs(values[0] - values[1]) < (unit if unit <= SHORT_OF else 1e-9)
    cut = unit != 0.1 and abs(values[1]) < abs(values[0]) < abs(values[1]) + unit
    return cut or abs(values[1] - values[0]) <= unit / 2


def _holds_roughly(left: str, right: str) -> bool:
    values = _value(left), _value(right)
    return None in values or abs(values[0] - values[1]) <= max(ROUGHLY * abs(values[0]), 0.5)


def _few_decimals(value: Fraction | float) -> bool:
    """Whether a value has at most two decimals. Such a value must be written exactly."""
    return isinstance(value, Fraction) and (value * 100).denominator == 1


def _value(expression: str) -> Fraction | float | None:
    """Value of numbers, + - * / ** ( ) and sqrt; None where it is not arithmetic, or too large."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST) -> Fraction | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow):
            size = max(Fraction(left).numerator.bit_length(), Fraction(left).denominator.bit_length())
            if right != int(right) or not 0 <= right <= LARGEST_POWER or size * right > LARGEST_BITS:
                raise ValueError("a power that is not worked out")
            return left ** int(right)
        if type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](left, right)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "sqrt"
        and len(node.args) == 1
    ):
        return math.sqrt(_evaluate(node.args[0]))
    raise ValueError("not arithmetic")
