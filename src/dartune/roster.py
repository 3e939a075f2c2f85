"""The models of a run: loaded once, when a stage first needs them, always through one tokenizer."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dartune import arm_settings, inputs, processes, tracking
from dartune.arms import ADAPTATIONS, ARMS, adaptations
from dartune.config import Adapter, Config
from dartune.data.render import Renderer
from dartune.errors import InputError
from dartune.lab import source as lab
from dartune.lengths import too_long
from dartune.models.adapter import is_adapter, load_adapter, remove_lora
from dartune.models.flops import FORWARD, multiplied_weights
from dartune.models.hf_engine import HFEngine
from dartune.models.loading import (
    context_length,
    end_ids,
    generation_settings,
    load_model,
    load_tokenizer,
    save_model,
    stop_at,
)
from dartune.models.memory import Footprint, footprint, weight_bytes
from dartune.models.parallel_engine import LocalEngine, engine_on, shared
from dartune.models.precision import compute_in, rounded
from dartune.models.served_engine import ServedEngine
from dartune.models.vllm_engine import VLLMEngine
from dartune.redaction import printable
from dartune.rewards.reward import reward_parts
from dartune.run import Cost

logger = logging.getLogger(__name__)

API_KEY = "DARTUNE_VLLM_API_KEY"
"""Environment variable with the server's key, if it wants one."""
HANDOVER = "handover"


class Meter:
    """Tokens that engines generate and score from here on, and what that takes."""

    def __init__(self, *engines: LocalEngine):
        self.engines = list({id(engine): engine for engine in engines}.values())
        self.start = self._sums()

    def _sums(self) -> Cost:
        return Cost(
            generated_tokens=sum(engine.generated_tokens for engine in self.engines),
            scored_tokens=sum(engine.scored_tokens for engine in self.engines),
            flops=sum(engine.flops for engine in self.engines),
        )

    def cost(self) -> Cost:
        now, before = self._sums(), self.start
        return Cost(
            generated_tokens=now.generated_tokens - before.generated_tokens,
            scored_tokens=now.scored_tokens - before.scored_tokens,
            flops=now.flops - before.flops,
        )


