"""Engine on a vLLM server, over its HTTP API: token ids in, token ids and log-probabilities out.

vLLM runs in an environment of its own and is never imported: its releases ask for other versions of torch and
transformers. docs/engines.md has the command that starts it, what was run against it, and where it differs.

The untruncated distribution is asked for whatever the model's own generation config says. What would pass for a
sample without being one (cut short by a limit of the server, log-probabilities of another distribution) is refused.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from dartune.errors import InputError, MachineError
from dartune.models.engine import Sample, SampleSpec, TokenIds, TokenStats

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
PASSING = frozenset({429, 500, 502, 503, 504})  # statuses that a later try may be spared
LIKELIEST = 5  # tokens whose log-probabilities tell the temperature they are of


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
        base = served.get(served[self.model].get("parent"), served[self.model])  # an adapter's limits are its base's
        self.context: int | None = base.get("max_model_len")
        self.generated_tokens = 0
        self.scored_tokens = 0
        self.flops = 0.0
        self._flops_per_token = flops_per_token
        self._adapter: str | None = None
        self._after_temperature: bool | None = None  # not known yet
        self.version = 0

    def generate(self, prompts: Sequence[TokenIds], spec: SampleSpec) -> list[list[Sample]]:
        """See `Engine.generate`; a prompt given twice is sampled twice, with different random numbers.

        Raises:
            InputError: also where the server ends samples by limits of its own, and where the temperature is
                neither 0 nor 1 and it reports log-probabilities as they are before temperature.
        """
        self._check([(prompt, ()) for prompt in prompts], spec.max_new_tokens)
        if prompts and spec.temperature not in (0.0, 1.0):
            self._check_temperature(prompts[0], spec.temperature)
        drawn = spec.n if spec.temperature else 1  # more than one greedy sample is refused: they are all the same
        asked = {
            "n": drawn,
            "max_tokens": spec.max_new_tokens,
            "temperature": spec.temperature,
            "stop_token_ids": list(spec.stop_ids),
            "ignore_eos": True,  # what ends a completion is the caller's to say
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        seeded = zip(prompts, seeds(prompts, spec.seed), strict=True)
        requests = [asked | {"prompt": list(p), "seed": seed} for p, seed in seeded]
        groups = [
            _samples(answer, spec, drawn) * (spec.n // drawn) for answer in self._pool.map(self._complete, requests)
        ]
        generated = sum(len(sample.ids) for group in groups for sample in group)
        self.generated_tokens += generated
        self.flops += self._flops_per_token * (generated + sum(map(len, prompts)))
        return groups

    def score(self, pairs: Sequence[tuple[TokenIds, TokenIds]], temperature: float = 1.0) -> list[list[float]]:
        """See `Engine.score`; equal pairs are scored once.

        Raises:
            InputError: also for a temperature other than 1: a server reports a prompt's log-probabilities at 1 only.
        """
        if temperature != 1.0:
            raise InputError(f"{self.url} scores at temperature 1 only, not at {temperature:g}")
        self._check(pairs, room=1)  # the server always samples a token
        unique = dict.fromkeys((tuple(prompt), tuple(completion)) for prompt, completion in pairs)
        asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        wanted = [pair for pair in unique if pair[1]]
        requests = [asked | {"prompt": [*prompt, *completion]} for prompt, completion in wanted]
        answers = self._pool.map(self._complete, requests)
        found = {pair: _prompt_scores(answer, *pair) for pair, answer in zip(wanted, answers, strict=True)}
        self.scored_tokens += sum(len(completion) for _, completion in wanted)
        self.flops += self._flops_per_token * sum(len(prompt) + len(completion) for prompt, completion in wanted)
        return [found.get((tuple(prompt), tuple(completion)), []) for prompt, completion in pairs]

    def token_stats(self, pairs: Sequence[tuple[TokenIds, TokenIds]]) -> list[TokenStats]:
        """A server tells the likeliest tokens, not whole distributions."""
        raise InputError(f"{self.url} does not tell the entropy of its distributions; score in this process")

    def sync(self, state_dict: Mapping[str, Any], version: int) -> None:
        """A server's own weights stay what they are: see `load_adapter`."""
        raise InputError(
            f"the weights of {self.url} are not exchanged; train an adapter (adapter: lora) and serve with "
            "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
        )

    def load_adapter(self, folder: str | os.PathLike[str], version: int) -> None:
        """Sample from and score with a LoRA adapter from now on, in place of the one loaded before.

        Args:
            folder: of the adapter as PEFT saves it, on a disk that the server reads under the same path.
            version: becomes a part of its served name.

        Raises:
            InputError: the server refuses, and why.
        """
        # Never a name used before: the server keeps what it has read by name.
        before, name = self._adapter, f"dartune-{version}-{secrets.token_hex(4)}"
        path = os.path.abspath(folder)  # a relative one would be the server's, or a name on the hub
        try:
            # An adapter that it cannot use is a fault of the server (500) in its own eyes.
            self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, PASSING - {500})
        except InputError as error:
            raise InputError(
                f"{self.url} does not load the adapter in {path}; it has to be started with --enable-lora, a "
                "--max-lora-rank of at least the adapter's, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                [error.message],
            ) from error
        self.model, self.version, self._adapter = name, version, name
        if before:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": before})

    def close(self) -> None:
        """Take the adapter, if any, off the server again, and end the connection."""
        if self._adapter:
            with suppress(InputError, MachineError):
                self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self._pool.shutdown(cancel_futures=True)
        self._client.close()

    def _check_temperature(self, prompt: TokenIds, temperature: float) -> None:
        """Refuse log-probabilities from before temperature: as importance ratios they would be wrong, silently.

        At a tenth of the temperature, those from after it lie ten times as far apart.
        """
        if self._after_temperature is None:
            asked = {"prompt": list(prompt), "max_tokens": 1, "logprobs": LIKELIEST, "return_tokens_as_token_ids": True}
            plain, cold = (_spread(self._complete(asked | {"temperature": t, "seed": 0})) for t in (0.0, 0.1))
            self._after_temperature = cold > 3 * plain
        if not self._after_temperature:
            raise InputError(
                f"{self.url} reports log-probabilities before temperature: to sample at temperature "
                f"{temperature:g}, start it with --logprobs-mode processed_logprobs, or sample at 1"
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

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, passing: frozenset[int] = PASSING
    ) -> dict[str, Any]:
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
            if answer.status_code not in passing:
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


