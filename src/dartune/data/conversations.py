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

from dartune.data.file_encoding import too_deep
from dartune.data.findings import NameCounts
from dartune.errors import counted

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Names of roles in public data sets -> our names."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys and columns with the text that a thinking model writes before its answer."""
CALLS = ("tool_calls", "function_call", "tools", "functions")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
SPEAKER, TEXT = ("role", "from"), ("content", "value", "text")
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
EXPECTED = "must be a list of messages, each with role and content"
_BROKEN_ESCAPE = re.compile(
    r"(?<!\\)(?:\\\\)*\\(?:[abfv]|r(?!\\n)|t(?:imes|heta|ext|riangle)\b|n(?:eq|abla|otin)\b|[^abfvrtnxuUN0-7\\'\"\n])"
)
"""A backslash from LaTeX, or one that begins no Python escape: `\\frac`, `\\times`, `\\(`. `\\n` and `\\t` are escapes
of line breaks and tabs."""
SINGLE_TURN = "a row is one question and one answer: split the conversation into rows, or remove the row"


def has_content(value: Any) -> bool:
    """Returns whether a value is neither null nor empty, nor a container of such values only."""
    pending = [value]
    while pending:  # no recursion, because values may be nested very deeply
        element = pending.pop()
        if isinstance(element, Mapping):
            pending += element.values()
        elif isinstance(element, list | tuple):
            pending += element
        elif element is not None and not (isinstance(element, str) and element.strip() in ("", "[]", "{}", "null")):
            return True
    return False


