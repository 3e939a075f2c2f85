"""The models of a run: loaded once, when a stage first needs them, always through one tokenizer."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from dartune import distributed
from dartune.config.arm_config import direct_rl_settings
from dartune.config.arms import ADAPTATIONS, ARMS, adaptations
from dartune.config.schema import Adapter, Config
from dartune.data.chat_template import Renderer
from dartune.engines.distributed import LocalEngine, engine_on, parallel_engine
from dartune.engines.hf import HFEngine
from dartune.engines.served import ServedEngine
from dartune.engines.vllm import VLLMEngine
from dartune.errors import InputError
from dartune.models.adapter_files import is_adapter
from dartune.models.device import device_of
from dartune.models.flops import FORWARD, multiplied_weights
from dartune.models.loading import (
    context_length,
    end_ids,
    generation_settings,
    load_model,
    load_tokenizer,
    save_model,
    stop_at,
)
from dartune.models.lora import load_adapter, remove_lora
from dartune.models.precision import cast_to_compute_dtype, compute_in
from dartune.stages import data as run_data
from dartune.train.memory import Footprint, footprint, memory_lines, weight_bytes

logger = logging.getLogger(__name__)

API_KEY = "DARTUNE_VLLM_API_KEY"
"""Environment variable with the API key of the vLLM server, if it requires one."""
HANDOVER = "handover"


class RunModels:
    """The models of a run: target, initial mapper, and the models trained from them. Loaded when first used."""

    def __init__(self, config: Config):
        """Resolve the addresses of `config`.

        Raises:
            InputError: the lab has no such model; all such addresses are listed.
        """
        self.config = config
        self._servers: list[VLLMEngine] = []
        self.contexts: dict[str, int] = {}
        """path -> context length in tokens, of the models that `check` has loaded."""
        paths = run_data.model_paths(config)
        self.target_path, self.mapper_path = paths[config.target.path], paths[config.mapper.path or config.target.path]
        self.other_path = paths[config.target.other] if config.target.other else None

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.target_path, trust_remote_code=self.config.target.trust_remote_code)

    @cached_property
    def renderer(self) -> Renderer:
        target = self.config.target
        ends = end_ids(self.target_path)
        return Renderer(self.tokenizer, target.system_prompt, thinking=target.thinking, end_ids=ends)

    @cached_property
    def target_fingerprint(self) -> str:
        return f"{run_data.content_hash(self.target_path)}/{self.renderer.hash}/{self.config.target.dtype}"

    @cached_property
    def mapper_fingerprint(self) -> str:
        return run_data.content_hash(self.mapper_path)

    @cached_property
    def target_engine(self) -> LocalEngine:
        """The frozen target."""
        return self._served(HFEngine(self._load(self.target_path), adapter=False))

    @cached_property
    def start_engine(self) -> LocalEngine:
        """The initial mapper: the reference model of the KL penalty."""
        if self.mapper_path == self.target_path:
            return self.target_engine
        return engine_on(self._load(self.mapper_path), adapter=False)

    @cached_property
    def context(self) -> int:
        """The target's context length in tokens."""
        return context_length(self.target_engine.model)

    def start_from(self, folder: Path, identity: str) -> None:
        """Use another model as the initial mapper from now on.

        Args:
            identity: what identifies it in stage keys.
        """
        self.mapper_path, self.mapper_fingerprint = str(folder), identity
        vars(self).pop("start_engine", None)

    def to_train(self, path: str, settings: Adapter):
        """A copy of a model to train with `settings`; trained weights are float32."""
        if settings.lora_rank is not None:
            return self._load(path)
        return compute_in(self._load(path, "float32"), self.target_engine.model.dtype)

    def mapper_to_train(self):
        """A copy of the initial mapper; with LoRA the frozen model itself, which the adapter is attached to."""
        mapper = self.config.mapper
        return self.start_engine.model if mapper.lora_rank is not None else self.to_train(self.mapper_path, mapper)

    def policy(self, model, stage_folder: Path) -> LocalEngine:
        """An engine that samples from the mapper being trained."""
        return self._served(HFEngine(model), handover=stage_folder / HANDOVER)

    def _served(self, engine: HFEngine, *, adapter: Path | None = None, handover: Path | None = None) -> LocalEngine:
        """The engine; with `execution.server` it samples from that server."""
        execution = self.config.execution
        if not execution.server:
            return parallel_engine(engine)
        server = VLLMEngine(
            execution.server,
            api_key=os.environ.get(API_KEY),
            flops_per_token=FORWARD * multiplied_weights(engine.model),
        )
        served = ServedEngine(engine, server, handover)
        if adapter is not None:
            served.use_adapter(adapter)
        if engine.adapter:
            self._servers.append(server)
        return parallel_engine(served)

    def _close_servers(self) -> None:
        """Close the connections of engines that sampled with an adapter."""
        while self._servers:
            self._servers.pop().close()

    @contextmanager
    def mapper(self, folder: Path) -> Iterator[LocalEngine]:
        """The trained mapper in a stage's folder: a full model, or the initial mapper with the adapter attached."""
        if not is_adapter(folder):
            yield self.start_engine if str(folder) == self.mapper_path else self.trained(folder)
            return
        model = load_adapter(self.start_engine.model, folder)
        try:
            yield self._served(HFEngine(model), adapter=folder)
        finally:
            self._close_servers()
            remove_lora(model)

    def frozen(self, path: str) -> LocalEngine:
        """An engine for scoring with the target or with the model of a folder."""
        return self.target_engine if path == self.target_path else self.trained(Path(path))

    def trained(self, folder: Path) -> LocalEngine:
        return engine_on(self._load(str(folder)))

    def engine(self, model) -> LocalEngine:
        """An engine on a trained model, rounded to its compute dtype."""
        return engine_on(cast_to_compute_dtype(model).eval())

    def keep(self, model, stage_folder: Path) -> None:
        """Save a stage's trained model and drop the checkpoints it no longer needs.

        Of a model with an adapter the adapter is saved, and the model is left without it.
        """
        stop_at(model, self.renderer.stop_ids)
        save_model(cast_to_compute_dtype(model), self.tokenizer, stage_folder / "model")
        remove_lora(model)
        self._close_servers()
        if distributed.is_main():
            for left in ("checkpoints", HANDOVER):
                shutil.rmtree(stage_folder / left, ignore_errors=True)

    def _load(self, path: str, dtype: str | None = None):
        target = self.config.target
        code = target.trust_remote_code
        return load_model(
            path, dtype=dtype or target.dtype, device=self.config.execution.device, trust_remote_code=code
        )

    def footprints(self, arms: Sequence[str] | None = None) -> dict[str, Footprint]:
        """Estimated memory of each kind of training that `arms` (None: the config's) need, by section name."""
        config, target, start = self.config, self.target_engine.model, self.start_engine.model
        arms = config.arms if arms is None else arms
        trained_arms = [ARMS[arm] for arm in arms if ARMS[arm].trained]
        frozen = weight_bytes(target)
        footprint_by_section = {}
        if config.mapper.steps and any(ADAPTATIONS[name].trained for name in adaptations(arms)):
            footprint_by_section["mapper"] = footprint(
                start, config.mapper, frozen + (0 if start is target else weight_bytes(start)), config.execution
            )
        if any(arm.rows or arm.teacher for arm in trained_arms):
            other_models = frozen * (1 if config.sft.lora_rank is None else 2)
            footprint_by_section["sft"] = footprint(target, config.sft, other_models, config.execution)
        if any(arm.budget for arm in trained_arms):
            other_models = frozen * (1 if direct_rl_settings(config).lora_rank is None else 2)
            footprint_by_section["direct_rl"] = footprint(
                target, direct_rl_settings(config), other_models, config.execution
            )
        return footprint_by_section

    def memory_lines(self) -> list[str]:
        """Estimated memory of each kind of training, beside that of the device."""
        device = device_of(self.target_engine.model)
        return ["Memory of training, estimated:", *memory_lines(self.footprints(), device)]

    def sampling_lines(self) -> list[str]:
        """The sampling settings of the target's generation config, and those of this run."""
        settings = generation_settings(self.target_path)
        set_values = [f"{name} {settings[name]}" for name in ("temperature", "top_p", "top_k") if name in settings]
        ends = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(list(self.renderer.stop_ids))))
        temperature = self.config.reward.own_temperature
        return [
            f"Sampling: the target's generation config sets {', '.join(set_values) or 'nothing'}; own samples are "
            f"drawn at reward.own_temperature {temperature:g}, from the whole distribution.",
            f"A sample ends with any of {ends}.",
        ]

    def check(self) -> None:
        """Load the models of the run; all problems are raised at once.

        Raises:
            InputError: a model cannot be loaded, or target and mapper do not share their tokens.
        """
        problems: list[str] = []
        for path in dict.fromkeys(filter(None, [self.target_path, self.mapper_path, self.other_path])):
            try:
                tokenizer = load_tokenizer(path, trust_remote_code=self.config.target.trust_remote_code)
                self.contexts[path] = context_length(self._load(path))
            except InputError as error:
                problems += error.lines
                continue
            if path != self.target_path and not problems and tokenizer.get_vocab() != self.tokenizer.get_vocab():
                key = "mapper.path" if path == self.mapper_path else "target.other"
                problems.append(
                    f"{key} {path}: its vocabulary is not the target's. Rewrites are passed between models as token "
                    "ids; take a model of the target's family, or mapper.path: null for a copy of the target"
                )
        if problems:
            raise InputError("the models cannot be used", problems)