class Roster:
    """Target, mapper start and what was trained from them."""

    def __init__(self, config: Config):
        """Resolve the addresses of `config`.

        Raises:
            InputError: an address the lab does not have; all are listed.
        """
        self.config = config
        self._servers: list[VLLMEngine] = []
        self.contexts: dict[str, int] = {}
        """path -> tokens that a model reads at once, of those that were checked."""
        addresses = [config.target.path, config.mapper.path or config.target.path, config.target.other]
        paths, problems = {}, []
        for address in dict.fromkeys(address for address in addresses if address):
            try:
                paths[address] = inputs.model_path(address)
            except InputError as error:
                problems += error.lines
        if problems:
            raise InputError("the models cannot be used", problems)
        self.target_path, self.mapper_path, self.other_path = map(paths.get, addresses)

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
        return f"{inputs.content_hash(self.target_path)}/{self.renderer.hash}/{self.config.target.dtype}"

    @cached_property
    def mapper_fingerprint(self) -> str:
        return inputs.content_hash(self.mapper_path)

    @cached_property
    def target_engine(self) -> LocalEngine:
        """The frozen target."""
        return self._served(HFEngine(self._load(self.target_path), adapter=False))

    @cached_property
    def start_engine(self) -> LocalEngine:
        """The mapper before training: what its KL penalty is measured from."""
        if self.mapper_path == self.target_path:
            return self.target_engine
        return engine_on(self._load(self.mapper_path), adapter=False)

    @cached_property
    def context(self) -> int:
        """Tokens the target reads at once."""
        return context_length(self.target_engine.model)

    def start_from(self, folder: Path, identity: str) -> None:
        """Take another model for the mapper's start from now on."""
        self.mapper_path, self.mapper_fingerprint = str(folder), identity
        vars(self).pop("start_engine", None)

    def to_train(self, path: str, settings: Adapter):
        """A copy of a model to train by `settings`; weights that are trained are float32."""
        if settings.adapter == "lora":
            return self._load(path)
        return compute_in(self._load(path, "float32"), self.target_engine.model.dtype)

    def mapper_to_train(self):
        """The mapper's start: a copy of it, or where an adapter is trained, the frozen model that will carry it."""
        mapper = self.config.mapper
        return self.start_engine.model if mapper.adapter == "lora" else self.to_train(self.mapper_path, mapper)

    def policy(self, model, stage_folder: Path) -> LocalEngine:
        """An engine on a mapper that is being trained."""
        return self._served(HFEngine(model), handover=stage_folder / HANDOVER)

    def _served(self, engine: HFEngine, *, adapter: Path | None = None, handover: Path | None = None) -> LocalEngine:
        """The engine, sampling from the server where the config names one."""
        execution = self.config.execution
        if not execution.server:
            return shared(engine)
        server = VLLMEngine(
            execution.server,
            model=execution.server_model,
            api_key=os.environ.get(API_KEY),
            flops_per_token=FORWARD * multiplied_weights(engine.model),
        )
        served = ServedEngine(engine, server, handover)
        if adapter is not None:
            served.use_adapter(adapter)
        if engine.adapter:
            self._servers.append(server)
        return shared(served)

    def _close_servers(self) -> None:
        """End the connections that sampled with an adapter."""
        while self._servers:
            self._servers.pop().close()

    @contextmanager
    def mapper(self, folder: Path) -> Iterator[LocalEngine]:
        """The trained mapper that a stage kept: a model of its own, or the start with its adapter on for as long."""
        if not is_adapter(folder):
            yield self.trained(folder)
            return
        model = load_adapter(self.start_engine.model, folder)
        try:
            yield self._served(HFEngine(model), adapter=folder)
        finally:
            self._close_servers()
            remove_lora(model)

    def frozen(self, path: str) -> LocalEngine:
        """The model of a folder, or the target, to score with."""
        return self.target_engine if path == self.target_path else self.trained(Path(path))

    def trained(self, folder: Path) -> LocalEngine:
        return engine_on(self._load(str(folder)))

    def engine(self, model) -> LocalEngine:
        """An engine on a model whose training has ended."""
        return engine_on(rounded(model).eval())

    def keep(self, model, stage_folder: Path) -> None:
        """Save a stage's trained model and drop the checkpoints it no longer needs.

        Of a model with an adapter the adapter is saved, and the model is left without it.
        """
        stop_at(model, self.renderer.stop_ids)
        save_model(rounded(model), self.tokenizer, stage_folder / "model")
        remove_lora(model)
        self._close_servers()
        if processes.is_first():
            for left in ("checkpoints", HANDOVER):
                shutil.rmtree(stage_folder / left, ignore_errors=True)

    def _load(self, path: str, dtype: str | None = None):
        target = self.config.target
        code = target.trust_remote_code
        return load_model(
            path, dtype=dtype or target.dtype, device=self.config.execution.device, trust_remote_code=code
        )

    def footprints(self) -> dict[str, Footprint]:
        """Memory of each kind of training that the config asks for, by section."""
        config, target, start = self.config, self.target_engine.model, self.start_engine.model
        asked = [ARMS[arm] for arm in config.arms if ARMS[arm].trained]
        frozen = weight_bytes(target)
        found = {}
        if config.mapper.steps and any(ADAPTATIONS[name].trained for name in adaptations(config.arms)):
            found["mapper"] = footprint(
                start, config.mapper, frozen + (0 if start is target else weight_bytes(start)), config.execution
            )
        if any(not arm.budget for arm in asked):
            beside = frozen * (2 if config.sft.adapter == "lora" else 1)
            found["sft"] = footprint(target, config.sft, beside, config.execution)
        if any(arm.budget for arm in asked):
            beside = frozen * (2 if config.direct_rl.adapter == "lora" else 1)
            found["direct_rl"] = footprint(target, config.direct_rl, beside, config.execution)
        return found

    def check(self) -> None:
        """Load what the run needs; every problem of the models is raised at once.

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


def sampling_lines(models: Roster) -> list[str]:
    """How the target's authors sample from it, and how this run does."""
    settings = generation_settings(models.target_path)
    shown = [f"{name} {settings[name]}" for name in ("temperature", "top_p", "top_k") if name in settings]
    ends = ", ".join(map(repr, models.tokenizer.convert_ids_to_tokens(list(models.renderer.stop_ids))))
    temperature = models.config.reward.own_temperature
    return [
        f"Sampling: the target's generation config sets {', '.join(shown) or 'nothing'}; own samples are drawn at "
        f"reward.own_temperature {temperature:g}, from the whole distribution.",
        f"A sample ends with any of {ends}.",
    ]


