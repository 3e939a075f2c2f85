"""Loads and saves models and tokenizers: safetensors only, checked before loading, saved atomically."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dartune import distributed
from dartune.errors import InputError
from dartune.models.fused_rmsnorm import fuse_norms
from dartune.models.language_model import LanguageModel
from dartune.models.model_files import locate, model_problems
from dartune.models.precision import bfloat16_is_faster
from dartune.run.files import sync, writing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    path: str | Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> nn.Module:
    """Loads a causal LM in evaluation mode, with SDPA attention, or eager attention where SDPA is not supported.

    Sampling, scoring and training use the same attention implementation, so their log-probabilities agree up to
    rounding. RMSNorms are fused (`fuse_norms`). On a GPU, cuDNN attention is disabled for the whole process.

    Args:
        path: a local folder, which is never looked up on the network, or a Hub id (`owner/name`).
        dtype: auto, float32 or bfloat16. auto: bfloat16 where that is faster (`bfloat16_is_faster`), float32 otherwise.
        device: auto, or any torch device. auto: the first GPU, or the CPU without one.
        trust_remote_code: run the Python code that comes with the model.

    Raises:
        InputError: the folder is missing or incomplete, the weights are pickled or do not fit the
            architecture, or the dtype or device is not available; all problems are listed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source, local = locate(path)
    torch_device, device_problems = _parse_device(device)
    dtype_problems = (
        [] if dtype in ("auto", *DTYPES) else [f"unknown dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}"]
    )
    problems = device_problems + dtype_problems + (model_problems(source) if local else [])
    if problems:
        raise InputError(f"cannot load the model {source}", problems)
    with _as_input_error(f"cannot load the model {source}", local):
        config = AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=trust_remote_code)
        if reason := _unsupported_reason(config):
            raise InputError(f"cannot use the model {source}: {reason}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=_compute_dtype(dtype, torch_device, config),
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, info = loaded
    # transformers initialises missing weights at random and only warns about it.
    weight_problems = [f"weight {name} is missing" for name in sorted(info["missing_keys"])]
    weight_problems += [f"weight {entry[0]} has another shape" for entry in sorted(info["mismatched_keys"], key=str)]
    weight_problems += [
        f"weight {name} is not finite" for name, weight in model.named_parameters() if not _is_finite(weight)
    ]
    if weight_problems:
        raise InputError(f"the weights of {source} cannot be used", weight_problems)
    if torch_device.type == "cuda":
        # cuDNN attention builds a plan for every new shape, which takes 0.1 s or more, longer than most steps.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return pin_rope(fuse_norms(model.to(torch_device)).eval())


# Entries of `layer_types` in transformers configs that name a layer with a recurrent state.
RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent"})


def _unsupported_reason(config: Any) -> str | None:
    """Returns why models of a config are not supported; None where they are.

    Rows of different length are padded, and the mask hides the padding from attention. A recurrent state has no such
    mask and would depend on the padding.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    recurrent = sorted(RECURRENT_LAYERS.intersection(getattr(config.get_text_config(), "layer_types", None) or ()))
    if not recurrent and not getattr(model_class, "_is_stateful", False):
        return None
    layers = f" (layers: {', '.join(recurrent)})" if recurrent else ""
    return (
        f"{config.model_type} models carry a recurrent state from token to token{layers}, and dartune supports "
        "only models with attention in every layer; use a model such as Qwen3, Llama or Gemma"
    )


LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")
"""Types of rotary embeddings whose frequencies depend on the longest row of a forward."""


def pin_rope(model: nn.Module) -> nn.Module:
    """Fixes the rotary frequencies to those for rows up to the model's original context length.

    transformers chooses the frequencies of LongRoPE and dynamic NTK models by the longest row of a batch, so the
    log-probabilities of a row would depend on the other rows, and the keys of a prompt on its completion. For these
    models `context_length` returns the original context length, and longer rows are rejected.
    """
    module: Any
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, dict):  # one entry per layer type
            module.rope_type = {layer_type: _pinned_rope_type(name) for layer_type, name in rope_type.items()}
        elif isinstance(rope_type, str):
            module.rope_type = _pinned_rope_type(rope_type)
        originals = [
            (name, buffer) for name, buffer in module.named_buffers(recurse=False) if "original_inv_freq" in name
        ]
        for name, original in originals:
            getattr(module, name.replace("original_", "")).copy_(original)
    return model


def _pinned_rope_type(rope_type: str) -> str:
    return "default" if rope_type in LENGTH_DEPENDENT_ROPE else rope_type


def _original_context_length(config: Any) -> int | None:
    """Returns the context length in tokens of the frequencies that `pin_rope` keeps; None for every other rope."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    # Either the settings themselves, or one dict of settings per layer type.
    candidates = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    lengths = [
        settings.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
        for settings in candidates
        if settings.get("rope_type", settings.get("type")) in LENGTH_DEPENDENT_ROPE
    ]
    return min(lengths, default=None)


def _is_finite(weight: torch.Tensor) -> bool:
    return weight.is_meta or bool(torch.isfinite(weight).all())


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a local folder or Hub id; it need not have a pad token.

    Raises:
        InputError: the folder is missing or incomplete; all problems are listed.
    """
    from transformers import AutoTokenizer

    source, local = locate(path)
    problems = model_problems(source) if local else []
    if problems:
        raise InputError(f"cannot load the tokenizer {source}", problems)
    with _as_input_error(f"cannot load the tokenizer {source}", local):
        return AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=trust_remote_code)


def end_ids(path: str | Path) -> tuple[int, ...]:
    """Returns the stop token ids of the model's generation config; empty where it has none.

    Raises:
        InputError: the generation config cannot be read.
    """
    ids = generation_settings(path).get("eos_token_id")
    return () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)


def generation_settings(path: str | Path) -> dict[str, Any]:
    """Returns the settings of the model's generation config that differ from the defaults; empty where it has none.

    Raises:
        InputError: the generation config cannot be read.
    """
    from transformers import GenerationConfig

    source, local = locate(path)
    if local and not (Path(source) / "generation_config.json").exists():
        return {}
    try:
        with _quiet():
            config = GenerationConfig.from_pretrained(source, local_files_only=local)
    except OSError as error:
        if not local:  # a Hub model need not have a generation config
            return {}
        raise InputError(f"cannot read the generation config of {source}: {error}") from error
    return config.to_diff_dict()


def stop_at(model: nn.Module, stop_ids: Sequence[int]) -> None:
    """Sets the stop tokens of the model's generation config.

    `stop_ids` should hold the end token that the model was trained with and the stop tokens it had before.
    """
    config = getattr(getattr(model, "module", model), "generation_config", None)
    if config is not None:
        config.eos_token_id = list(stop_ids)


def context_length(model_or_config: Any) -> int:
    """Returns the most tokens (prompt + completion) of a row; `sys.maxsize` where the model has no limit.

    For a length-dependent rope this is the original context length, at which `pin_rope` fixes the frequencies.
    """
    config = getattr(model_or_config, "config", model_or_config)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if original_length := _original_context_length(config):
        return original_length
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return sys.maxsize


@distributed.main_only
def save_model(model: LanguageModel, tokenizer: Any, folder: str | Path) -> Path:
    """Saves weights (safetensors), config and tokenizer to `folder`, atomically; only the first process writes.

    For a model with LoRA layers only the adapter is saved. To save the full model, merge them first (`merge_lora`).

    Raises:
        MachineError: the disk is full or not writable; no partial files remain.
    """
    model = getattr(model, "module", model)
    folder = Path(folder)
    # Fixed names instead of random ones, so that the next attempt removes the leftovers of a crash.
    fresh, stale = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for leftover in (fresh, stale):
                shutil.rmtree(leftover, ignore_errors=True)
            with _quiet():
                model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
            for file in (*fresh.rglob("*"), fresh):
                sync(file)
            if folder.exists():  # a rename cannot replace a folder that is not empty
                folder.rename(stale)
            fresh.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
    return folder


def _parse_device(name: str) -> tuple[torch.device, list[str]]:
    """Returns the device and the problems with its name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu"), []
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return torch.device("cpu"), [f"device {name!r} is not available: {reason}"]
    return device, []


def _compute_dtype(name: str, device: torch.device, config: Any) -> torch.dtype:
    """Returns the dtype that `auto` or the name of a dtype stands for, for a model with `config`."""
    if name != "auto":
        return DTYPES[name]
    width = getattr(config.get_text_config(), "hidden_size", 0)  # GPT-2's config maps it to its own name
    return torch.bfloat16 if bfloat16_is_faster(device, width) else torch.float32


@contextmanager
def _as_input_error(message: str, local: bool) -> Iterator[None]:
    """Turns the errors that libraries raise for an invalid model into an `InputError` that starts with `message`."""
    from safetensors import SafetensorError

    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        note = "" if local else " (there is no such folder here, so it was taken for a Hub id)"
        raise InputError(f"{message}{note}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses transformers' progress bars and its report of missing weights, which `load_model` raises itself."""
    from transformers.utils import logging as transformers_logging

    bars_enabled = transformers_logging.is_progress_bar_enabled()
    logger = logging.getLogger("transformers.modeling_utils")
    transformers_logging.disable_progress_bar()
    logger.addFilter(_drop_record)
    try:
        yield
    finally:
        logger.removeFilter(_drop_record)
        if bars_enabled:
            transformers_logging.enable_progress_bar()


def _drop_record(record: logging.LogRecord) -> bool:
    return False
