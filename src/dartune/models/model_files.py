"""The files of a model folder, checked before loading. Does not import torch, so that problems are reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from dartune.errors import InputError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
HOW_TO_CONVERT = (
    "if you trust their origin, convert them to safetensors: "
    "AutoModelForCausalLM.from_pretrained(old, use_safetensors=False).save_pretrained(new)"
)


def locate(path: str | Path) -> tuple[str, bool]:
    """Returns the folder or Hub id, and whether it is local."""
    text = str(path)
    if isinstance(path, Path) or Path(text).expanduser().exists() or not HUB_ID.fullmatch(text.removeprefix("hub:")):
        return str(Path(text).expanduser()), True
    return text.removeprefix("hub:"), False


def file_problems(models: Iterable[str | Path]) -> list[str]:
    """Returns the problems of all local folders among `models` (folders or Hub ids), with the folder above them."""
    problems = []
    for model in models:
        source, local = locate(model)
        folder_problems = model_problems(source) if local else []
        if folder_problems:
            problems += InputError(f"cannot load the model {source}", folder_problems).lines
    return problems


def model_problems(folder: str | Path) -> list[str]:
    """Returns every problem of a local model folder, one line each; empty when it is complete."""
    folder = Path(folder)
    if not folder.is_dir():
        return [f"there is no folder {folder}"]
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        return ["this is a LoRA adapter, not a model: merge it into its base model and save that"]
    problems = []
    config = folder / "config.json"
    if not config.exists():
        problems.append("no config.json, which names the architecture")
    else:
        try:
            json.loads(config.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            problems.append(f"config.json is not JSON: {error}")
    problems += _weight_problems(folder)
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        problems.append("no tokenizer (tokenizer.json or the like): copy the tokenizer files of its base model here")
    return problems


def _weight_problems(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{index.name} is not a list of weight files"]
        # A path in the index could otherwise point at any file of the disk.
        if outside := [shard for shard in shards if Path(str(shard)).name != shard]:
            return [f"{index.name} names {outside[0]!r}, which is not a file of this folder"]
        return [f"the weight file {shard} is missing" for shard in shards if not (folder / shard).exists()]
    if (folder / "model.safetensors").exists():
        return []
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        return [f"only pickled weights ({pickled[0]}), which can run any code when read; {HOW_TO_CONVERT}"]
    return ["no weights (model.safetensors)"]
