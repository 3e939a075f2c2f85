"""Models and tokenizers in and out of folders: safetensors only, checked before reading, written whole."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dartune import processes
from dartune.errors import InputError
from dartune.files import sync, writing
from dartune.models.norms import fuse_norms

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer_config.json",
)
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
CONVERT = (
    "if you trust their origin, convert them to safetensors: "
    "AutoModelForCausalLM.from_pretrained(old, use_safetensors=False).save_pretrained(new)"
)


def load_model(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> nn.Module:
    """A causal LM in evaluation mode, attending by SDPA, or by plain products where its architecture has none.

    Sampling, scoring and training attend the same way, so that they agree to the last digits. RMSNorms are fused
    (`fuse_norms`); on a GPU, cuDNN's attention is switched off for the whole process.

    Args:
        path: a local folder, which is never looked up on the network, or a Hub id (`owner/name`).
        dtype: auto, float32 or bfloat16; auto is bfloat16 on a GPU that has it, else float32.
        device: auto, or any torch device; auto is the first GPU, else the CPU.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        InputError: the folder is missing or incomplete, its weights are pickled or do not fit the
            architecture, or the dtype or device does not exist here; all problems are listed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source, local = _locate(path)
    place, placing = _device(device)
    kind, typing = _dtype(dtype, place)
    problems = placing + typing + (model_problems(source) if local else [])
    if problems:
        raise InputError(f"cannot load the model {source}", problems)
    with _as_input_error(f"cannot load the model {source}", local):
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=trust_remote_code)
        if reason := _unsupported(config):
            raise InputError(f"cannot use the model {source}: {reason}")
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=kind,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    # transformers only warns about weights that it had to make up.
    wrong = [f"weight {name} is missing" for name in sorted(info["missing_keys"])]
    wrong += [f"weight {entry[0]} has another shape" for entry in sorted(info["mismatched_keys"], key=str)]
    wrong += [f"weight {name} is not finite" for name, weight in model.named_parameters() if not _finite(weight)]
    if wrong:
        raise InputError(f"the weights of {source} cannot be used", wrong)
    if place.type == "cuda":
        # cuDNN's attention builds a plan for every new shape, which takes longer than most steps (0.1 s and more).
        torch.backends.cuda.enable_cudnn_sdp(False)
    return pin_rope(fuse_norms(model.to(place)).eval())


RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent"})


def _unsupported(config: Any) -> str | None:
    """Why models of a config cannot be used; None where they can.

    One reading of a prompt serves all its samples, and rows of different length are padded: a state that is carried
    from token to token would be another one.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    recurrent = sorted(RECURRENT_LAYERS.intersection(getattr(config.get_text_config(), "layer_types", None) or ()))
    if not recurrent and not getattr(known, "_is_stateful", False):
        return None
    kinds = f" (layers: {', '.join(recurrent)})" if recurrent else ""
    return (
        f"{config.model_type} models carry a recurrent state from token to token{kinds}, and dartune supports "
        "attention in every layer only; take a model such as Qwen3, Llama or Gemma"
    )


CHANGING_ROPE = ("longrope", "dynamic")
"""Rotary embeddings whose frequencies depend on the longest row of a forward."""


def pin_rope(model: nn.Module) -> nn.Module:
    """Keep the rotary frequencies of texts up to the length that the model was first trained on.

    transformers chooses the frequencies of LongRoPE and dynamic NTK models by the longest row of a batch, so a row's
    log-probabilities would depend on the other rows, and a prompt's keys on what follows it. `context_length` is that
    first length for these models, and longer rows are refused.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):  # one per kind of layer
            module.rope_type = {layer: _pinned(name) for layer, name in kind.items()}
        elif isinstance(kind, str):
            module.rope_type = _pinned(kind)
        for name, original in [(n, b) for n, b in module.named_buffers(recurse=False) if "original_inv_freq" in n]:
            getattr(module, name.replace("original_", "")).copy_(original)
    return model


def _pinned(rope_type: str) -> str:
    return "default" if rope_type in CHANGING_ROPE else rope_type


def _first_length(config: Any) -> int | None:
    """Tokens that the frequencies which `pin_rope` keeps were made for; None where the rope does not change."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    lengths = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for one in kinds
        if one.get("rope_type", one.get("type")) in CHANGING_ROPE
    ]
    return min(lengths, default=None)


def _finite(weight: torch.Tensor) -> bool:
    return weight.is_meta or bool(torch.isfinite(weight).all())


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a local folder or Hub id; needs no pad token.

    Raises:
        InputError: the folder is missing or incomplete; all problems are listed.
    """
    from transformers import AutoTokenizer

    source, local = _locate(path)
    problems = model_problems(source) if local else []
    if problems:
        raise InputError(f"cannot load the tokenizer {source}", problems)
    with _as_input_error(f"cannot load the tokenizer {source}", local):
        return AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=trust_remote_code)


