"""The lab's data: demonstrations by an expert, development rows and the frozen test suites.

Demonstrations are short, use 28 of the 40 names and no distractors. Every out-of-distribution suite asks for
something new and leaves the demonstrations in one direction; the retention suites ask for old relations only. How
long chains are, and how much of them is new, is a level: the shipped models are of the level `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dartune.data.records import Demonstration
from dartune.lab.dialects import WRITERS
from dartune.lab.world import DEMONSTRATION_NAMES, HELD_OUT_NAMES, NAMES, Problem, ProblemSpec, draw_many


@dataclass(frozen=True, slots=True)
class Level:
    """A world's difficulty.

    Args:
        taught: what targets are pretrained on; its distractors are in three questions of ten.
        rewritten: what the mapper start is pretrained on; its distractors are in two questions of ten.
        demonstrated: what demonstrations ask.
        suites: what the test suites ask, by name.
    """

    taught: ProblemSpec
    rewritten: ProblemSpec
    demonstrated: ProblemSpec
    suites: Mapping[str, ProblemSpec]


DEMONSTRATIONS = ProblemSpec(steps=(1, 3), new_steps=(0, 1), names=DEMONSTRATION_NAMES)
NEW = replace(DEMONSTRATIONS, new_steps=(1, 1))
SUITES: dict[str, ProblemSpec] = {
    "in_distribution": DEMONSTRATIONS,
    "ood_length": replace(NEW, steps=(4, 5)),
    "ood_composition": replace(NEW, steps=(2, 3), new_steps=(2, 2), distinct_new=2),
    "ood_names": replace(NEW, names=HELD_OUT_NAMES),
    "ood_distractors": replace(NEW, distractors=(1, 2)),
    "format_shift": replace(NEW, question_first=True),
    "retention_short": ProblemSpec(steps=(2, 3), names=NAMES),
    "retention_long": ProblemSpec(steps=(4, 5), names=NAMES),
}
PLAIN = Level(
    taught=ProblemSpec(steps=(1, 5), distractors=(1, 2)),
    rewritten=ProblemSpec(steps=(1, 3), new_steps=(0, 2), distractors=(0, 1)),
    demonstrated=DEMONSTRATIONS,
    suites=SUITES,
)

_DEEP = ProblemSpec(steps=(2, 5), new_steps=(0, 2), names=DEMONSTRATION_NAMES)
_DEEP_NEW = replace(_DEEP, new_steps=(1, 2))
DEEP = Level(
    taught=ProblemSpec(steps=(1, 8), distractors=(1, 3)),
    rewritten=ProblemSpec(steps=(1, 5), new_steps=(0, 3), distractors=(0, 2)),
    demonstrated=_DEEP,
    suites={
        "in_distribution": _DEEP,
        "ood_length": replace(_DEEP_NEW, steps=(6, 8)),
        "ood_composition": replace(_DEEP_NEW, steps=(4, 5), new_steps=(3, 3), distinct_new=3),
        "ood_names": replace(_DEEP_NEW, names=HELD_OUT_NAMES),
        "ood_distractors": replace(_DEEP_NEW, distractors=(2, 3)),
        "format_shift": replace(_DEEP_NEW, question_first=True),
        "retention_short": ProblemSpec(steps=(2, 5), names=NAMES),
        "retention_long": ProblemSpec(steps=(6, 8), names=NAMES),
    },
)
LEVELS: dict[str, Level] = {"plain": PLAIN, "deep": DEEP}


def suite(name: str, n: int, level: Level = PLAIN) -> list[Problem]:
    """The first `n` problems of a suite: the same for every arm and every seed."""
    return draw_many(f"suite-{name}", level.suites[name], n)


def suite_questions(n: int, level: Level = PLAIN) -> set[str]:
    return {problem.question for name in level.suites for problem in suite(name, n, level)}


def demonstration_problems(n: int, seed: int, tested: int, level: Level = PLAIN) -> list[Problem]:
    """`n` problems to demonstrate, none of them among the first `tested` of any suite."""
    return draw_many(f"demonstrations-{seed}", level.demonstrated, n, suite_questions(tested, level))


def demonstrate(problems: list[Problem], dialect: str, prefix: str = "lab") -> list[Demonstration]:
    """The problems with their solutions by one of WRITERS."""
    write = WRITERS[dialect]
    return [
        Demonstration(f"{prefix}-{index:05d}", problem.question, write(problem), str(problem.answer))
        for index, problem in enumerate(problems)
    ]
