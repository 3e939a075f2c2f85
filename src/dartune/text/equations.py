"""Checks written equations: `12 + 3 = 24` in a rewrite is a wrong step, however likely the target finds it.

Only arithmetic of plain numbers on either side of an equals sign is checked, in plain text and in LaTeX. Expressions
with variables are not. When in doubt an equation counts as true: a gate must not reject correct rewrites.
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

from dartune.text.features import CACHE_SIZE, in_digits
from dartune.text.number_spelling import VULGAR, vulgar_fraction
from dartune.text.prefix_notation import with_infix
from dartune.text.units import MEASURES

_NOTE = re.compile(r"<<[^<>]*>>")
_LIST_MARK = re.compile(r"(?im)^[ \t]*(?:[-*•#–]+[ \t]+)?(?:(?:step[ \t]*\d{1,2}|\d{1,2}(?=[.)]))[.):][ \t]+)?")
_BRACED = r"\{([^{}]*)\}"
_MARKED = r"\\(?:f?box|boxed|underline|emph|bm|boldsymbol|(?:math|text)(?:bf|rm|it|sf|tt)?|mbox)\s*"
Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), new) for pattern, new in pairs)


# Rewriting rules turn a text into lines of Python arithmetic. They are applied in this order: layout, LaTeX (twice),
# signs, lines.
_LAYOUT = _rules(
    # Bold text starts at the start of a word and ends at the end of a word; `2 ** 3` and `2**3` are powers.
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
    # A percentage that is added or subtracted refers to the number before it: 50 - 20% = 40.
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
    # A calculation continues in a line that opens with an equals sign, and in a line that holds only a result.
    (r"\n[ \t]{0,40}(?:\n[ \t]{0,40}){0,2}(?==(?!=))", " "),
    (r"(?<=[\d)\s]=)[ \t]{0,40}\n\s{0,40}(?=-?[\d,.]{0,30}\d[ \t.]{0,9}(?:\n|$))", " "),
)
# Possessive quantifiers: with backtracking, the ways to split a long number would take exponential time.
_RUN = r"(?>sqrt\(|\d++(?:\.\d++)?+|\.\d++|\*\*|[+\-*/()]|\s)"
_LEFT = re.compile(rf"{_RUN}++$")
_RIGHT = re.compile(rf"{_RUN}++")
_TOUCHES = re.compile(r"[\w%\\^_{}.]$|\d:$")
_RELATION = re.compile("([=≈])")
_NOT_EXACT = re.compile(
    r"[\s(\\]{0,8}(?:[pb]?mod\b|%|(?:text\s?\{)?\s?(?:[Rr](?:\b|\d)|,?\s?(?:with )?(?:an? )?remainder)"
    r"|(?:with|and) (?:\d{1,9}|an?|some|\w{1,20} \w{1,20}) (?:\w{1,20} )?(?:left|remaining|over)\b"
    r"|(?:full|whole|complete|entire)\b|,?\s?rounded)"
)
"""Text behind a result that is not meant as an exact quotient: `17/5 = 3 full boxes`, `22/4 = 5 R2`."""
_LABEL = re.compile(
    r"\b(?:week|day|month|year|person|option|box|case|group|team|part|page|room|bag|child|student|player|trip|round|game|"
    r"class|grade|level|chapter|question|problem|item|number|phase|stage|shelf|row|column|car|bus|house|floor|method|"
    r"city|store|worker|friend|machine|tank|jar|plan|order|shift|lap|test|quiz|set|batch)s? #?\d{1,3}(?=\s?[=+])",
    re.IGNORECASE,
)
"""Numbers that are part of a name: `Week 1 = 5 + 3`."""
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
    rf"|\((?P<percent>{_NUMBER})/100\) \* (?P<base>{_NUMBER}){_THING})"  # 20% of 250 after `_SIGNS`
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
"""Characters of one side of an equation that are read."""
LONGEST_LINE = 4000
"""Characters. A longer line is degenerate repetition, and is not searched for equations with words."""
ROUGHLY = 0.1
"""Relative error that `≈` allows, such as 615 ≈ 600. A larger one is a wrong step."""
SHORT_OF = 0.01
"""Results with two or more decimals may be rounded from longer ones, such as amounts of money."""
LARGEST_POWER = 12
LARGEST_BITS = 1024
"""Limits of the exponent and of the size of a power, so that 9^9^9 takes no time."""


@lru_cache(maxsize=CACHE_SIZE)
def false_equations(text: str) -> frozenset[str]:
    """Return the equations `a + b = c` of plain numbers in a text that are false, normalised and without spaces.

    With decimals, quotients or roots, a result may be rounded, or truncated to a whole number or to at least two
    decimals (`100/7 = 14.3`, but not `15`). Results that two decimals represent exactly (`1.5 * 7 = 10.5`) and sums of
    whole numbers must be exact. `25% * 28` is 7. With `≈` a relative error of `ROUGHLY` is allowed.
    """
    equations = set()
    for line in _plain(text).split("\n"):
        sides = _RELATION.split(line)  # side, sign, side, sign, ..., side
        for i in range(1, len(sides), 2):
            left, right = _left(sides[i - 1]), _right(sides[i + 1])
            if left and right and _is_checkable(left, right) and not _holds_or_unknown(left, right, sides[i] != "="):
                equations.add(re.sub(r"\s", "", f"{left}{sides[i]}{right}"))
        if len(line) <= LONGEST_LINE:
            equations.update(_false_with_units(line))
            equations.update(_false_in_words(line))
    return frozenset(equations)


def calculations(text: str) -> list[tuple[frozenset[Fraction], Fraction | float]]:
    """Return the (operands, value) of every written calculation with at least two operands.

    Calculations inside a longer one are included. Plain text and LaTeX are read, and units between the numbers are
    ignored (`12 beads + 15 beads`). Neutral operands (`+ 0`, `* 1`) are left out. For a number combined with itself
    (`12 + 12`) the operands also contain its double, because a set of one would not count as a calculation.
    """
    calculations_read = []
    for line in _plain(text).split("\n"):
        for run in _CALCULATION.findall(_UNIT_INSIDE.sub("", _PART_OF.sub(r"\1*", line))):
            stripped = _LOOSE_ENDS.sub("", run[:LONGEST])
            expression = _balanced(_balanced(stripped, at_end=True) or "", at_end=False)
            if expression and _OPERATOR.search(expression):
                calculations_read += _parts(re.sub(r"\)\s*\(", ")*(", expression))
    return calculations_read


def _parts(expression: str) -> Iterator[tuple[frozenset[Fraction | float], Fraction | float]]:
    """Yield the operands and the value of an expression and of each calculation inside it."""
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
                distinct = frozenset(operands)
                yield distinct | {2 * operands[0]} if len(distinct) == 1 else distinct, value


def _false_in_words(line: str) -> Iterator[str]:
    """Yield false equations in words: `36 divided by 1.5 is 20`, `20% of 250 is 60`, `half of 300 is 160`."""
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
        if not _holds_or_unknown(calculation, match["result"], roughly=False):
            yield f"{calculation}={match['result']}"


def _false_with_units(line: str) -> Iterator[str]:
    """Yield false equations of numbers with units (`12 beads + 15 beads = 28 beads`).

    Only equations whose units need no conversion are checked: sums of one unit, and other calculations with at most one
    unit of measurement.
    """
    for match in _WITH_UNITS.finditer(line):
        left, sign, right = match.groups()
        before = line[max(0, match.start() - LONGEST) : match.start()]
        if _BEFORE_UNITS.search(before) or _CONTINUES.search(before) or _GOES_BEFORE.search(before):
            continue
        if not _UNIT.search(left) or re.search(r"/[^=]*/", left):  # without units it is checked in `false_equations`
            continue
        units = [unit.removesuffix("s") for unit in _UNIT.findall(left + " = " + right)]
        without_units = [_UNIT.sub("", side).strip() for side in (left, right)]
        is_sum = bool(re.search(r"\d\s*[-+]", without_units[0]))
        compatible = len(set(units)) < 2 if is_sum else len(MEASURES.intersection(units)) < 2
        left, right = without_units
        if compatible and not NOT_UNITS.intersection(units) and not _holds_or_unknown(left, right, sign != "="):
            yield re.sub(r"\s", "", f"{left}{sign}{right}")


def _plain(text: str) -> str:
    """Return a text with its calculations as Python arithmetic, each on one line."""
    text = _LABEL.sub("that", with_infix(_NOTE.sub("", text)))
    if "$" in text and _CENTS.search(text):
        text = _EQUATION.sub(_in_one_currency, text)
    text = _MIXED_LATEX.sub(_improper, text)
    text = _MIXED.sub(_improper, VULGAR.sub(lambda sign: f" {vulgar_fraction(sign[0])}", text))
    text = _LIST_MARK.sub("", _rewritten(text, _LAYOUT))
    return _rewritten(text, _LATEX + _LATEX + _SIGNS + _LINES)  # twice: fractions and boxes may be nested


def _in_one_currency(equation: re.Match[str]) -> str:
    """Return an equation; if it mixes dollars and cents, replace its `=` by `is`, so that it is not checked."""
    mixed = "$" in equation[0] and _CENTS.search(equation[0])
    return equation[0].replace("=", " is ") if mixed else equation[0]


def _improper(mixed: re.Match[str]) -> str:
    """Convert a mixed number to a sum: `2 1/2` -> `(2+1/2)`. Prefix notation (`- 5 1/2`) stays."""
    proper = int(mixed[2]) < int(mixed[3])
    if not proper or _OPERATOR_AT_START.search(mixed.string[max(0, mixed.start() - 40) : mixed.start()]):
        return mixed[0]
    return f"({mixed[1]}+{mixed[2]}/{mixed[3]})"


def _rewritten(text: str, rules: Rules) -> str:
    for pattern, new in rules:
        text = pattern.sub(new, text)
    return text


def _left(side: str) -> str | None:
    """Return the arithmetic in front of an equals sign; None if it is part of a longer expression."""
    match = _LEFT.search(side[-LONGEST:])
    if match is None:
        return None
    before, run = side[-LONGEST:][: match.start()], match[0]
    if _CONTINUES.search(before) or (before and before[-1] in "<>!≤≥≠"):
        return None
    # The `- 9` of "Ann - 9" is not a negative number, and the `(3) + 1` of "x(3) + 1" is not a sum.
    if before and (
        _TOUCHES.search(before) if not run[0].isspace() else before[-1] not in ",:;" and run.strip()[:1] == "-"
    ):
        return None
    return _balanced(run.strip(), at_end=False)


def _right(side: str) -> str | None:
    """Return the arithmetic behind an equals sign; None if it is part of a longer expression."""
    match = _RIGHT.match(side[:LONGEST])
    if match is None:
        return None
    run, after = match[0], side[match.end() : match.end() + 2]
    if after and not run[-1].isspace() and not run.endswith(" (") and re.match(r"[\w%\\^_{]|[.,:]\d", after):
        return None
    shorter = re.sub(r"[\s(]+$", "", run)
    if (shorter and shorter[-1] in "+-*/") or _NOT_EXACT.match(side, len(shorter)):
        return None
    return _balanced(shorter.strip(), at_end=True)


def _balanced(run: str, *, at_end: bool) -> str | None:
    """Remove unmatched brackets, which belong to the surrounding text, from one end; None if nothing is left."""
    if at_end:
        while run.endswith(")") and run.count(")") > run.count("("):
            run = run[:-1].rstrip()
    else:
        while run.startswith("(") and run.count("(") > run.count(")"):
            run = run[1:].lstrip()
    return run or None


def _is_checkable(left: str, right: str) -> bool:
    """Return whether one side calculates. Two plain numbers may be equal for reasons outside the equation."""
    if any(re.search(r"/\s*[\d.]+\s*/", side) for side in (left, right)):
        return False  # `12 / 1 / 3` is ambiguous: it is also written for 12 / (1/3)
    return any(re.search(r"[\d)]\s*[+\-*/]|sqrt", side) for side in (left, right)) and left[0] not in "+*/)"


def _holds_or_unknown(left: str, right: str, roughly: bool) -> bool:
    """Return whether an equation holds, `roughly` or exactly, or its numbers are too large to decide."""
    try:
        return _holds_roughly(left, right) if roughly else _holds(left, right)
    except OverflowError:
        return True


def _holds(left: str, right: str) -> bool:
    """Return whether two sides are equal, up to rounding or truncation of the right one."""
    left_value, right_value = _value(left), _value(right)
    if left_value is None or right_value is None:
        return True
    values = left_value, right_value
    may_be_rounded = re.search(r"\.\d|/|sqrt", left + right)
    if not may_be_rounded:
        return values[0] == values[1]
    if not re.fullmatch(r"-?\d*\.?\d+", right):
        return abs(values[0] - values[1]) < 0.01 * max(1.0, abs(values[0]))
    unit = 10.0 ** -len(right.partition(".")[2])  # of the last decimal written
    if _few_decimals(values[0]):
        return abs(values[0] - values[1]) < (unit if unit <= SHORT_OF else 1e-9)
    # One decimal must be rounded: 2/3 = 0.6 is a mistake, while 0.66 and 0 are common truncations.
    truncated = unit != 0.1 and abs(values[1]) < abs(values[0]) < abs(values[1]) + unit
    return truncated or abs(values[1] - values[0]) <= unit / 2


def _holds_roughly(left: str, right: str) -> bool:
    """Return whether two sides differ by at most `ROUGHLY`, or by 0.5 for small numbers."""
    left_value, right_value = _value(left), _value(right)
    if left_value is None or right_value is None:
        return True
    return abs(left_value - right_value) <= max(ROUGHLY * abs(left_value), 0.5)


def _few_decimals(value: Fraction | float) -> bool:
    """Return whether a value has at most two decimals. Such a value must be written exactly."""
    return isinstance(value, Fraction) and (value * 100).denominator == 1


def _value(expression: str) -> Fraction | float | None:
    """Return the value of an expression of numbers, + - * / ** ( ) and sqrt; None if it is anything else."""
    try:
        return _evaluate(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST) -> Fraction | float:
    """Return the exact value of a syntax tree, or a float if it contains a root.

    Raises:
        ValueError: the tree is not arithmetic, or contains a power that is too large.
        ZeroDivisionError, OverflowError: as in Python.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _evaluate(node.left), _evaluate(node.right)
        if isinstance(node.op, ast.Pow):
            bits = max(Fraction(left).numerator.bit_length(), Fraction(left).denominator.bit_length())
            if right != int(right) or not 0 <= right <= LARGEST_POWER or bits * right > LARGEST_BITS:
                raise ValueError("the power is too large to evaluate")
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