def decoded(value: Any) -> Any:
    """Returns the list or object that a text contains as JSON or as a Python literal, and other values unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    for parse in (json.loads, ast.literal_eval):
        # TypeError: Python text such as `{{1}, {2}}`, a set of sets.
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parse(value.strip())
            usable = isinstance(parsed, list | dict) and not too_deep(parsed)
            return parsed if usable and not (parse is ast.literal_eval and python_literal_problem(value)) else value
    return value


def python_literal_problem(text: str) -> str | None:
    """Returns why a text that looks like a Python list must not be parsed as one, or None.

    Such texts come from tables that stored `str()` of a list. In some of them, content is lost: numpy omits the commas
    between texts, which Python then concatenates, and unescaped LaTeX turns into control characters.
    """
    remedy = "save the column as JSON, or the table as Parquet"
    if not text.lstrip().startswith(("[", "{")):
        return None
    with suppress(ValueError, RecursionError):
        json.loads(text)
        return None
    if "array(" in text:
        return f"is the printed form of numpy arrays, which is not read; {remedy}"
    previous = None
    with suppress(SyntaxError, tokenize.TokenError):
        for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
            if token.type == tokenize.STRING:
                if previous == tokenize.STRING:
                    return f"is a list without commas between its texts, as numpy prints it; {remedy}"
                if _BROKEN_ESCAPE.search(token.string) and "r" not in token.string[:2].lower():
                    return f"has a backslash that Python would read as another character; {remedy}"
            previous = previous if token.type in (tokenize.NL, tokenize.NEWLINE) else token.type
    return None


def with_thought(thought: str, text: str) -> str:
    """Returns the text after its reasoning in a `<think>` block."""
    return f"<think>\n{thought.strip()}\n</think>\n\n{text}"


def messages_of(value: Any) -> list[Mapping[str, Any]] | None:
    """Returns the messages of a conversation, or None if the value is not one.

    Accepts a list of messages, its text form, and one list per key (the form in which `datasets` stores it).
    """
    value = decoded(value)
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1:
            value = [dict(zip(value, fields, strict=True)) for fields in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        return None
    is_message = (isinstance(message, Mapping) and _present_key(message, SPEAKER) for message in value)
    return value if all(is_message) else None


def parse_conversation(
    messages: list[Mapping[str, Any]], column: str, meta: dict[str, Any], thinking: bool, unused: NameCounts
) -> tuple[dict[str, Any], list[str]]:
    """Returns the user's and the assistant's text of a single-turn conversation, and the problems of the row.

    Args:
        messages: the messages, as returned by `messages_of`.
        column: the column of the conversation, for messages.
        meta: receives the system text under the key `system`.
        thinking: the assistant's reasoning becomes a `<think>` block. False: such rows are refused.
        unused: counts the message keys that are not read.

    Returns:
        The texts by their names in messages (`messages[user]`, `messages[assistant]`; empty if the conversation cannot
        be read), and the problems.
    """
    roles = [_role(message) for message in messages]
    complaints = list(dict.fromkeys(_message_problem(message, column) for message in messages))
    complaints = [complaint for complaint in complaints if complaint]
    if f"{column}: {EXPECTED}" in complaints:
        return {}, complaints[:1]
    unknown_roles = [role for role in roles if role not in ("user", "assistant", "system")]
    user_turns = roles.count("user")
    if unknown_roles:
        complaints.append(
            f"{column}: has the role {unknown_roles[0]!r}; only user, assistant and system are read; remove the message"
        )
    elif user_turns > 1:
        untrained = sum(message.get("weight") == 0 for message in messages)
        extra = f" and {counted(untrained, 'message')} of weight 0" if untrained else ""
        complaints.append(f"{column}: has {user_turns} user turns{extra}; {SINGLE_TURN}")
    else:
        opening = roles.index("user") if user_turns else 0
        if roles[opening:] != ["user", "assistant"] or any(role != "system" for role in roles[:opening]):
            sequence = ", ".join(map(str, roles[:6])) or "none"
            complaints.append(
                f"{column}: the roles must be user, assistant (a system message may come first), not {sequence}"
            )
    if complaints:
        return {}, complaints
    for message in messages:
        _note_unused(message, unused)
    contents = [_text_and_reasoning(message) for message in messages]
    if messages[-1].get("weight") == 0:
        complaints.append(f"{column}: the answer has weight 0, so there is nothing to train; remove the row")
    system_texts = [text for role, (text, _) in zip(roles, contents, strict=True) if role == "system"]
    if system_texts := [text for text in system_texts if not isinstance(text, str) or text.strip()]:
        all_text = all(isinstance(text, str) for text in system_texts)
        # A value that is not text is passed on unchanged, so that the parser of the row refuses it.
        meta["system"] = "\n\n".join(system_texts) if all_text else system_texts[0]
    (question, _), (solution, reasoning) = contents[-2:]
    if reasoning and isinstance(solution, str):
        solution, problems = attach_reasoning(solution, reasoning, thinking, f"{column}[assistant]")
        complaints += problems
    return {f"{column}[user]": question, f"{column}[assistant]": solution}, complaints


def attach_reasoning(solution: str, reasoning: Mapping[str, str], thinking: bool, place: str) -> tuple[str, list[str]]:
    """Returns a solution joined with the reasoning from elsewhere in the row, and the problems that prevent this.

    Args:
        reasoning: the key or column of the reasoning -> its text.
        thinking: False: reasoning is a problem, since the target is trained without it.
        place: the key or column of the solution, for messages.
    """
    (key, text), *duplicates = reasoning.items()
    if duplicates and any(duplicate.strip() != text.strip() for _, duplicate in duplicates):
        names = " and ".join(map(repr, reasoning))
        return solution, [f"{place}: {names} hold different texts; keep one of them"]
    if "<think>" in solution or "</think>" in solution:
        if text.strip() in solution:
            return solution, []
        return solution, [f"{place}: has a <think> block and {key!r}; keep one of them"]
    if not thinking:
        remedy = "set target.thinking: true to train on it as <think> ... </think>, or remove it from the data"
        return solution, [f"{place}: the reasoning is in {key!r}: {remedy}"]
    return with_thought(text, solution), []


def _present_key(message: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Returns the first of the names that the message has; names with a value take precedence over null ones."""
    present = [name for name in names if name in message]
    return next((name for name in present if message[name] is not None), present[0] if present else None)