def _samples(answer: Mapping[str, Any], spec: SampleSpec, drawn: int) -> list[Sample]:
    found = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or logprobs is None or len(ids) != len(logprobs) or None in logprobs:
            raise InputError("the server does not return token ids with log-probabilities: use vLLM 0.10.2 or later")
        # By the token, not by `finish_reason`: older servers call a stop token in the last place "length".
        ended = bool(ids) and ids[-1] in spec.stop_ids
        if not ended and len(ids) < spec.max_new_tokens:
            raise InputError(
                f"the server ended a sample by itself ({choice.get('finish_reason')}, {len(ids)} tokens of "
                f"{spec.max_new_tokens}): start it with --generation-config vllm and no limit below max_new_tokens"
            )
        found.append(Sample(tuple(ids), tuple(logprobs), "stop" if ended else "length", spec.temperature or 1.0))
    if len(found) != drawn:
        raise InputError(f"the server returned {len(found)} samples where {drawn} were asked for")
    return found


def _spread(answer: Mapping[str, Any]) -> float:
    """How far the likeliest tokens at the first place lie apart, nats; the token drawn there may be one more."""
    (choice,) = answer["choices"]
    values = sorted(choice["logprobs"]["top_logprobs"][0].values())[-LIKELIEST:]
    return values[-1] - values[0]


def _prompt_scores(answer: Mapping[str, Any], prompt: TokenIds, completion: TokenIds) -> list[float]:
    (choice,) = answer["choices"]
    rows = choice.get("prompt_logprobs")
    if rows is None or len(rows) != len(prompt) + len(completion):
        raise InputError("the server does not return prompt_logprobs: it is no vLLM server, or forbids them")
    return [rows[len(prompt) + i][str(token)]["logprob"] for i, token in enumerate(completion)]
