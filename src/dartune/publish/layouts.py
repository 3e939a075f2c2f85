"""Layouts of training data that other tools read: rows as JSON objects, and the file that describes them to the tool.

Sources of the formats: "Dataset formats" in TRL's documentation; `data/README.md` of LLaMA-Factory; "Conversation" and
"Instruction tuning" in axolotl's documentation; the guide to supervised fine-tuning and the cookbook "Data preparation
and analysis for chat model fine-tuning" of OpenAI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dartune.data.chat_template import plain_prompt

TRAIN_FILE = "train.jsonl"
FEWEST_OPENAI_ROWS = 10
"""A smaller file is rejected by OpenAI's fine-tuning API."""

Row = Mapping[str, Any]
"""A row of `data.jsonl` in an adapted data set."""


@dataclass(frozen=True)
class Layout:
    """How a tool reads training data.

    Args:
        tool: name of the tool, for messages.
        chat_row: returns the JSON object of a row, for a target with a chat template.
        plain_row: the same for a target without one, so that the tool adds nothing to the prompt.
        description: file that describes the data to the tool -> its content, from the folder and whether the target
            has a chat template.
        usage: how the tool is given the data, from the same arguments.
        fewest_rows: the tool rejects fewer rows.
    """

    tool: str
    chat_row: Callable[[Row], dict[str, Any]]
    plain_row: Callable[[Row], dict[str, Any]]
    description: tuple[str, Callable[[Path, bool], str]] | None
    usage: Callable[[Path, bool], str]
    fewest_rows: int = 1

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files of an exported folder."""
        return (TRAIN_FILE, *([self.description[0]] if self.description else []))


def _messages(row: Row) -> dict[str, Any]:
    return {"messages": row["messages"]}


def _prompt_text(row: Row) -> str:
    """The prompt for a target without a chat template, as in training and evaluation."""
    system = [message["content"] for message in row["messages"] if message["role"] == "system"]
    return plain_prompt(row["question"], system[0] if system else None)


def _trl_chat(row: Row) -> dict[str, Any]:
    # Not `messages`: with a prompt and a completion, the loss is on the completion alone by default.
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def _prompt_completion(row: Row) -> dict[str, Any]:
    return {"prompt": _prompt_text(row), "completion": row["solution"]}


def _alpaca(row: Row) -> dict[str, Any]:
    return {"instruction": _prompt_text(row), "output": row["solution"]}


def dataset_name(folder: Path) -> str:
    """The name of the data in `dataset_info.json`: that of the folder. A comma would separate two names."""
    return re.sub(r"[^\w.-]+", "-", folder.resolve().name) or "dartune"


def _dataset_info(folder: Path, chat: bool) -> str:
    """`dataset_info.json` of LLaMA-Factory: the file, its columns and the names of its roles."""
    entry: dict[str, Any] = {"file_name": TRAIN_FILE}
    if chat:
        tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
        entry |= {
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": tags | {"system_tag": "system"},
        }
    else:
        entry |= {"formatting": "alpaca", "columns": {"prompt": "instruction", "response": "output"}}
    # ASCII, because LLaMA-Factory opens the file in the encoding of the system.
    return json.dumps({dataset_name(folder): entry}, indent=2) + "\n"


def _axolotl_config(folder: Path, chat: bool) -> str:
    """The `datasets` section of an axolotl config. A plain prompt is used as it is; axolotl adds the end token."""
    import yaml

    dataset: dict[str, Any] = {"path": str(folder / TRAIN_FILE), "ds_type": "json"}
    if chat:
        dataset |= {"type": "chat_template", "roles_to_train": ["assistant"], "train_on_eos": "turn"}
    else:
        fields = {"field_instruction": "prompt", "field_output": "completion"}
        dataset["type"] = fields | {"format": "{instruction}", "no_input_format": "{instruction}"}
    config = {"datasets": [dataset], "train_on_inputs": False}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _use_in_trl(folder: Path, chat: bool) -> str:
    call = f'load_dataset("json", data_files="{folder / TRAIN_FILE}", split="train")'
    return f"trl.SFTTrainer(train_dataset={call})"


def _use_in_llama_factory(folder: Path, chat: bool) -> str:
    # `fewshot` is the one template that leaves the prompt as it is and ends the solution with the end token.
    template = "the template of your model" if chat else "template: fewshot"
    return f"dataset_dir: {folder}, dataset: {dataset_name(folder)}, {template}"


def _use_in_axolotl(folder: Path, chat: bool) -> str:
    return f"put the content of {folder / AXOLOTL_FILE} into your config"


def _use_at_openai(folder: Path, chat: bool) -> str:
    return f'upload {folder / TRAIN_FILE} with purpose "fine-tune"'


AXOLOTL_FILE = "datasets.yml"
LAYOUTS = {
    "trl": Layout("TRL", _trl_chat, _prompt_completion, None, _use_in_trl),
    "llama-factory": Layout(
        "LLaMA-Factory", _messages, _alpaca, ("dataset_info.json", _dataset_info), _use_in_llama_factory
    ),
    "axolotl": Layout("axolotl", _messages, _prompt_completion, (AXOLOTL_FILE, _axolotl_config), _use_in_axolotl),
    # The models at OpenAI are chat models, so the rows are conversations even if the target has no chat template.
    "openai": Layout("OpenAI", _messages, _messages, None, _use_at_openai, FEWEST_OPENAI_ROWS),
}
