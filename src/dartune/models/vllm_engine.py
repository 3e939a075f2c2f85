"""Engine on a vLLM server, over its HTTP API: token ids in, token ids and log-probabilities out.

vLLM runs in an environment of its own and is never imported (its releases ask for other versions of transformers):

    vllm serve path/to/model --port 8000        # 0.10.2 or later, for `return_token_ids`

The untruncated distribution is asked for whatever the model's own generation config says. A server's
log-probabilities differ from those of the training forward by its kernels' rounding.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dartune.errors import InputError, MachineError
from dartune.models.engine import Sample, SampleSpec, TokenIds

UNTRUNCATED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
TRIES = 5
FIRST_WAIT = 1.0  # seconds before the second try; doubled each time
TIMEOUT = 600.0  # seconds
AT_ONCE = 64  # requests under way; the server batches them
SAME = 1e-3  # nats; log-probabilities closer than this are taken to be of one distribution


class VLLMEngine:
    """Samples from and scores with the model of a vLLM server (see `Engine` for the contract).

    The same seed gives the same samples as far as the server's batching is reproducible.

    Args:
        url: of the server, without `/v1`.
        model: the served name; None for the first that the server lists.
        api_key: sent as a bearer token.
        flops_per_token: of one forward, for the cost ledger; 0 where unknown.
        transport: of the HTTP client, for tests.

    Raises:
        MachineError: the server does not answer.
        InputError: it answers, but has no such model.
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
        self._failures = (httpx2.TransportError,)
        self._pool = ThreadPoolExecutor(AT_ONCE)
        served = {one["id"]: one for one in self._call("GET", "/v1/models")["data"]}
        if model is not None and model not in served:
            raise InputError(f"{self.url} does not serve {model!r}: it serves {', '.join(served) or 'nothing'}")
        self.model = model or next(iter(served))
        self.context: int | None = served[self.model].get("max_model_len")
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.flops = 0.0
        self._flops_per_token = flops_per_token
        self.version = 0

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; a prompt given twice is sampled twice, with different random numbers.

        Raises:
            InputError: also where the temperature is neither 0 nor 1 and the server reports log-probabilities as
                they are before temperature.
        """
        self._check([(prompt, ()) for prompt in prompts], spec.max_new_tokens)
        asked = {
            "n": spec.n,
            "max_tokens": spec.max_new_tokens,
            "temperature": spec.temperature,
            "stop_token_ids": list(spec.stop_ids),
            "ignore_eos": True,  # what ends a completion is the caller's to say
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        seeded = zip(prompts, seeds(prompts, spec.seed), strict=True)
        requests = [asked | {"prompt": list(p), "seed": seed} for p, seed in seeded]
        groups = [_samples(answer, spec) for answer in self._pool.map(self._complete, requests)]
        generated = sum(len(sample.ids) for group in groups for sample in group)
        self.generated_tokens += generated
        self.flops += self._flops_per_token * (generated + sum(map(len, prompts)))
        if spec.temperature not in (0.0, 1.0):
            self._check_temperature(prompts, groups, spec)
        return groups

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[list[float]]:
        """See `Engine.score`; equal pairs are scored once."""
        self._check(pairs, room=1)  # the server always samples a token
        scores = self._score(pairs)
        scored = sum(len(completion) for _, completion in scores)
        self.scored_tokens += scored
        self.flops += self._flops_per_token * sum(len(prompt) + len(completion) for prompt, completion in scores)
        return [scores[tuple(prompt), tuple(completion)] for prompt, completion in pairs]

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """A server's own weights stay what they are: see `load_adapter`."""
        raise InputError(
            f"the weights of {self.url} cannot be exchanged over HTTP; train an adapter (adapter: lora) and serve with "
            "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )

    def load_adapter(self, folder: str, version: int) -> None:
        """Sample from and score with a LoRA adapter from now on, in place of the one loaded before.

        Args:
            folder: of the adapter as PEFT saves it, on a disk that the server reads as well.
            version: becomes a part of its served name.

        Raises:
            InputError: the server refuses, and why.
        """
        before, name = self.model, f"dartune-{version}"
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        self.model, self.version = name, version
        if before.startswith("dartune-"):
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": before})

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _score(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> dict[tuple[TokenIds, TokenIds], list[float]]:
        unique = dict.fromkeys((tuple(prompt), tuple(completion)) for prompt, completion in pairs)
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        wanted = [pair for pair in unique if pair[1]]
        requests = [asked | {"prompt": [*prompt, *completion]} for prompt, completion in wanted]
        answers = self._pool.map(self._complete, requests)
        found = {pair: _prompt_scores(answer, *pair) for pair, answer in zip(wanted, answers, strict=True)}
        return {pair: found.get(pair, []) for pair in unique}

    def _check_temperature(self, prompts: Sequence[TokenIds], groups: list[list[Sample]], spec: SampleSpec) -> None:
        """Refuse log-probabilities from before temperature: as importance ratios they would be wrong, silently."""
        rows = [(prompt, sample) for prompt, group in zip(prompts, groups, strict=True) for sample in group]
        prompt, sample = min(rows, key=lambda row: min(row[1].logprobs))
        plain = self._score([(prompt, sample.ids)])[tuple(prompt), sample.ids]
        if min(plain) < -SAME and all(abs(a - b) < SAME for a, b in zip(plain, sample.logprobs, strict=True)):
            raise InputError(
                f"{self.url} reports log-probabilities before temperature: to sample at temperature "
                f"{spec.temperature:g}, start it with --logprobs-mode processed_logprobs, or sample at 1"
            )

    def _check(self, pairs: Sequence[tuple[TokenIds, TokenIds]], room: int) -> None:
        problems = []
        for i, (prompt, completion) in enumerate(pairs):
            length = len(prompt) + len(completion) + room
            if len(prompt) == 0:
                problems.append(f"prompt {i} is empty: start it with a BOS token or an instruction")
            if min((*prompt, *completion), default=0) < 0:
                problems.append(f"row {i} has a negative token id")
            if self.context and length > self.context:
                problems.append(f"row {i} takes {length} tokens, and the server's max_model_len is {self.context}")
        if problems:
            raise InputError("the model cannot read these prompts; shorten or drop them", problems)

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "/v1/completions", UNTRUNCATED | asked | {"model": self.model})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer. What may pass (no connection, overload, a fault of the server) is tried again.

        Raises:
            InputError: it refuses the request; its own words are told.
            MachineError: it did not answer after `TRIES` tries.
        """
        why = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                answer = self._client.request(method, path, json=body)
            except self._failures as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code < 400:
                return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
            why = f"HTTP {answer.status_code}: {answer.text[:300]}"
            if answer.status_code < 500 and answer.status_code != 429:
                raise InputError(f"{self.url}{path} refuses: {why}")
        raise MachineError(
            f"{self.url}{path} does not answer ({why}, {TRIES} tries); start it again and repeat the command"
        )


def seeds(prompts: Sequence[TokenIds], seed: int) -> list[int]:
    """A seed for each prompt, from its tokens and how often it came before: no two prompts share random numbers."""
    seen: Counter[bytes] = Counter()
    found = []
    for prompt in prompts:
        content = array("q", prompt).tobytes()
        digest = hashlib.blake2b(content, digest_size=8, key=f"{seed}/{seen[content]}".encode()).digest()
        seen[content] += 1
        found.append(int.from_bytes(digest, "big") >> 2)  # some room: a server adds the sample's index
    return found


def _samples(answer: Mapping[str, Any], spec: SampleSpec) -> list[Sample]:
    found = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or logprobs is None or len(ids) != len(logprobs):
            raise InputError("the server does not return token ids with log-probabilities: use vLLM 0.10.2 or later")
        ended = bool(ids) and ids[-1] in spec.stop_ids
        found.append(Sample(tuple(ids), tuple(logprobs), "stop" if ended else "length"))
    if len(found) != spec.n:
        raise InputError(f"the server returned {len(found)} samples where {spec.n} were asked for")
    return found


def _prompt_scores(answer: Mapping[str, Any], prompt: TokenIds, completion: TokenIds) -> list[float]:
    (choice,) = answer["choices"]
    rows = choice.get("prompt_logprobs")
    if rows is None or len(rows) != len(prompt) + len(completion):
        raise InputError("the server does not return prompt_logprobs: it is no vLLM server, or forbids them")
    return [rows[len(prompt) + i][str(token)]["logprob"] for i, token in enumerate(completion)]
