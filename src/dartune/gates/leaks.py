"""Phrases that refer to the demonstration or to the instruction of the mapper.

The fine-tuned model sees the question alone, so a rewrite that refers to anything else would teach it to refer to text
that it does not have. Many of the phrases come from sets of rewrites by writers who had not seen the gates. They are
English except for `OTHER_LANGUAGES`. Misses: references in new words. False positives: honest uses of a listed phrase.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from dartune.text.features import CACHE_SIZE, space_separated, words

# Length (in words and marks) from which a span shared with the mapper's instruction counts as copied.
COPIED_WORDS = 8

# Parts of the patterns below.
_THE = r"(?:the|this|that|your|our|my|their|an?)"
_SOURCE = (
    r"(?:given|provided|original|expert|expert s|experts|sample|example|demonstrated|reference|known|expected|gold|"
    r"official|supplied|stated|existing|aforementioned|teacher s|textbook|published|quoted)"
)
_TEXT = (
    r"(?:solution|answer|derivation|explanation|rationale|demonstration|response|working|worked example|program|code|"
    r"implementation)"
)
_WRITER = (
    r"(?:solution|answer key|reference|expert|demonstration|teacher|author|source|worked example|explanation|answer)"
)
_SAYS = (
    r"(?:says?|said|states?|stated|gives?|gave|shows?|showed|notes?|noted|writes?|wrote|explains?|explained|suggests?|"
    r"claims?|indicates?|does|did|has it|puts? it|tells? us)"
)
_BY = r"(?:given|provided|supplied|quoted|above|stated|shown|demonstrated|listed|saw|were told)"
_FITS = (
    r"(?:according to|based on|in line with|consistent with|in agreement with|agrees with|matches|matching|copied from|"
    r"taken from|borrowed from)"
)
_TOLD = r"(?:(?:are|were|was|am|have been) (?:told|given|shown|provided with))"
_FINAL = r"(?:final |correct |right )?"

# Markup and apostrophes that would split a phrase, such as `expert's` or `**answer**`.
_MARKS = re.compile(r"[*_`’“”\"]|(?<=[A-Za-z])'")

LEAKS: tuple[str, ...] = (
    # The demonstration by its role, and statements that it makes.
    rf"{_THE} (?:\w+ )?{_SOURCE} (?:\w+ )?{_TEXT}",
    rf"given {_THE} {_TEXT}",
    rf"{_THE} {_FINAL}{_TEXT} (?:(?:that|which) )?(?:was |is |were |we were |i was |we |you |i )?{_BY}",
    rf"{_THE} above {_TEXT}",
    rf"(?:as|like|what) {_THE} {_WRITER} {_SAYS}",
    rf"{_THE} (?!answer )(?!explanation ){_WRITER} {_SAYS}",
    rf"{_FITS} {_THE} (?:\w+ )?{_WRITER}",
    r"(?:agrees|agree|in agreement|compare|compared|consistent) with the (?:answer )?key",
    # Comparison with a known answer, and reasoning backwards from it.
    rf"(?:matches|matching|agrees with|fits|confirms) {_THE} {_SOURCE} (?:result|value|number|total)",
    r"to match the (?:\w+ )?(?:answer|result)",
    rf"(?:we|i) {_TOLD} (?:that )?{_THE} {_FINAL}(?:answer|solution|result)",
    rf"(?:already|we|i) (?:already )?(?:know|knew) (?:that )?{_THE} {_FINAL}(?:answer|solution)",
    rf"(?:since|as|because|knowing) (?:that )?the {_FINAL}answer (?:is known|is already known|must be|has to be)",
    rf"(?:working|reasoning|going|work|reason) (?:backwards?|back) from {_THE} (?:\w+ )?(?:answer|result|solution)",
    rf"to (?:get|reach|arrive at|obtain|land on) {_THE} {_SOURCE} (?:answer|result|value|number)",
    rf"{_THE} (?:answer|solution) key",
    r"the ground truth",
    r"the (?:solution|answer) manual",
    r"the reference (?:answer|solution)",
    r"as (?:shown|given|stated|explained|demonstrated) above",
    r"in your solution",
    # The rewrite as a rewrite.
    r"(?:here is|here s|this is|below is|following is) (?:a|the|my|another) "
    r"(?:rewritten|rewrite|paraphras\w+|rephrased|reworded|restated|adapted)",
    r"(?:a|the|my) (?:rewrite|paraphrase) (?:of|:|is)",
    r"(?:rewritten|rewriting|rewrite|rephrasing|rephrased|paraphrasing|paraphrased|reworded|rewording) "
    rf"(?:{_THE} )?(?:\w+ )?(?:solution|answer|version|explanation|demonstration)",
    r"rewrite :",
    r"the demonstration",
    r"the rewrite",
    # An expected result.
    r"as (?:anticipated|hoped for)",
    r"(?:not )?what (?:we expect|should come out)",
    r"candidate we had",
    # The demonstration or its author as the subject of a step. The lookahead requires a verb, because "the original
    # price" and "the teacher has 3 pens" are ordinary text.
    r"the (?:original|author|expert|teacher|writer|annotator|prompt|source)"
    r"(?= (?:then|says|does|did|uses|used|gets|got|multiplies|multiplied|divides|divided|adds|added|"
    r"subtracts|subtracted|takes|took|goes|went|writes|wrote|s|,))",
    r"(?:in|from|of) the (?:original|prompt|example|write up|answer sheet|mark scheme)(?! \w+ (?:price|cost|size))",
    r"as in the (?:example|original|prompt)",
    r"the (?:boxed|target|known|expected|intended|official|claimed) (?:answer|result|total|value|number|amount)",
    r"earlier (?:write - up|write up|solution|derivation|explanation|answer)",
    r"(?:what|as) (?:was|is|were) (?:claimed|expected|given to us|promised)",
    r"as (?:it|they|we) (?:ought to|were told|was told)",
    r"as expected",
    r", the correct (?:result|answer|value)",
    r"(?:confirming|which confirms|this confirms|to confirm) (?:it|this|that|the)",
    r"✓ matches",
    r"(?:aim|aiming|head|heading) (?:for|towards|at) (?:\$ )?\d+",
    r"so that we (?:land|end up|arrive) (?:on|at|with)",
    r"supposed to (?:come|be|equal|total)",
    r"(?:arrive|end up|land|are) (?:exactly )?where we wanted",
    r"(?:have|has) to (?:be left|end up|come out) with",
    r"to (?:reach|get) a value with",
    r"(?:we|i) know (?:that )?(?:[a-z]+ ){1,3}(?:ends up|comes out|finishes) with",
    r"we were after",
    r"the (?:claim|value|answer|number) (?:at the start|we started with|i started with)",
    r"how (?:we|one|i) could have (?:got|gotten|arrived|come)",
    r"the original (?:writer|author|solver|solution|explanation)",
    r"know that the (?:final )?(?:result|answer|total|value|figure) (?:has to|must|should|is going to)",
    r"as required , (?:the|it|this|we)",
    r"(?:rephras|paraphras|reword)\w*",
    r"reformulat\w+ (?:the |this |that |your )?(?:argument|solution|answer|text|explanation|reasoning)",
    r"(?:rewrit\w+|rewrote) (?:this|that|it|them|the text) (?:in|here|so)",
    r"to be (?:rewritten|restated|retold)",
    r"(?:solve|explain|put|say|tell|describe) (?:this|it|that) in my own words",
    rf"{_THE} (?:\w+ ){{0,2}}{_TEXT} in (?:my|simpler|other|plainer|easier) (?:own )?(?:words|terms)",
    r"(?:i|we) (?:was|were) (?:asked|told|given|instructed|shown|provided)",
    r"as (?:you )?(?:requested|instructed|asked)",
    r"the user",
    r"(?:what|that) was (?:provided|supplied|handed)",
    rf"{_THE} text (?:above|i|we|you|given|provided|has|says)",
    r"the (?:original|given|worked|provided) (?:\w+ )?(?:lines?|equations?|steps?|text|calculations?)",
    r"the (?:write - up|writeup|write up)",
    r"the given one",
    r"the expert",
    rf"(?:following|per|by|with|from) the {_FINAL}solution",
    rf"the correct {_TEXT}",
    rf"(?:as|like) in {_THE} {_FINAL}{_TEXT}",
    rf"(?:this|the) {_TEXT} is (?:correct|right|confirmed|verified|consistent)",
    rf"confirms {_THE} {_TEXT}",
    r"(?:reasoning|steps|working|argument) (?:for|of|behind) the (?:solution|answer)",
    r"(?:the )?same (?:\w+ )?(?:result|answer|value|number|total|solution) (?:as (?:above|before|in|given)|in my own)",
    r"(?:restate|retell|redo) (?:the|this|that) (?:solution|answer|explanation)",
    r"without referring to",
    r"(?:needs|need|needing) (?:no )?changing",
    r"just as (?:stated|noted|given|shown|said|claimed|told|before)",
    r"as (?:stated|noted|given|said|claimed|told) (?:before|above|earlier)?(?= ?[.,])",
    r"following (?:the same|those|these|its|his|her|their) (?:steps|approach|method|lines|reasoning)",
    r"the (?:next|last|first|second|final) line (?:then )?(?:takes|divides|adds|subtracts|multiplies|says|gives|reads)",
    r"the (?:solver|text)"
    r"(?= (?:then|first|next|says|does|takes|uses|obtains|finds|gets|multiplies|divides|adds|subtracts))",
    r"(?:we|i|it) (?:were|was|are|am|is) (?:supposed|meant|expected) to (?:get|be|find|reach|obtain|give)",
    r"(?:against|with|to) the one (?:provided|given|stated|shown)",
    r"(?:approach|method|trick|technique|insight|idea) (?:taken|used|employed|applied)(?: here| there)? (?:is|was)",
    r"for the answer to (?:have|be|equal|contain|come)",
    r"what the box (?:contains|says|has)",
    r"as we (?:already )?know ,? ?\w+ (?:ends|comes out|finishes|arrives)",
)
"""Patterns over lower-case words with one space between them; punctuation marks are separate words."""

OPENINGS: tuple[str, ...] = (
    r"(?:sure|certainly|absolutely|of course|no problem|gladly|happy to help|my pleasure)(?: thing)? [!,.]",
    r"(?:got it|understood|great question|good question) [!,.:]",
    r"(?:i (?:d|would|will|ll|am|m) )?(?:be )?(?:happy|glad|delighted|pleased) to (?:help|assist|explain|rewrite)",
    r"(?:okay|ok|alright|right) ,? the user",
    r"(?:thank you|thanks) for",
    r"here you (?:go|are)",
    r"(?:here is|here s|below is|this is) (?:the|my|your|another|a different) (?:[a-z]+ (?:- )?){0,5}"
    r"(?:solution|answer|reasoning|explanation|version|way|wording|response|text)",
    r"(?:solution|answer|explanation) \( in my",
    r"copying",
    r"as (?:you )?(?:asked|requested|instructed|wished|wanted|desired|told)",
    r"you (?:asked|wanted|requested|want|told|gave)",
    r"following the",
)
"""Openings that reply to a request. They are searched at the start of a text only; elsewhere they can be honest."""

INSTRUCTIONS: tuple[str, ...] = (
    r"(?:paraphrase|rephrase|reword|retell) (?:the|this|that|it|your|everything|his|her|their)",
    # "Rewrite the equation" is an ordinary step, so only texts are listed as objects.
    r"(?:rewrite|restate) (?:it|your|everything|(?:the|this|that|his|her|their) (?:\w+ )?(?:solution|answer|"
    r"explanation|text|passage|reasoning|response|derivation|demonstration|proof|argument|above|following|steps))",
    r"in your own words",
    r"(?:using|in|with) (?:different|your own) (?:words|wording|language|phrasing)",
    r"use your own (?:words|phrasing|wording|language)",
    r"do not (?:mention|add|copy|refer|repeat|change|skip|include|leave out)",
    r"you (?:are|will be|were) given (?:a|the|an) (?:question|problem|solution|task)",
    r"(?:put|place|give|write|box|state) (?:your|the) final (?:answer|result|expression)(?! (?:is|of|for))",
    r"show (?:all )?your (?:work|reasoning|steps|working)",
    r"keep (?:the|all|any) (?:the )?(?:names|numbers|steps|intermediate|results|values|calculations?)",
    r"this keeps (?:all|every|the)",
    r"(?:instructions?|your task|task|prompt) :",
    r"in (?:fresh|new|different|simpler) (?:words|wording|language)",
    r"(?:don t|do not|without) (?:skip|skipping|omit|omitting|chang\w+|copy\w*)",
    r"as (?:though|if) you (?:were|are|had)",
    r"write (?:out )?(?:a|the|your) (?:full|complete|detailed|new|clear|own) (?:solution|answer|explanation|version)",
    r"ending with the final",
    r"(?:make sure|ensure) (?:that )?(?:every|each|all|to|you)",
    r"as if you (?:had|have) (?:solved|found|written)",
    r"(?:think|reason) (?:carefully|step by step) (?:,|and)",
    r"(?<!let us )(?<!let s )(?<!can )(?<!to )solve (?:this|the (?:problem|question|task|following))"
    r"(?: problem| question)? (?:step by step|in)",
)
"""Instructions to the writer of a rewrite. A solution does not give instructions, so they are copied or invented."""

PREMATURE_REFERENCES = (
    r"(?:as|was|were|been) (?:already|previously) (?:worked out|computed|calculated|found|established|shown|stated)",
    r"(?:provided|given|stated|shown|mentioned|found|computed|worked out) (?:above|earlier|before|previously)",
    r"the (?:calculation|computation|result|working|steps?|reasoning|figures?) above",
)
"""References to earlier work. They are leaks only before the first equation, where no earlier work exists."""

OTHER_LANGUAGES = re.compile(
    r"\b(?:vor|an)?(?:gegeben|gelegt|ursprünglich|offiziell|bereitgestellt|obig|erwartet)e[nmrs]? (?:muster|beispiel)?"
    r"(?:lösung|antwort|erklärung|rechnung|herleitung)\w*|\b(?:muster|referenz|beispiel|experten)lösung\w*"
    r"|\b(?:laut|gemäß|wie in) (?:der|dieser) (?:lösung|antwort|vorlage)\b"
    r"|\b(?:solution|réponse|explication|correction|démonstration) (?:donnée|fournie|proposée|originale|officielle|"
    r"attendue|modèle|ci-dessus|de référence|du professeur|de l['’]expert)|\bcorrigé (?:type|officiel)"
    r"|\b(?:selon|d['’]après|dans|suivant|indiqu\w+|montr\w+) (?:par |dans )?(?:la solution|le corrigé|la correction)\b"
    r"|\b(?:solución|respuesta|explicación|demostración) (?:dada|proporcionada|propuesta|original|oficial|esperada|"
    r"modelo|anterior|de referencia|del (?:experto|profesor|libro))"
    r"|\b(?:según|siguiendo|como (?:indica|dice|muestra|se ve en|en)) la (?:solución|respuesta)\b"
    r"|\b(?:umformulier|reformul)\w+"
    r"|参考(?:答案|解答|解法)|标准答案|(?:给定|所给|给出|提供|原|上述)的?(?:答案|解答|解法|解题过程)|题解|改写"
)
"""References to the demonstration in German, French, Spanish and Chinese."""


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    openings = tuple(re.compile(rf"\A {pattern}(?= )") for pattern in OPENINGS)
    return (*openings, *(re.compile(rf"(?<= ){pattern}(?= )") for pattern in (*LEAKS, *INSTRUCTIONS)))


@cache
def _any_pattern() -> re.Pattern[str]:
    """Return one pattern that matches where any of `_patterns` does; searching it is ten times faster.

    The single patterns then run only on texts with a match, to find every phrase.
    """
    anywhere = "|".join(f"(?:{pattern})" for pattern in (*LEAKS, *INSTRUCTIONS))
    at_start = "|".join(f"(?:{pattern})" for pattern in OPENINGS)
    return re.compile(rf"(?:(?<= )(?:{anywhere})|\A (?:{at_start}))(?= )")


@cache
def _premature_patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf"(?<= ){pattern}(?= )") for pattern in PREMATURE_REFERENCES)


@cache
def _literal_phrases(added: tuple[str, ...], instruction: str) -> tuple[str, ...]:
    """Return the user's phrases and all long spans of the instruction, as `space_separated` writes texts."""
    instruction_words = words(instruction)
    starts = range(len(instruction_words) - COPIED_WORDS + 1)
    spans = (" ".join(instruction_words[i : i + COPIED_WORDS]) for i in starts)
    return tuple(dict.fromkeys(space_separated(phrase) for phrase in (*added, *spans) if phrase.strip()))


