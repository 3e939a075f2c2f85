"""Engine on a vLLM server, over its HTTP API: token ids in, token ids and log-probabilities out.

vLLM runs in a separate environment and is never imported, because its releases pin other versions of torch and
transformers. docs/engines.md has the command that starts the server, the versions that were tested, and the differences
from the in-process engine.

Every request asks for the untruncated distribution and so overrides the model's generation config. Answers that are not
valid samples (cut short by a limit of the server, log-probabilities of another distribution) raise an InputError.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dartune.engines.base import Sample, SampleSpec, TokenIds, TokenStats, prompt_seeds
from dartune.errors import InputError, MachineError
from dartune.run.progress import call

# Overrides what the model's generation config would set.
UNTRUNCATED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
MAX_ATTEMPTS = 5
FIRST_RETRY_DELAY = 1.0  # seconds before the second attempt; doubled for each further attempt
TIMEOUT = 600.0  # seconds
MAX_CONCURRENT_REQUESTS = 64  # the server batches them
RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})  # overload and faults of the server
TOP_TOKENS = 5  # tokens whose log-probabilities are compared at two temperatures


class VLLMEngine:
    """Samples from and scores with the model of a vLLM server (see `Engine` for the contract).

    The same seed gives the same samples if the server's batching is reproducible.

    Args:
        url: address of the server, without `/v1`.
        model: the served name; None uses the first model that the server lists.
        api_key: sent as a bearer token.
        flops_per_token: FLOPs of a forward per token, for the cost report; 0 if unknown.
        transport: transport of the HTTP client, for tests.

    Raises:
        MachineError: the server does not answer.
        InputError: the server does not serve the model.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        flops_per_token: float = 0.0,
        transport: Any = None,
    ) -> None:
        import httpx2

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url.rstrip("/")
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, transport=transport)
        self._transport_errors = (httpx2.TransportError,)
        self._pool = ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS)
        served = {card["id"]: card for card in self._call("GET", "/v1/models")["data"]}
        if model is not None and model not in served:
            raise InputError(f"{self.url} does not serve {model!r}: it serves {', '.join(served) or 'nothing'}")
        self.model = model or next(iter(served))
        # The card of an adapter has no limits: those of its base model apply.
        base = served.get(served[self.model].get("parent"), served[self.model])
        self.context: int | None = base.get("max_model_len")
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.flops = 0.0
        self._flops_per_token = flops_per_token
        self._adapter: str | None = None
        self._reports_after_temperature: bool | None = None  # None until the first check
        self.version = 0

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; repeated prompts are sampled independently.

        Raises:
            InputError: as in `Engine.generate`; or the server ended a sample by one of its own limits; or the
                temperature is neither 0 nor 1 and the server reports log-probabilities before temperature.
        """
        self._check([(prompt, ()) for prompt in prompts], spec.max_new_tokens)
        if prompts and spec.temperature not in (0.0, 1.0):
            self._check_temperature(prompts[0], spec.temperature)
        # vLLM rejects requests for more than one greedy sample, so the one sample is repeated.
        samples_per_request = spec.n if spec.temperature else 1
        parameters = {
            "n": samples_per_request,
            "max_tokens": spec.max_new_tokens,
            "temperature": spec.temperature,
            "stop_token_ids": list(spec.stop_ids),
            "ignore_eos": True,  # only `spec.stop_ids` end a completion
            "logprobs": 0,  # of the sampled token only
            "return_token_ids": True,
        }
        # `>> 2` leaves room below the signed 64-bit limit: the server adds the index of the sample.
        seeds = [seed >> 2 for seed in prompt_seeds(prompts, spec.seed)]
        requests = [
            parameters | {"prompt": list(prompt), "seed": seed} for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        groups: list[list[Sample]] = []
        with call("sampling", len(prompts) * spec.n) as running:
            for answer in self._pool.map(self._complete, requests):
                groups.append(_parse_samples(answer, spec, samples_per_request) * (spec.n // samples_per_request))
                running.add(spec.n, sum(len(sample.ids) for sample in groups[-1]))
        generated = sum(len(sample.ids) for group in groups for sample in group)
        self.generated_tokens += generated
        self.flops += self._flops_per_token * (generated + sum(map(len, prompts)))
        return groups

    def prompts_at_once(self, prompts: Sequence[TokenIds], max_new_tokens: int) -> int:
        """See `Engine.prompts_at_once`: enough for the server to be busy most of the time."""
        return 8 * MAX_CONCURRENT_REQUESTS

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`; equal pairs are scored once.

        Raises:
            InputError: as in `Engine.score`; or `temperature` is not 1, the only temperature at which a server
                reports the log-probabilities of a prompt.
        """
        if temperature != 1.0:
            raise InputError(f"{self.url} scores at temperature 1 only, not at {temperature:g}")
        self._check(pairs, new_tokens=1)  # the server always samples a token
        unique = dict.fromkeys((tuple(prompt), tuple(completion)) for prompt, completion in pairs)
        parameters = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        scored_pairs = [pair for pair in unique if pair[1]]  # an empty completion has no scores
        requests = [parameters | {"prompt": [*prompt, *completion]} for prompt, completion in scored_pairs]
        scores: dict[tuple[tuple[int, ...], tuple[int, ...]], list[float]] = {}
        with call("scoring", len(scored_pairs)) as running:
            for pair, answer in zip(scored_pairs, self._pool.map(self._complete, requests), strict=True):
                scores[pair] = _parse_scores(answer, *pair)
                running.add(1, len(pair[1]))
        self.scored_tokens += sum(len(completion) for _, completion in scored_pairs)
        self.flops += self._flops_per_token * sum(len(prompt) + len(completion) for prompt, completion in scored_pairs)
        return [scores.get((tuple(prompt), tuple(completion)), []) for prompt, completion in pairs]

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """Not supported: a server reports the most likely tokens, not full distributions."""
        raise InputError(f"{self.url} does not report the entropy of its distributions; score in this process")

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Not supported: the weights of a server cannot be replaced; see `load_adapter`."""
        raise InputError(
            f"the weights of {self.url} cannot be replaced; train an adapter (mapper.lora_rank: 16) and serve with "
            "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )

    def load_adapter(self, folder: str | os.PathLike[str], version: int) -> None:
        """Loads a LoRA adapter for sampling and scoring, and unloads the previous one.

        Args:
            folder: the adapter as PEFT saves it; the server must see the folder under the same path.
            version: becomes a part of the served name.

        Raises:
            InputError: the server rejects the adapter; the reason is listed.
        """
        # A new name each time, also across runs: the server caches adapters by name.
        previous, name = self._adapter, f"dartune-{version}-{secrets.token_hex(4)}"
        path = os.path.abspath(folder)  # the server would resolve a relative path itself, or take it for a Hub id
        try:
            # vLLM reports an unusable adapter as a server error (500), so a retry would not help.
            body = {"lora_name": name, "lora_path": path}
            self._call("POST", "/v1/load_lora_adapter", body, RETRYABLE_STATUSES - {500})
        except InputError as error:
            raise InputError(
                f"{self.url} does not load the adapter in {path}; start the server with --enable-lora, a "
                "--max-lora-rank of at least the adapter's rank, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                [error.message],
            ) from error
        self.model, self.version, self._adapter = name, version, name
        if previous:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": previous})

    def close(self) -> None:
        """Unloads the adapter, if there is one, and closes the connection."""
        if self._adapter:
            with suppress(InputError, MachineError):
                self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _check_temperature(self, prompt: TokenIds, temperature: float) -> None:
        """Raises an InputError if the server reports log-probabilities before temperature.

        Importance ratios computed from them would be wrong without any sign of it. The check compares the differences
        between the top log-probabilities at temperature 0 (reported as at 1) and at 0.1: after temperature, they are
        ten times as large at 0.1.
        """
        if self._reports_after_temperature is None:
            body = {"prompt": list(prompt), "max_tokens": 1, "logprobs": TOP_TOKENS, "return_tokens_as_token_ids": True}
            plain, cold = (_logprob_range(self._complete(body | {"temperature": t, "seed": 0})) for t in (0.0, 0.1))
            self._reports_after_temperature = cold > 3 * plain
        if not self._reports_after_temperature:
            raise InputError(
                f"{self.url} reports log-probabilities before temperature: to sample at temperature "
                f"{temperature:g}, start it with --logprobs-mode processed_logprobs, or sample at 1"
            )

    def _check(self, pairs: Sequence[tuple[TokenIds, TokenIds]], new_tokens: int) -> None:
        """Raises an InputError if pairs, followed by `new_tokens` tokens each, are not valid inputs of the model."""
        problems = []
        for i, (prompt, completion) in enumerate(pairs):
            length = len(prompt) + len(completion) + new_tokens
            if len(prompt) == 0:
                problems.append(f"prompt {i} is empty: start it with a BOS token or an instruction")
            if min((*prompt, *completion), default=0) < 0:
                problems.append(f"row {i} has a negative token id")
            if self.context and length > self.context:
                problems.append(f"row {i} takes {length} tokens, and the server's max_model_len is {self.context}")
        if problems:
            raise InputError("the model cannot read these prompts; shorten or drop them", problems)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "/v1/completions", UNTRUNCATED | body | {"model": self.model})

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        retryable: frozenset[int] = RETRYABLE_STATUSES,
    ) -> dict[str, Any]:
        """Sends a request and returns the answer; retries without a connection and on a retryable status.

        Raises:
            InputError: the server rejects the request; its message is included.
            MachineError: there was no answer in `MAX_ATTEMPTS` attempts.
        """
        reason = ""
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                time.sleep(FIRST_RETRY_DELAY * 2 ** (attempt - 1))
            try:
                answer = self._client.request(method, path, json=body)
            except self._transport_errors as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code < 400:
                # Loading an adapter is answered with plain text.
                return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
            reason = f"HTTP {answer.status_code}: {answer.text[:300]}"
            if answer.status_code not in retryable:
                raise InputError(f"{self.url}{path} rejects the request: {reason}")
        raise MachineError(
            f"{self.url}{path} does not answer ({reason}, {MAX_ATTEMPTS} tries); start it again and repeat the command"
        )


def _parse_samples(answer: Mapping[str, Any], spec: SampleSpec, count: int) -> list[Sample]:
    """Returns the `count` samples of a completions answer, in the order of their index.

    Raises:
        InputError: token ids or log-probabilities are missing, or a sample ended before its limit without a stop token.
    """
    samples = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or logprobs is None or len(ids) != len(logprobs) or None in logprobs:
            raise InputError("the server does not return token ids with log-probabilities: use vLLM 0.10.2 or later")
        # From the token, not from `finish_reason`: older servers report "length" for a stop token in the last place.
        stopped = bool(ids) and ids[-1] in spec.stop_ids
        if not stopped and len(ids) < spec.max_new_tokens:
            raise InputError(
                f"the server ended a sample by itself ({choice.get('finish_reason')}, {len(ids)} tokens of "
                f"{spec.max_new_tokens}): start it with --generation-config vllm and no limit below max_new_tokens"
            )
        samples.append(Sample(tuple(ids), tuple(logprobs), "stop" if stopped else "length", spec.temperature or 1.0))
    if len(samples) != count:
        raise InputError(f"the server returned {len(samples)} samples; {count} were requested")
    return samples


def _logprob_range(answer: Mapping[str, Any]) -> float:
    """Returns the difference in nats between the largest and smallest of the top log-probabilities of the first token.

    The answer may hold one more value than requested, that of the sampled token.
    """
    (choice,) = answer["choices"]
    values = sorted(choice["logprobs"]["top_logprobs"][0].values())[-TOP_TOKENS:]
    return values[-1] - values[0]


def _parse_scores(answer: Mapping[str, Any], prompt: TokenIds, completion: TokenIds) -> list[float]:
    """Returns the log-probabilities of the completion's tokens from the answer to prompt + completion."""
    (choice,) = answer["choices"]
    rows = choice.get("prompt_logprobs")
    if rows is None or len(rows) != len(prompt) + len(completion):
        raise InputError("the server does not return prompt_logprobs: it is not a vLLM server, or they are disabled")
    return [rows[len(prompt) + i][str(token)]["logprob"] for i, token in enumerate(completion)]
