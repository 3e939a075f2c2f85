"""Whether every row fits into what the models read at once: told before the start, not hours into it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from dartune.arms import ARMS, adaptations
from dartune.config import Config
from dartune.data.findings import Tally, label
from dartune.data.records import Demonstration
from dartune.data.render import Renderer
from dartune.errors import counted
from dartune.inputs import Data
from dartune.train.mapper import mapper_prompt


@dataclass(frozen=True)
class Use:
    """One way in which rows are read: `rows`, what stands before the response, and what follows it."""

    what: str
    key: str | None
    rows: Iterable[Demonstration]
    prompt: Callable[[Demonstration], str]
    room: int | None
    """Tokens that are left for a response; None: the row's own solution."""


def too_long(
    config: Config, data: Data, renderer: Renderer, target: int, mapper: int, *, every: bool = False
) -> list[str]:
    """One line for each use that some rows are too long for.

    Args:
        target, mapper: tokens that either reads at once.
        every: all rows are named, not only the first ones.
    """
    found = [_over(use, renderer, target, every) for use in _of_target(config, data)]
    if adaptations(config.arms):
        limit, asked = config.mapper.max_new_tokens, partial(mapper_prompt, config.mapper.prompt)
        use = Use("the mapper's prompt", "mapper.max_new_tokens", data.train, asked, limit)
        found.append(_over(use, renderer, min(target, mapper), every))
    return [line for line in found if line]


def _of_target(config: Config, data: Data) -> list[Use]:
    def question(row: Demonstration) -> str:
        return row.question

    limit = config.evaluate.max_new_tokens
    asked = {"development question": data.dev, **{f"question of {name}": rows for name, rows in data.suites.items()}}
    uses = [Use("question and solution", None, data.train, question, None)]
    uses += [Use(f"a {what}", "evaluate.max_new_tokens", rows, question, limit) for what, rows in asked.items()]
    if any(ARMS[arm].budget for arm in config.arms):
        uses.append(
            Use("a question", "direct_rl.max_new_tokens", data.train, question, config.direct_rl.max_new_tokens)
        )
    return uses


def _over(use: Use, renderer: Renderer, context: int, every: bool) -> str | None:
    if context == sys.maxsize:
        return None
    frame = len(renderer.prompt_ids("")) + len(renderer.response_ids(""))
    longest, found = 0, Tally()
    for row in use.rows:
        prompt, reply = use.prompt(row), row.solution if use.room is None else ""
        # A token takes a byte at least, so most rows need not be cut into tokens.
        if len(prompt.encode()) + len(reply.encode()) + frame + (use.room or 0) <= context:
            continue
        needed = len(renderer.prompt_ids(prompt))
        needed += len(renderer.response_ids(reply)) if use.room is None else use.room
        if needed > context:
            longest = max(longest, needed)
            found.add(use.what, label(row))
    if not found.total:
        return None
    with_room = f" with {use.key} ({use.room})" if use.key else ""
    remedy = f"lower {use.key}, or leave them out" if use.key else "shorten them, or leave them out"
    return (
        f"{use.what}{with_room}: up to {longest} tokens, and the model reads {context} at once; "
        f"{counted(found.total, 'row is', 'rows are')} too long ({found.places(use.what, every=every)}): {remedy}"
    )
