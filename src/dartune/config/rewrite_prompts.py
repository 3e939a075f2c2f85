"""Default rewrite prompts of the task families."""

from __future__ import annotations

GYM = "gym:"
"""Prefix of the addresses of reasoning-gym tasks."""

_SOLUTION = "{question}\n\nHere is a correct solution:\n\n{solution}\n\n"
_RESULTS = (
    "Solve the problem in your own words, step by step, keeping every intermediate result. Do not "
    "mention the solution above. End with the final answer in the form it has there."
)

DEFAULT_PROMPTS = {
    "math": _SOLUTION + _RESULTS,
    "numeric": _SOLUTION + _RESULTS,
    "exact": _SOLUTION
    + "Solve the problem in your own words, step by step, keeping every reason. Do not mention the solution above. "
    "End with the final answer, word for word as it stands there.",
    "choice": _SOLUTION
    + "Answer the question in your own words, step by step, keeping every reason. Do not mention the solution above. "
    "End with the letter of the answer in the form it has there.",
    "code": "{question}\n\nHere is a correct program:\n\n{solution}\n\n"
    "Solve the task in your own style: think it through in a few words, then write one complete program in a "
    "```python block. Keep the names that are called from outside. Do not mention the program above.",
    "reasoning_gym": "{question}\n\nThe correct answer is:\n\n{solution}\n\n"
    "Work it out step by step in your own words. Do not mention that the answer was given. End with the final "
    "answer between <answer> and </answer>, as it stands there.",
}
"""Task family -> default prompt of the mapper, with the fields {question} and {solution}."""


def task_family(path: str, task: str) -> str:
    """Return the task family of a data set: that of reasoning-gym for its addresses, otherwise `task`."""
    return "reasoning_gym" if path.startswith(GYM) else task
