"""Parses conversations into question, solution and system text; reports keys and roles that are not used."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dartune.data.findings import Names
from dartune.data.opened import too_deep
from dartune.errors import counted

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Names of roles -> ours."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys and columns whose text a thinking model says before its answer."""
CALLS = ("tool_calls", "function_call", "tools", "functions")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
SPEAKER, TEXT = ("role", "from"), ("content", "value", "text")
TEXT_PARTS = ("text", "input_text", "output_text")
THOUGHT_PARTS = ("thinking", "reasoning")
EXPECTED = "must be a list of messages, each with role and content"
_BROKEN_ESCAPE = re.compile(
    r"(?<!\\)(?:\\\\)*\\(?:[abfv]|r(?!\\n)|t(?:imes|heta|ext|riangle)\b|n(?:eq|abla|otin)\b|[^abfvrtnxuUN0-7\\'\"\n])"
)
"""A backslash of LaTeX or of no escape: `\\frac`, `\\times`, `\\(`; `\\n` and `\\t` are line breaks and tabs."""
ONE_EACH = "a row is one question and one answer: split the conversation up, or leave the row out"


def filled(value: Any) -> bool:
    """Whether a value says anything: not null, and neither empty nor made of such values alone."""
    left = [value]
    while left:  # no recursion: values may be nested very deeply
        one = left.pop()
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        elif one is not None and not (isinstance(one, str) and one.strip() in ("", "[]", "{}", "null")):
            return True
    return False


def decoded(value: Any) -> Any:
    """A list or object that a text holds, as JSON or as Python writes it; every other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for read in (json.loads, ast.literal_eval):
        # TypeError: Python text such as `{{1}, {2}}`, a set of sets.
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(value.strip())
            usable = isinstance(found, list | dict) and not too_deep(found)
            return found if usable and not (read is ast.literal_eval and python_trouble(value)) else value
    return value


def python_trouble(text: str) -> str | None:
    """Why a text that looks like Python's list must not be read as one: what it says is lost or changed already."""
    remedy = "save the column as JSON, or the table as Parquet"
    if not text.lstrip().startswith(("[", "{")):
        return None
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return None
    if "array(" in text:
        return f"is text of numpy's arrays, which is not read; {remedy}"
    before = None
    with suppress(SyntaxError, tokenize.TokenError):
        for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
            if token.type == tokenize.STRING:
                if before == tokenize.STRING:
                    return f"is a list without commas between its texts, as numpy prints it; {remedy}"
                if _BROKEN_ESCAPE.search(token.string) and "r" not in token.string[:2].lower():
                    return f"has a backslash that Python would read as another character; {remedy}"
            before = before if token.type in (tokenize.NL, tokenize.NEWLINE) else token.type
    return None


def with_thought(thought: str, text: str) -> str:
    """The text behind its reasoning in a `<think>` block."""
    return f"<think>\n{thought.strip()}\n</think>\n\n{text}"


def messages_of(value: Any) -> list[Mapping[str, Any]] | None:
    """The messages of a list, of its text, or of one list a key (as `datasets` stores them); None: it is none."""
    value = decoded(value)
    if isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
        lengths = {len(one) for one in value.values()}
        if len(lengths) == 1:
            value = [dict(zip(value, one, strict=True)) for one in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(one, Mapping) and _key(one, SPEAKER) for one in value):
        return None
    return value


def turns(
    messages: list[Mapping[str, Any]], column: str, meta: dict[str, Any], thinking: bool, unused: Names
) -> tuple[dict[str, Any], list[str]]:
    """The user's and the assistant's text of a conversation of one turn, by what to call them, and what is wrong.

    A system text goes to `meta`.

    Args:
        thinking: the assistant's reasoning becomes a `<think>` block; else it is refused.
    """
    roles = [_role(message) for message in messages]
    complaints = list(dict.fromkeys(_refused(message, column) for message in messages))
    complaints = [complaint for complaint in complaints if complaint]
    if f"{column}: {EXPECTED}" in complaints:
        return {}, complaints[:1]
    strange = [role for role in roles if role not in ("user", "assistant", "system")]
    asked = roles.count("user")
    if strange:
        complaints.append(
            f"{column}: has the role {strange[0]!r}; only user, assistant and system are read; leave it out"
        )
    elif asked > 1:
        untrained = sum(message.get("weight") == 0 for message in messages)
        extra = f" and {counted(untrained, 'message')} of weight 0" if untrained else ""
        complaints.append(f"{column}: has {asked} user turns{extra}; {ONE_EACH}")
    else:
        opening = roles.index("user") if asked else 0
        if roles[opening:] != ["user", "assistant"] or any(role != "system" for role in roles[:opening]):
            shown = ", ".join(map(str, roles[:6])) or "none"
            complaints.append(
                f"{column}: the roles must be user, assistant (a system message may come first), not {shown}"
            )
    if complaints:
        return {}, complaints
    for message in messages:
        _note_unused(message, unused)
    said = [_said(message) for message in messages]
    if messages[-1].get("weight") == 0:
        complaints.append(f"{column}: the answer has weight 0, so there is nothing to train; leave the row out")
    told = (text for role, (text, _) in zip(roles, said, strict=True) if role == "system")
    if systems := [text for text in told if not isinstance(text, str) or text.strip()]:
        texts = all(isinstance(text, str) for text in systems)
        meta["system"] = "\n\n".join(systems) if texts else systems[0]
    (question, _), (solution, thought) = said[-2:]
    if thought and isinstance(solution, str):
        solution, trouble = thoughtful(solution, thought, thinking, f"{column}[assistant]")
        complaints += trouble
    return {f"{column}[user]": question, f"{column}[assistant]": solution}, complaints


