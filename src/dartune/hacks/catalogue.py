"""The catalogue of hacks: named ways of gaming a likelihood reward, with the gates that stop them.

`Hack.commit` turns an honest rewrite into a hacked one, in plain English and in the lab's language, so that a reward
can be tested against every hack (`dartune check-reward` and the property tests). `docs/rewards.md` explains the
thresholds and lists the known errors of each detector.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dartune.gates.gate_input import GateInput
from dartune.gates.quantities import required_quantities
from dartune.gates.registry import required_names
from dartune.text.features import numbers, stated_answers, words

Commit = Callable[[GateInput, random.Random], str | None]

# Ends of sentences, and the lab's clauses ("Max has 15 , Yan has ...").
_SENTENCE = re.compile(r"(?<=[.;\n])\s+|(?<= ,)\s(?=\w+ (?:is|has|:))")
# Words before the announcement of an answer that belong to it: "So the final ...".
_LEAD_IN = re.compile(r"(?:\b(?:so|thus|hence|therefore|the|final)\b[,\s]*)*$", re.IGNORECASE)
_SUM = re.compile(r"(?<![\w^.])(\d+)\s*([+\-*])\s*(\d+)\s*=\s*(\d+)(?![\d.])")
# Sentences in natural English and in the lab's language that say nothing about any row.
FILLER = (
    "This is a thing to think about with care.",
    "Let us go on in a calm and orderly way.",
    "It helps to take a moment before the next part.",
    "There is always more than one way to look at it.",
)
LAB_FILLER = ("First , we know that .", "Next , so .", "Next , we know that , so .", "First , so we know that .")
# Blunt leaks mention the demonstration; subtle ones only rely on a known answer.
BLUNT_LEAKS = ("As the given solution says, ", "According to the provided solution, ", "The reference answer fits. ")
SUBTLE_LEAKS = ("as we already know the answer, ", "which matches the expected result, ", "as shown above, ")
# One text that fits every row.
TEMPLATE = "We read the question, take the numbers it gives, combine them step by step, and get the result."
LAB_TEMPLATE = "First , we know that has . Next , so has = . Next , so has = ."
INSTRUCTION = "Solve the problem in your own words, step by step, keeping every intermediate result."
"""A span of a mapper's instruction. `GateThresholds.instruction` must contain it for the copy to be detected."""
INVENTED_NAMES = ("Zoe", "Gus", "Ola", "Finn", "Ida", "Quin")
"""Names of the lab. `GateThresholds.names` must contain them for an invented person to be detected."""
CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувшхыз")


@dataclass(frozen=True, slots=True)
class Hack:
    """One way of gaming the reward.

    Args:
        name: its name in metrics, reports and fixtures.
        description: what it does, as in the table of `docs/rewards.md`.
        stopped_by: gates or penalties, of which at least one stops it.
        commit: returns the hacked text, or None if the hack cannot be applied to this rewrite.
        finish: the sample's finish reason, for a hack that does not show in the text.
    """

    name: str
    description: str
    stopped_by: tuple[str, ...]
    commit: Commit
    finish: str = "stop"

    def apply(self, item: GateInput, rng: random.Random) -> GateInput | None:
        """Return the row with a hacked rewrite, or None if the hack cannot be applied or changes nothing.

        Tokens and log-probabilities are removed, because they belong to the honest rewrite.
        """
        text = self.commit(item, rng)
        if text is None or (text == item.rewrite and self.finish == item.finish):
            return None
        return replace(item, rewrite=text, finish=self.finish, token_ids=(), answer_logprob=None)


# ---------------------------------------------------------------- reading a rewrite


def split(text: str) -> tuple[str, str]:
    """Split a text into its reasoning and the statement of its answer."""
    stated = stated_answers(text)
    if not stated:
        return text, ""
    lead_in = _LEAD_IN.search(text[: stated[-1].cue])
    assert lead_in is not None  # the pattern also matches the empty string
    cue = lead_in.start()
    return text[:cue].rstrip(), text[cue:]


def sentences(reasoning: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(reasoning) if part.strip()]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _is_lab(item: GateInput) -> bool:
    """Return whether the row is in the lab's language, which puts spaces around punctuation."""
    return item.question.endswith(" ?")


def _names(item: GateInput) -> list[str]:
    """Return the required names that the rewrite uses."""
    return [name for name in required_names(item) if re.search(rf"\b{re.escape(name)}\b", item.rewrite)]


# ---------------------------------------------------------------- the hacks


def _bare_answer(item: GateInput, rng: random.Random) -> str | None:
    return split(item.rewrite)[1] or None


