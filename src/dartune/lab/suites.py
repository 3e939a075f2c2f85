"""The lab's data: expert demonstrations, development rows and the fixed test suites.

Demonstrations are short, use 28 of the 40 names and have no distractors. Every out-of-distribution suite has new
relations and differs from the demonstrations in one respect. The retention suites have old relations only. A level
sets the length of the chains and the number of new relations; the shipped models were pretrained at level `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dartune.data.records import Demonstration
from dartune.lab.dialects import WRITERS
from dartune.lab.world import DEMONSTRATION_NAMES, HELD_OUT_NAMES, NAMES, Problem, ProblemSpec, sample_problems


@dataclass(frozen=True, slots=True)
class Level:
    """Difficulty of the lab's problems.

    Args:
        taught: problems for the pretraining of targets; 30% of the questions have distractors.
        rewritten: problems for the pretraining of the initial mapper; 20% of the questions have distractors.
        demonstrated: problems of the demonstrations.
        suites: problems of the test suites, by name.
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
    """The first `n` problems of a suite; they are the same for every arm and every seed."""
    return sample_problems(f"suite-{name}", level.suites[name], n)


def suite_questions(n: int, level: Level = PLAIN) -> set[str]:
    """The first `n` questions of every suite."""
    return {problem.question for name in level.suites for problem in suite(name, n, level)}


def demonstration_problems(n: int, seed: int, tested: int, level: Level = PLAIN) -> list[Problem]:
    """`n` problems for demonstrations; none of their questions is among the first `tested` of a suite."""
    return sample_problems(f"demonstrations-{seed}", level.demonstrated, n, suite_questions(tested, level))


def write_demonstrations(problems: list[Problem], dialect: str, prefix: str = "lab") -> list[Demonstration]:
    """The problems with solutions in a style of WRITERS; ids are `<prefix>-<index>`."""
    write = WRITERS[dialect]
    return [
        Demonstration(f"{prefix}-{index:05d}", problem.question, write(problem), str(problem.answer))
        for index, problem in enumerate(problems)
    ]
