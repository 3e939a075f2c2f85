"""An engine that samples from a vLLM server and scores in this process.

Rewards then come from the same forward that is trained, not from the kernels of another program.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dartune import distributed
from dartune.engines.base import Sample, SampleSpec, TokenIds, TokenStats
from dartune.engines.hf import HFEngine
from dartune.engines.vllm import VLLMEngine


class ServedEngine:
    """An `Engine` that samples from a server and scores with the same model in this process.

    Args:
        engine: the model in this process; the server samples with its adapter, if it has one.
        server: a connection to the model without an adapter; no other engine may use it.
        handover: the folder through which the adapter is passed to the server before every call, because training
            changes it; the server must see the folder under the same path. None where the model does not change.
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
        """See `VLLMEngine.generate`; all processes must make the same number of calls."""
        if self.handover is not None:
            self._hand_over(self.handover)
        return self.server.generate(prompts, spec)

    def prompts_at_once(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> int:
        """See `VLLMEngine.prompts_at_once`."""
        return self.server.prompts_at_once(prompts, max_new_tokens)

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
        """Closes the connection to the server."""
        self.server.close()

    def use_adapter(self, folder: Path) -> None:
        """Samples with the adapter in `folder` from now on; every process must call this."""
        # The first process loads the adapter into the server once; the others only learn its served name.
        if distributed.is_main():
            self.server.load_adapter(folder, self.server.version + 1)
        self.server.model = distributed.broadcast(self.server.model)

    def _hand_over(self, folder: Path) -> None:
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
            self.model.save_pretrained(folder)
        self.use_adapter(folder)
