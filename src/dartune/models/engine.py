"""What the rest of dartune asks of an inference engine: token ids in, samples and log-probabilities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dartune.errors import InputError

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """How to sample.

    Args:
        n: samples per prompt.
        max_new_tokens: longest completion, its stop token included.
        temperature: 0 is greedy; otherwise the untruncated distribution at this temperature (no top-p,
            no top-k: truncation would bias an importance ratio).
        stop_ids: a completion ends with the first of these.
        seed: the same seed, weights and prompts give the same samples.
    """

    n: int
    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    seed: int

    def __post_init__(self) -> None:
        rules = [
            ("n must be at least 1", self.n >= 1),
            ("max_new_tokens must be at least 1", self.max_new_tokens >= 1),
            ("temperature must not be negative", self.temperature >= 0),
        ]
        if problems := [rule for rule, kept in rules if not kept]:
            raise InputError(f"cannot sample with {self}", problems)


COUNTED = ("generated_tokens", "scored_tokens", "flops")
"""What every engine counts of its own work."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Args:
        ids: its tokens, with the stop token when `finish == "stop"`.
        logprobs: nats per token under the distribution it was drawn from (after temperature); a greedy
            sample's are those at temperature 1, since its own distribution is a point.
        finish: "stop" (ended by a stop token) or "length" (cut at `max_new_tokens`).
        temperature: of the distribution that `logprobs` belong to.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Per completion token: log-probability (nats), entropy of its distribution (nats), rank (1 is the likeliest).

    `content` says which tokens belong to statements that count (`rewards/content.py`); empty: all do.
    """

    logprobs: tuple[float, ...]
    entropies: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    content: tuple[bool, ...] = ()


class Engine(Protocol):
    """A model that samples and scores. Token ids only: text is rendered and read elsewhere."""

    generated_tokens: int
    """Completion tokens sampled so far."""
    scored_tokens: int
    """Completion tokens scored so far; exact duplicates within one call count once."""
    flops: float
    """Floating point operations so far, as `models/flops.py` estimates them; prompts that are read count too."""

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """`spec.n` samples per prompt, in prompt order.

        Raises:
            InputError: prompts that are empty, too long or outside the vocabulary; all are listed.
        """

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """log p(token | prompt, earlier tokens) of each completion token at a temperature above 0, nats, in pair order.

        Raises:
            InputError: as in `generate`.
        """

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """As `score`, with the entropy of each token's distribution and the token's rank in it.

        Raises:
            InputError: as in `generate`; or the engine does not see whole distributions.
        """

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Take over new weights, known as `version` from now on."""

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