@lru_cache(maxsize=CACHE_SIZE)
def _plain(text: str) -> str:
    """Return lower-case words with one space around each, without the marks in `_MARKS`."""
    return space_separated(_MARKS.sub(" ", text))


def find_leaks(
    rewrite: str, question: str, solution: str, added: tuple[str, ...] = (), instruction: str = ""
) -> list[str]:
    """Return the phrases of the rewrite that refer to the demonstration or repeat the instruction.

    A phrase that the question or source uses itself is allowed. If the question is about a solution (a mixture, for
    example), phrases that end in "solution" are allowed as well.

    Args:
        added: phrases to search in addition to the built-in patterns.
        instruction: the fixed words of the mapper's prompt.
    """
    row_text = f"{_plain(question)}\n{_plain(solution)}"
    rewrite_text = _plain(rewrite)
    mixture = " solution " in _plain(question) or " solutions " in _plain(question)
    patterns = _patterns() if _any_pattern().search(rewrite_text) else ()
    phrases = [match[0].strip() for pattern in patterns for match in pattern.finditer(rewrite_text)]
    before_equations = _plain(rewrite.partition("=")[0])
    phrases += [match[0] for pattern in _premature_patterns() for match in pattern.finditer(before_equations)]
    phrases = [
        phrase for phrase in phrases if f" {phrase} " not in row_text and not (mixture and phrase.endswith("solution"))
    ]
    # These patterns contain apostrophes and hyphens, which `_plain` removes or splits.
    row_text = f"{question}\n{solution}".lower()
    phrases += [match[0] for match in OTHER_LANGUAGES.finditer(rewrite.lower()) if match[0] not in row_text]
    # Literal phrases are searched with their punctuation.
    rewrite_text, row_text = space_separated(rewrite), f"{space_separated(question)}\n{space_separated(solution)}"
    return phrases + [
        phrase.strip()
        for phrase in _literal_phrases(added, instruction)
        if phrase in rewrite_text and phrase not in row_text
    ]


# A phrase with one of these words names the demonstration itself, rather than relying on a known answer.
_BLUNT = re.compile(
    r"solution|reference|demonstration|rewr|paraphras|expert|teacher|author|annotator|prompt|answer key"
)


@cache
def _instruction_pattern() -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in INSTRUCTIONS))


def leak_kind(phrase: str) -> str:
    """Return the name in the hack catalogue for a phrase that `find_leaks` returned."""
    if len(phrase.split()) >= COPIED_WORDS or _instruction_pattern().fullmatch(phrase):
        return "instruction_repeated"
    return "leak_blunt" if _BLUNT.search(phrase) else "leak_subtle"