@dataclass
class Examined:
    """Data and models as far as they can be used, and everything that keeps a run from starting.

    `rows` are the data's good rows where they cannot be split, too; `data` and `models` are None where unusable.
    """

    config: Config
    sources: inputs.Sources
    data: inputs.Data | None = None
    models: Roster | None = None
    problems: list[str] = field(default_factory=list)


def examined(config: Config, *, every: bool = False) -> Examined:
    """Data and models, checked together; nothing that is wrong hides anything else.

    Args:
        every: messages name every row, not only the first of those with the same problem.
    """
    if "wrong_target" in config.arms and not config.target.other:
        other = lab.other_target(config.target.path)
        config = config.model_copy(update={"target": config.target.model_copy(update={"other": other})})
    problems = arm_settings.problems(config, in_lab=lab.is_lab(config.data.path) and lab.is_lab(config.target.path))
    problems += tracking.problems(config.trackers)
    found = Examined(config, inputs.Sources(), problems=problems)
    _examine_data(found, every)
    try:
        reward_parts(config.reward)
    except InputError as error:
        problems.append(error.message)
    try:
        models = Roster(config)
        models.check()
        found.models = models
    except InputError as error:
        problems += error.problems or [error.message]
    if found.models and found.sources.rows:
        data = found.data or inputs.Data(found.sources.rows, [], found.sources.suites)
        contexts = models.contexts[models.target_path], models.contexts[models.mapper_path]
        problems += too_long(models.config, data, models.renderer, *contexts, every=every)
    # A file given twice, as data and as a suite, say, is wrong in the same way twice.
    found.problems = list(dict.fromkeys(problems))
    return found


def _examine_data(found: Examined, every: bool) -> None:
    """Read and split the data."""
    problems = found.problems
    try:
        found.sources = inputs.read(found.config)
        unusable = found.sources.problems(every=every)
        problems += unusable
        if not unusable:
            found.data = inputs.divided(found.config, found.sources)
    except InputError as error:
        problems += error.problems or [error.message]
    data, rows = found.data, found.sources.rows
    trained = data.train if data else rows
    if len(rows) and any(ARMS[arm].budget for arm in found.config.arms) and all(row.answer is None for row in trained):
        problems.append("arms: direct RL is paid for right answers, and no training row has one; take its arms out")
    if data and all(row.answer is None for suite in data.suites.values() for row in suite):
        problems.append(
            "no test question has an answer to compare with: give some rows an `answer` (or one stated in the "
            "solution), or evaluate.suites a file of questions with answers"
        )


def prepared(config: Config) -> tuple[inputs.Data, Roster]:
    """Data and models; what of the data is not used is logged.

    Raises:
        InputError: everything that keeps a run from starting, at once.
    """
    found = examined(config)
    for line in found.sources.warnings() if processes.is_first() else ():
        logger.warning("%s", printable(line))
    if found.problems or found.data is None or found.models is None:
        raise InputError("this run cannot start", found.problems)
    return found.data, found.models
