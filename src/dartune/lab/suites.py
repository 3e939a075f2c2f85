"""The lab's data: demonstrations by an expert, development rows and the frozen test suites.

Demonstrations are short, use 28 of the 40 names and no distractors; half of them ask for one new
relation. Every out-of-distribution suite asks for a new relation and leaves the demonstrations in one
direction; the retention suites ask for old relations only.
"""

from __future__ import annotations

from dataclasses import replace

from dartune.data.records import Demonstration
from dartune.lab.dialects import WRITERS
from dartune.lab.world import DEMONSTRATION_NAMES, HELD_OUT_NAMES, NAMES, Problem, ProblemSpec, draw_many

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


def suite(name: str, n: int) -> list[Problem]:
    """The first `n` problems of a suite: the same for every arm and every seed."""
    return draw_many(f"suite-{name}", SUITES[name], n)


def suite_questions(n: int) -> set[str]:
    return {problem.question for name in SUITES for problem in suite(name, n)}


def demonstration_problems(n: int, seed: int, tested: int) -> list[Problem]:
    """`n` problems to demonstrate, none of them among the first `tested` of any suite."""
    return draw_many(f"demonstrations-{seed}", DEMONSTRATIONS, n, suite_questions(tested))


def demonstrate(problems: list[Problem], dialect: str, prefix: str = "lab") -> list[Demonstration]:
    """The problems with their solutions by one of WRITERS."""
    write = WRITERS[dialect]
    return [
        Demonstration(f"{prefix}-{index:05d}", problem.question, write(problem), str(problem.answer))
        for index, problem in enumerate(problems)
    ]