def thoughtful(solution: str, thought: Mapping[str, str], thinking: bool, where: str) -> tuple[str, list[str]]:
    """A solution with its reasoning, which stands elsewhere in the row, or what keeps it from being used.

    Args:
        thought: the key or column of the reasoning -> its text.
    """
    (key, text), *others = thought.items()
    if others and any(other.strip() != text.strip() for _, other in others):
        names = " and ".join(map(repr, thought))
        return solution, [f"{where}: {names} hold different texts; keep one of them"]
    if "<think>" in solution or "</think>" in solution:
        if text.strip() in solution:
            return solution, []
        return solution, [f"{where}: has a <think> block and {key!r}; keep one of them"]
    if not thinking:
        remedy = "set target.thinking: true to train on it as <think> ... </think>, or remove it from the data"
        return solution, [f"{where}: the reasoning is in {key!r}: {remedy}"]
    return with_thought(text, solution), []


def _key(message: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of the names that the message has, with a value if any has one."""
    there = [name for name in names if name in message]
    return next((name for name in there if message[name] is not None), there[0] if there else None)


def _role(message: Mapping[str, Any]) -> Any:
    role = message[_key(message, SPEAKER)]
    return ROLES.get(role.lower(), role) if isinstance(role, str) else role


def _refused(message: Mapping[str, Any], column: str) -> str | None:
    """Why a message cannot be used: what it says is not in its text."""
    for name in (*CALLS, *MEDIA):
        if filled(message.get(name)):
            return f"{column}: a message has {name!r}, and only text is read; leave the row out"
    key = _key(message, TEXT)
    if key is None:
        return f"{column}: {EXPECTED}"
    for name in REASONING if _role(message) == "assistant" else ():
        if filled(message.get(name)) and not isinstance(message[name], str):
            return f"{column}: {thought_rule(name, message[name])}"
    content = message[key]
    parts = content if isinstance(content, list) else [content] if isinstance(content, Mapping) else []
    for part in parts:
        kind = _kind(part)
        if kind not in (*TEXT_PARTS, *THOUGHT_PARTS):
            return f"{column}: a message has a part of type {kind!r}, and only text is read; leave the row out"
        if kind in THOUGHT_PARTS and (_role(message) != "assistant" or _thought_of(part) is None):
            return (
                f"{column}: a message has a part of type {kind!r}, whose text cannot be read: only an assistant has "
                f"one, with its text in {kind!r}; write it so, or remove the part from the data"
            )
    return None


def thought_rule(name: str, value: Any) -> str:
    """What is wrong with reasoning that is no plain text, and what to do."""
    return f"the reasoning in {name!r} must be text, not {type(value).__name__}; save it as one text, or remove it"


def _kind(part: Any) -> Any:
    return part.get("type", part.get("content_type", "text")) if isinstance(part, Mapping) else "text"


def _thought_of(part: Mapping[str, Any]) -> str | None:
    """The text of a part that holds reasoning; None where there is more than that."""
    if any(filled(value) for value in part.values() if isinstance(value, list | tuple | Mapping)):
        return None
    keys = (_kind(part), "text", "content")
    texts = [part[key] for key in keys if isinstance(part.get(key), str) and part[key].strip()]
    unknown = [
        key
        for key in part
        if key not in (*keys, "type", "content_type", "id", "signature", "status") and filled(part[key])
    ]
    if texts:
        return texts[0]
    return None if unknown else ""


def _said(message: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """A message's text, and its reasoning by key where it has one."""
    content = message[_key(message, TEXT)]
    thought = {key: message[key] for key in REASONING if isinstance(message.get(key), str) and message[key].strip()}
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return content, thought
    texts: list[Any] = []
    thoughts: dict[str, list[str]] = {}
    for part in content:
        if (kind := _kind(part)) in THOUGHT_PARTS:
            thoughts.setdefault(kind, []).append(_thought_of(part) or "")
            continue
        text = part.get("text", part.get("parts")) if isinstance(part, Mapping) else part
        texts += text if isinstance(text, list) else [text]
    if not all(isinstance(text, str) for text in texts):
        return content, thought
    for kind, pieces in thoughts.items():
        thought[f"part {kind}" if kind in thought else kind] = "\n\n".join(filter(None, pieces))
    return "\n".join(texts), {key: text for key, text in thought.items() if text.strip()}


def _note_unused(message: Mapping[str, Any], unused: Names) -> None:
    read = {_key(message, SPEAKER), _key(message, TEXT), *(REASONING if _role(message) == "assistant" else ())}
    for name, value in message.items():
        if name not in read and filled(value) and not (name == "weight" and value in (0, 1)):
            unused.add("message key", name)