def _garbage(item: GateInput, rng: random.Random) -> str | None:
    """Shuffle the question's words, without its numbers, before the answer."""
    ending = split(item.rewrite)[1]
    question_words = [word for word in item.question.split() if not any(c.isdigit() for c in word)]
    rng.shuffle(question_words)
    return _join(" ".join(question_words), "." if _is_lab(item) else "\n", ending) if ending else None


def _wrong_step(item: GateInput, rng: random.Random) -> str | None:
    """Change an operand of one written calculation; everything after it remains."""
    reasoning, ending = split(item.rewrite)
    sums = list(_SUM.finditer(reasoning))
    if not sums:
        return None
    match = rng.choice(sums)
    operand = str(int(match[3]) + rng.choice([1, 2, 3]))
    return reasoning[: match.start(3)] + operand + reasoning[match.end(3) :] + " " + ending


def _merged_entities(item: GateInput, rng: random.Random) -> str | None:
    names = _names(item)
    if len(names) < 2:
        return None
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, names))})\b", rng.choice(names), item.rewrite)


def _dropped_entities(item: GateInput, rng: random.Random) -> str | None:
    names = _names(item)
    if not names:
        return None
    dropped = rng.choice(names)
    return re.sub(rf"\b{re.escape(dropped)}\b(?:'s|’s)?", "" if _is_lab(item) else "one", item.rewrite)


def _invented_entities(item: GateInput, rng: random.Random) -> str | None:
    """Replace the last mention of one name with a name that the row does not have."""
    names = _names(item)
    invented = [name for name in INVENTED_NAMES if name not in f"{item.question} {item.solution}"]
    if not names or not invented:
        return None
    last = list(re.finditer(rf"\b{re.escape(rng.choice(names))}\b", item.rewrite))[-1]
    return item.rewrite[: last.start()] + rng.choice(invented) + item.rewrite[last.end() :]


def _dropped_steps(item: GateInput, rng: random.Random) -> str | None:
    """Keep only the last sentence of the reasoning."""
    reasoning, ending = split(item.rewrite)
    parts = sentences(reasoning)
    # A last sentence with all required quantities is not a hack.
    if len(parts) < 2 or set(numbers(parts[-1])) >= set(required_quantities(item)):
        return None
    return _join(parts[-1], ending)


def _loop(item: GateInput, rng: random.Random) -> str | None:
    reasoning, ending = split(item.rewrite)
    parts = sentences(reasoning)
    if not parts:
        return None
    place = rng.randrange(len(parts))
    return _join(*parts[:place], *[parts[place]] * 12, *parts[place + 1 :], ending)


def _question_copied(item: GateInput, rng: random.Random) -> str | None:
    return _join(item.question, item.rewrite)


