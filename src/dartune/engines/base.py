"""The interface of an inference engine: token ids in, samples and log-probabilities out."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dartune.errors import InputError

TokenIds = Sequence[int]


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """Sampling parameters.

    Args:
        n: samples per prompt.
        max_new_tokens: the longest completion in tokens, including its stop token.
        temperature: 0 is greedy decoding; otherwise the untruncated distribution at this temperature. There is no
            top-p and no top-k, because truncation would bias an importance ratio.
        stop_ids: a completion ends at the first of these tokens.
        seed: the same seed, weights and prompts give the same samples. A tuple has a seed for each prompt: the samples
            of a prompt are those of a call with its seed.
    """

    n: int
    max_new_tokens: int
    temperature: float
    stop_ids: tuple[int, ...]
    seed: int | tuple[int, ...]

    def __post_init__(self) -> None:
        rules = [
            ("n must be at least 1", self.n >= 1),
            ("max_new_tokens must be at least 1", self.max_new_tokens >= 1),
            ("temperature must not be negative", self.temperature >= 0),
        ]
        if problems := [rule for rule, satisfied in rules if not satisfied]:
            raise InputError(f"cannot sample with {self}", problems)


COUNTERS = ("generated_tokens", "scored_tokens", "flops")
"""Counters that every engine has."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Args:
        ids: the tokens, including the stop token when `finish == "stop"`.
        logprobs: log-probability of each token in nats under the distribution it was sampled from (after temperature).
            For a greedy sample they are those at temperature 1, because under greedy decoding each would be 0.
        finish: "stop" (ended by a stop token) or "length" (cut at `max_new_tokens`).
        temperature: the temperature of the distribution that `logprobs` belong to.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenStats:
    """Statistics of each completion token.

    Args:
        logprobs: log-probability in nats.
        entropies: entropy in nats of the distribution that predicts the token.
        ranks: rank of the token in that distribution; 1 is the most likely token.
        content: whether the token belongs to the content of the text (`rewards/content_tokens.py`); empty: all do.
    """

    logprobs: tuple[float, ...]
    entropies: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    content: tuple[bool, ...] = ()


class Engine(Protocol):
    """A model that samples and scores token ids. Chat templates and decoding are the caller's."""

    @property
    def generated_tokens(self) -> int:
        """Completion tokens sampled so far."""
        ...

    @property
    def scored_tokens(self) -> int:
        """Completion tokens scored so far; exact duplicates within one call count once."""
        ...

    @property
    def flops(self) -> float:
        """FLOPs so far, as estimated by `models/flops.py`, including those of the prompts."""
        ...

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """Returns `spec.n` samples per prompt, in prompt order.

        Raises:
            InputError: prompts are empty, too long or outside the vocabulary; all are listed.
        """
        ...

    def prompts_at_once(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> int:
        """Returns how many of these prompts, the longest first, are sampled together.

        A call with as many prompts takes no longer per prompt than a larger one, and its result is available earlier.
        """
        ...

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """Returns log p(token | prompt, earlier tokens) in nats of each completion token, in the order of `pairs`.

        Args:
            pairs: (prompt, completion) token ids.
            temperature: temperature of the distribution, above 0.

        Raises:
            InputError: as in `generate`.
        """
        ...

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """Returns the statistics of each completion: log-probabilities, entropies and ranks.

        Raises:
            InputError: as in `generate`, or the engine does not provide full distributions.
        """
        ...

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Loads new weights and sets the engine's version."""

    def close(self) -> None:
        """Frees the engine's resources; the engine cannot be used afterwards."""


def prompt_seeds(prompts: Sequence[TokenIds], seed: int | Sequence[int]) -> list[int]:
    """Returns a 64-bit seed for each prompt, from its seed, its tokens and how often both occurred before.

    A position in the batch would be a simpler source, but then a sample would depend on the other prompts. Repeated
    prompts get different seeds, so their samples are independent.
    """
    occurrences: Counter[tuple[int, bytes]] = Counter()
    seeds = []
    for prompt, call in zip(prompts, [seed] * len(prompts) if isinstance(seed, int) else seed, strict=True):
        content = array("q", prompt).tobytes()
        key = f"{call}/{occurrences[call, content]}".encode()
        seeds.append(int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "big"))
        occurrences[call, content] += 1
    return seeds