def end_ids(path: str | Path) -> tuple[int, ...]:
    """The tokens that end a sample by the model's generation config; empty where it has none.

    Raises:
        InputError: the generation config cannot be read.
    """
    found = generation_settings(path).get("eos_token_id")
    return () if found is None else tuple(found) if isinstance(found, list | tuple) else (found,)


def generation_settings(path: str | Path) -> dict[str, Any]:
    """What the model's generation config sets; empty where it has none.

    Raises:
        InputError: the generation config cannot be read.
    """
    from transformers import GenerationConfig

    source, local = _locate(path)
    if local and not (Path(source) / "generation_config.json").exists():
        return {}
    try:
        with _quiet():
            found = GenerationConfig.from_pretrained(source, local_files_only=local)
    except OSError as error:
        if not local:  # a Hub model need not have one
            return {}
        raise InputError(f"cannot read the generation config of {source}: {error}") from error
    return found.to_diff_dict()


def stop_at(model: nn.Module, stop_ids: Sequence[int]) -> None:
    """Have the model's generation config stop where it was trained to, and at what it stopped at before."""
    config = getattr(getattr(model, "module", model), "generation_config", None)
    if config is not None:
        config.eos_token_id = list(stop_ids)


def model_problems(folder: str | Path) -> list[str]:
    """Everything that a local model folder lacks, one line each; empty when it is complete."""
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


def context_length(model_or_config: Any) -> int:
    """Most tokens (prompt + completion) that are read; `sys.maxsize` where the model has no limit.

    That is what it was made for, or for a rope that changes with the length what `pin_rope` keeps it at.
    """
    config = getattr(model_or_config, "config", model_or_config)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if first := _first_length(config):
        return first
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return sys.maxsize


@processes.first_only
def save_model(model: nn.Module, tokenizer: Any, folder: str | Path) -> Path:
    """Write weights (safetensors), config and tokenizer; `folder` appears complete or not at all.

    Of a model with LoRA layers only the adapter is written; to write a whole model, merge them first (`merge_lora`).

    Raises:
        MachineError: the disk is full or not writable; nothing is left behind.
    """
    model = getattr(model, "module", model)
    folder = Path(folder)
    # Always the same names, so that what a crash leaves is cleared away by the next attempt.
    fresh, stale = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in (fresh, stale):
                shutil.rmtree(left, ignore_errors=True)
            with _quiet():
                model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            for file in (*fresh.rglob("*"), fresh):
                sync(file)
            if folder.exists():
                folder.rename(stale)
            fresh.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def _weight_problems(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{index.name} is not a list of weight files"]
        if outside := [shard for shard in shards if Path(str(shard)).name != shard]:
            return [f"{index.name} names {outside[0]!r}, which is no file of this folder"]
        return [f"the weight file {shard} is missing" for shard in shards if not (folder / shard).exists()]
    if (folder / "model.safetensors").exists():
        return []
    pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
    if pickled:
        return [f"only pickled weights ({pickled[0]}), which can run any code when read; {CONVERT}"]
    return ["no weights (model.safetensors)"]


def _locate(path: str | Path) -> tuple[str, bool]:
    """The folder or Hub id, and whether it is local."""
    text = str(path)
    if isinstance(path, Path) or Path(text).expanduser().exists() or not HUB_ID.fullmatch(text.removeprefix("hub:")):
        return str(Path(text).expanduser()), True
    return text.removeprefix("hub:"), False


def _device(name: str) -> tuple[torch.device, list[str]]:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu"), []
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return torch.device("cpu"), [f"device {name!r} cannot be used here: {reason}"]
    return device, []


def _dtype(name: str, device: torch.device) -> tuple[torch.dtype, list[str]]:
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32, []
    if name not in DTYPES:
        return torch.float32, [f"unknown dtype {name!r}: choose auto, {', '.join(DTYPES)}"]
    return DTYPES[name], []


@contextmanager
def _as_input_error(what: str, local: bool) -> Iterator[None]:
    """Turn a library's complaint about a model into ours."""
    from safetensors import SafetensorError

    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        where = "" if local else " (there is no such folder here, so it was taken for a Hub id)"
        raise InputError(f"{what}{where}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, and its report of wrong weights, which we raise."""
    from transformers.utils import logging as display

    bars = display.is_progress_bar_enabled()
    logger = logging.getLogger("transformers.modeling_utils")
    display.disable_progress_bar()
    logger.addFilter(_drop)
    try:
        yield
    finally:
        logger.removeFilter(_drop)
        if bars:
            display.enable_progress_bar()


def _drop(record: logging.LogRecord) -> bool:
    return False