def _role(message: Mapping[str, Any]) -> Any:
    role = message[_present_key(message, SPEAKER)]
    return ROLES.get(role.lower(), role) if isinstance(role, str) else role


def _message_problem(message: Mapping[str, Any], column: str) -> str | None:
    """Returns why a message cannot be used: a part of its content is not text, or its text is missing."""
    for name in (*CALLS, *MEDIA):
        if has_content(message.get(name)):
            return f"{column}: a message has {name!r}, and only text is read; leave the row out"
    key = _present_key(message, TEXT)
    if key is None:
        return f"{column}: {EXPECTED}"
    for name in REASONING if _role(message) == "assistant" else ():
        if has_content(message.get(name)) and not isinstance(message[name], str):
            return f"{column}: {reasoning_rule(name, message[name])}"
    content = message[key]
    parts = content if isinstance(content, list) else [content] if isinstance(content, Mapping) else []
    for part in parts:
        kind = _part_type(part)
        if kind not in (*TEXT_PARTS, *REASONING_PARTS):
            return f"{column}: a message has a part of type {kind!r}, and only text is read; leave the row out"
        if kind in REASONING_PARTS and (_role(message) != "assistant" or _reasoning_text(part) is None):
            return (
                f"{column}: a message has a part of type {kind!r}, whose text cannot be read: only an assistant has "
                f"one, with its text in {kind!r}; write it in this form, or remove the part from the data"
            )
    return None


def reasoning_rule(name: str, value: Any) -> str:
    """Returns the message for reasoning that is not plain text."""
    return f"the reasoning in {name!r} must be text, not {type(value).__name__}; save it as one text, or remove it"


def _part_type(part: Any) -> Any:
    return part.get("type", part.get("content_type", "text")) if isinstance(part, Mapping) else "text"


def _reasoning_text(part: Mapping[str, Any]) -> str | None:
    """Returns the text of a reasoning part, or None if the part has other content that would be lost."""
    if any(has_content(value) for value in part.values() if isinstance(value, list | tuple | Mapping)):
        return None
    keys = (_part_type(part), "text", "content")
    texts = [part[key] for key in keys if isinstance(part.get(key), str) and part[key].strip()]
    unknown = [
        key
        for key in part
        if key not in (*keys, "type", "content_type", "id", "signature", "status") and has_content(part[key])
    ]
    if texts:
        return texts[0]
    return None if unknown else ""


def _text_and_reasoning(message: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Returns a message's text (or its content unchanged if it is not text), and its reasoning by key."""
    content = message[_present_key(message, TEXT)]
    reasoning = {key: message[key] for key in REASONING if isinstance(message.get(key), str) and message[key].strip()}
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return content, reasoning
    texts: list[Any] = []
    pieces_by_kind: dict[str, list[str]] = {}
    for part in content:
        if (kind := _part_type(part)) in REASONING_PARTS:
            pieces_by_kind.setdefault(kind, []).append(_reasoning_text(part) or "")
            continue
        text = part.get("text", part.get("parts")) if isinstance(part, Mapping) else part
        texts += text if isinstance(text, list) else [text]
    if not all(isinstance(text, str) for text in texts):
        return content, reasoning
    for kind, pieces in pieces_by_kind.items():
        reasoning[f"part {kind}" if kind in reasoning else kind] = "\n\n".join(filter(None, pieces))
    return "\n".join(texts), {key: text for key, text in reasoning.items() if text.strip()}


def _note_unused(message: Mapping[str, Any], unused: NameCounts) -> None:
    reasoning_keys = REASONING if _role(message) == "assistant" else ()
    read = {_present_key(message, SPEAKER), _present_key(message, TEXT), *reasoning_keys}
    for name, value in message.items():
        # A weight of 1 changes nothing; a weight of 0 is handled by the parser.
        if name not in read and has_content(value) and not (name == "weight" and value in (0, 1)):
            unused.add("message key", name)
