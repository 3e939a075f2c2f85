"""Checks before a run starts that every row fits into the context of the models that will read it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from dartune.config.arms import ARMS, adaptations
from dartune.config.schema import Config
from dartune.data.chat_template import Renderer
from dartune.data.findings import FindingCounts, row_label
from dartune.data.records import Demonstration
from dartune.errors import counted
from dartune.stages.data import Data
from dartune.stages.mapper_prompt import mapper_prompt


@dataclass(frozen=True)
class Use:
    """One way in which rows are read.

    Args:
        what: a noun phrase for messages.
        key: the config key that sets `response_tokens`.
        prompt: row -> user text in front of the response.
        response_tokens: reserved for the response; None for the row's own solution.
    """

    what: str
    key: str | None
    rows: Iterable[Demonstration]
    prompt: Callable[[Demonstration], str]
    response_tokens: int | None


def too_long(
    config: Config, data: Data, renderer: Renderer, target: int, mapper: int, *, every: bool = False
) -> list[str]:
    """One line for each use in which some rows are too long.

    Args:
        target, mapper: context lengths in tokens.
        every: name all rows, not only the first ones.
    """
    problems = [over(use, renderer, target, every=every) for use in _of_target(config, data)]
    if adaptations(config.arms):
        limit, prompt = config.mapper.max_new_tokens, partial(mapper_prompt, config.mapper.prompt)
        use = Use("the mapper's prompt", "mapper.max_new_tokens", data.train, prompt, limit)
        problems.append(over(use, renderer, min(target, mapper), every=every))
    return [line for line in problems if line]


def _of_target(config: Config, data: Data) -> list[Use]:
    def question(row: Demonstration) -> str:
        return row.question

    limit = config.evaluate.max_new_tokens
    questions = {
        "development question": data.dev,
        **{f"question of {name}": rows for name, rows in data.suites.items()},
    }
    uses = [Use("question and solution", None, data.train, question, None)]
    uses += [Use(f"a {what}", "evaluate.max_new_tokens", rows, question, limit) for what, rows in questions.items()]
    if any(ARMS[arm].budget or ARMS[arm].teacher for arm in config.arms):
        uses.append(Use("a question", "evaluate.max_new_tokens", data.train, question, limit))
    if any(ARMS[arm].teacher for arm in config.arms):
        prompt = partial(mapper_prompt, config.mapper.prompt)
        uses.append(Use("the teacher's prompt", "evaluate.max_new_tokens", data.train, prompt, limit))
    return uses


def over(use: Use, renderer: Renderer, context: int, *, every: bool = False) -> str | None:
    """The line about the rows of one use that are too long for a `context` in tokens; None if all fit."""
    if context == sys.maxsize:
        return None
    frame = len(renderer.prompt_ids("")) + len(renderer.response_ids(""))
    longest, too_long_rows = 0, FindingCounts()
    for row in use.rows:
        prompt, reply = use.prompt(row), row.solution if use.response_tokens is None else ""
        # A token is at least one byte, so the byte count is an upper bound; most rows need not be tokenised.
        if len(prompt.encode()) + len(reply.encode()) + frame + (use.response_tokens or 0) <= context:
            continue
        needed = len(renderer.prompt_ids(prompt))
        needed += len(renderer.response_ids(reply)) if use.response_tokens is None else use.response_tokens
        if needed > context:
            longest = max(longest, needed)
            too_long_rows.add(use.what, row_label(row))
    if not too_long_rows.total:
        return None
    limit = f" with {use.key} ({use.response_tokens})" if use.key else ""
    places = too_long_rows.places(use.what, every=every)
    remedy = f"lower {use.key}, or leave them out" if use.key else "shorten them, or leave them out"
    return (
        f"{use.what}{limit}: up to {longest} tokens, and the model reads {context} at once; "
        f"{counted(too_long_rows.total, 'row is', 'rows are')} too long ({places}): {remedy}"
    )
