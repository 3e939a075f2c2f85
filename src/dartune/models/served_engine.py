"""A vLLM server samples, this process scores: rewards then come from one forward, the one that is trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune import processes
from dartune.models.engine import Sample, SampleSpec, TokenIds, TokenStats
from dartune.models.hf_engine import HFEngine
from dartune.models.vllm_engine import VLLMEngine


class ServedEngine:
    """An `Engine` whose samples are a server's and whose scores are those of the same model in this process.

    Args:
        engine: the model in this process; its adapter, if any, is what the server is to sample with.
        server: a connection of its own, on the model without an adapter.
        handover: folder through which the adapter is handed to the server before every call, since it is being trained;
            the server must see the same disk. None where the model stays as it is.
    """

    def __init__(self, engine: HFEngine, server: VLLMEngine, handover: Path | None = None) -> None:
        self.engine, self.server, self.handover, self.model = engine, server, handover, engine.model

    @property
    def generated_tokens(self) -> int:
        return self.server.generated_tokens

    @property
    def scored_tokens(self) -> int:
        return self.engine.scored_tokens

    @property
    def flops(self) -> float:
        return self.engine.flops + self.server.flops

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `VLLMEngine.generate`; every process must call this as often."""
        if self.handover is not None:
            self._hand_over(self.handover)
        return self.server.generate(prompts, spec)

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`."""
        return self.engine.score(pairs, temperature)

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """See `Engine.token_stats`."""
        return self.engine.token_stats(pairs)

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """See `VLLMEngine.sync`."""
        self.server.sync(state_dict, version)

    def close(self) -> None:
        """End the connection."""
        self.server.close()

    def use_adapter(self, folder: Path) -> None:
        """Sample with the adapter that `folder` holds, in every process."""
        if processes.is_first():
            self.server.load_adapter(folder, self.server.version + 1)
        self.server.model = processes.agreed(self.server.model)

    def _hand_over(self, folder: Path) -> None:
        if processes.is_first():
            shutil.rmtree(folder, ignore_errors=True)
            self.model.save_pretrained(folder)
        self.use_adapter(folder)