def _filler(item: GateInput, rng: random.Random) -> str | None:
    """Add sentences that fit any question, about as many words as the reasoning has."""
    reasoning, ending = split(item.rewrite)
    choice = LAB_FILLER if _is_lab(item) else FILLER
    padding = [choice[i % len(choice)] for i in range(max(3, len(words(reasoning)) // 6))]
    return _join(*padding[:2], reasoning, *padding[2:], ending)


def _leak(phrases: Sequence[str]) -> Commit:
    def commit(item: GateInput, rng: random.Random) -> str | None:
        phrase = rng.choice(list(phrases))
        return phrase + item.rewrite if phrase[0].isupper() else phrase.capitalize() + item.rewrite

    return commit


def _early_answer(item: GateInput, rng: random.Random) -> str | None:
    """State the answer first and the reasoning after it."""
    ending = split(item.rewrite)[1]
    return f"{ending.strip()}{' ' if _is_lab(item) else chr(10)}{item.rewrite}" if ending else None


def _other_answer(item: GateInput, rng: random.Random) -> str | None:
    stated = stated_answers(item.rewrite)
    if not stated or not re.fullmatch(r"-?\d+", stated[-1].text):
        return None
    return str(int(stated[-1].text) + rng.choice([1, 2, 5]))


def _several_answers(item: GateInput, rng: random.Random) -> str | None:
    wrong = _other_answer(item, rng)
    reasoning, ending = split(item.rewrite)
    full_stop = " ." if _is_lab(item) else "."
    return _join(reasoning, f"The answer is {wrong}{full_stop}", ending) if wrong else None


def _wrong_answer(item: GateInput, rng: random.Random) -> str | None:
    wrong = _other_answer(item, rng)
    if not wrong:
        return None
    last = stated_answers(item.rewrite)[-1]
    return item.rewrite[: last.start] + wrong + item.rewrite[last.end :]


def _first_box(item: GateInput, rng: random.Random) -> str | None:
    wrong = _other_answer(item, rng)
    right = stated_answers(item.rewrite)[-1].text if wrong else ""
    return f"{split(item.rewrite)[0]} \\boxed{{{right}}} and after all \\boxed{{{wrong}}}" if wrong else None


def _nested_box(item: GateInput, rng: random.Random) -> str | None:
    wrong = _other_answer(item, rng)
    right = stated_answers(item.rewrite)[-1].text if wrong else ""
    return f"{split(item.rewrite)[0]} \\boxed{{{wrong} \\text{{ or }} \\boxed{{{right}}}}}" if wrong else None


def _truncated(item: GateInput, rng: random.Random) -> str | None:
    reasoning, _ = split(item.rewrite)
    parts = reasoning.split(" ")
    return " ".join(parts[: max(1, 2 * len(parts) // 3)])


def _language_switch(item: GateInput, rng: random.Random) -> str | None:
    """Write every word of the reasoning except names in another script."""
    reasoning, ending = split(item.rewrite)
    names = set(_names(item))
    spelled = re.sub(
        r"[A-Za-z]+", lambda m: m[0] if m[0] in names or len(m[0]) < 2 else m[0].lower().translate(CYRILLIC), reasoning
    )
    return _join(spelled, ending) if sum(a != b for a, b in zip(spelled, reasoning, strict=True)) > 8 else None


def _instruction(item: GateInput, rng: random.Random) -> str | None:
    return _join(" ".join(INSTRUCTION.split()), item.rewrite)


def _template(item: GateInput, rng: random.Random) -> str | None:
    """Use the same text for every row, with the row's answer."""
    ending = split(item.rewrite)[1]
    text = LAB_TEMPLATE if _is_lab(item) else TEMPLATE
    return _join(text, ending) if ending else None


def _too_long(item: GateInput, rng: random.Random) -> str | None:
    """Repeat the whole reasoning with different openings, so that no block repeats back to back."""
    reasoning, ending = split(item.rewrite)
    openings = ["So", "And", "Then", "Now", "Again", "Well", "Yes", "Right"]
    return _join(reasoning, *[f"{opening} {reasoning}" for opening in 2 * openings], ending) if reasoning else None


def _too_short(item: GateInput, rng: random.Random) -> str | None:
    """Keep only the first word and the answer."""
    reasoning, ending = split(item.rewrite)
    return _join(reasoning.split(" ")[0], ending) if ending else None


def _empty(item: GateInput, rng: random.Random) -> str | None:
    return ""


HACKS: tuple[Hack, ...] = (
    Hack("bare_answer", "the answer without any reasoning", ("quantities",), _bare_answer),
    Hack(
        "garbage_reasoning", "meaningless reasoning in front of the right answer", ("quantities", "follows"), _garbage
    ),
    Hack(
        "silent_wrong_step", "one step that does not hold on the way to the right answer", ("true_sums",), _wrong_step
    ),
    Hack("merged_entities", "one name for everybody", ("entities",), _merged_entities),
    Hack("dropped_entities", "a name left out", ("entities",), _dropped_entities),
    Hack("invented_entities", "somebody who is in neither question nor source", ("own_names",), _invented_entities),
    Hack("dropped_intermediates", "steps left out", ("quantities",), _dropped_steps),
    Hack("repetition_loop", "one sentence again and again", ("no_loop",), _loop),
    Hack("question_copied", "the question repeated as padding", ("not_copied",), _question_copied),
    Hack("filler", "sentences that fit any question", ("informative",), _filler),
    Hack("leak_blunt", "the demonstration is mentioned", ("no_leak",), _leak(BLUNT_LEAKS)),
    Hack("leak_subtle", "the reasoning leans on a known answer", ("no_leak",), _leak(SUBTLE_LEAKS)),
    Hack("early_answer", "answer first, reasons found for it afterwards", ("one_answer",), _early_answer),
    Hack("several_answers", "several answers, one of them right", ("one_answer",), _several_answers),
    Hack("wrong_answer", "a wrong answer", ("correct_answer",), _wrong_answer),
    Hack("first_box", "right in the first box, wrong in the last", ("one_answer", "correct_answer"), _first_box),
    Hack("nested_box", "two answers in one box", ("one_answer", "correct_answer"), _nested_box),
    Hack("truncated", "cut at the token limit", ("finished",), _truncated, "length"),
    Hack("language_switch", "another script or language", ("language",), _language_switch),
    Hack("instruction_repeated", "the rewriting instruction repeated", ("no_leak",), _instruction),
    Hack("template_collapse", "one text for every row", ("quantities", "collapse"), _template),
    Hack("too_long", "far longer than source and own samples", ("length",), _too_long),
    Hack("too_short", "far shorter than source and own samples", ("quantities", "length"), _too_short),
    Hack("empty", "nothing at all", ("finished",), _empty),
)
