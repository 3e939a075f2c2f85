"""Invalid answers of a vLLM server are rejected, and temporary faults are retried."""

import threading

import httpx2
import pytest

from dartune.engines import vllm
from dartune.engines.vllm import VLLMEngine
from dartune.errors import InputError, MachineError
from fixtures_vllm import Stub, serving
from test_engine_contract import PROMPTS, adapted, spec
from test_shared_prefix import make


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(vllm, "FIRST_RETRY_DELAY", 0.001)
    return Stub(make("llama"))


@pytest.fixture
def server(stub):
    with serving(stub) as url:
        engine = VLLMEngine(url)
        yield engine
        engine.close()


@pytest.mark.parametrize("faults", [[503], [500, 429, 502]])
def test_temporary_faults_of_the_server_are_retried(stub, server, faults):
    expected = server.score([([5], (6, 7))])
    stub.faults = faults
    assert server.score([([5], (6, 7))]) == expected


def test_a_stopped_server_is_reported(stub):
    with serving(stub) as url:
        engine = VLLMEngine(url)
    with pytest.raises(MachineError, match=r"does not answer \(ConnectError"):
        engine.score([([5], (6,))])
    with pytest.raises(MachineError, match="does not answer"):
        VLLMEngine(url)


def test_retries_end_where_the_server_always_fails(stub, server):
    requests = len(stub.requests)
    stub.faults = [503] * 50
    with pytest.raises(MachineError, match=rf"HTTP 503.*{vllm.MAX_ATTEMPTS} tries.*repeat the command"):
        server.score([([5], (6,))])
    assert len(stub.faults) == 50 - vllm.MAX_ATTEMPTS and len(stub.requests) == requests


@pytest.mark.slow
def test_concurrent_requests_are_limited_and_answered_in_order(stub, monkeypatch):
    monkeypatch.setattr(vllm, "MAX_CONCURRENT_REQUESTS", 3)
    transport = CountingTransport()
    with serving(stub) as url:
        engine = VLLMEngine(url, transport=transport)
        pairs = [([5 + i % 7], (6 + i, 7)) for i in range(20)]
        assert engine.score(pairs) == [engine.score([pair])[0] for pair in pairs]
        prompts = [[5 + i] for i in range(20)]
        samples = engine.generate(prompts, spec(temperature=0.0, n=1))
        assert samples == [engine.generate([prompt], spec(temperature=0.0, n=1))[0] for prompt in prompts]
        engine.close()
    assert transport.most == 3


class CountingTransport(httpx2.HTTPTransport):
    """Counts concurrent requests."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.lock = threading.Lock()

    def handle_request(self, request):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return super().handle_request(request)
        finally:
            with self.lock:
                self.now -= 1


def test_a_rejected_request_is_not_retried(stub, server):
    requests = len(stub.requests)
    server.model = "gone"
    with pytest.raises(InputError, match="The model `gone` does not exist"):
        server.score([([5], (6,))])
    assert len(stub.requests) == requests + 1
    with pytest.raises(InputError, match="does not serve 'other': it serves tiny"):
        VLLMEngine(server.url, model="other")


def test_logprobs_before_temperature_are_rejected(stub, server):
    stub.processed = False
    for _ in range(2):
        with pytest.raises(InputError, match="processed_logprobs"):
            server.generate(PROMPTS, spec(temperature=0.7))
    assert server.generate(PROMPTS, spec(temperature=1.0))
    assert server.generate(PROMPTS, spec(temperature=0.0))


def test_samples_that_the_server_cut_short_are_rejected(stub, server):
    stub.longest = 5
    assert server.generate([[5]], spec(max_new_tokens=5))
    with pytest.raises(InputError, match=r"ended a sample by itself \(length, 5 tokens of 12\)"):
        server.generate([[5]], spec(stop_ids=()))


def test_answers_without_token_ids_are_rejected(stub, server, monkeypatch):
    monkeypatch.setattr(stub, "answer", lambda path, body: (200, {"choices": [{"index": 0, "text": "hello"}]}))
    with pytest.raises(InputError, match="does not return token ids"):
        server.generate([[5]], spec(n=1))
    with pytest.raises(InputError, match="does not return prompt_logprobs"):
        server.score([([5], (6,))])


def test_adapters_that_do_not_load_are_rejected_at_once_and_change_nothing(stub, server, tmp_path):
    requests = len(stub.requests)
    with pytest.raises(InputError, match="--max-lora-rank") as error:
        server.load_adapter(tmp_path, 1)
    assert "No adapter found" in error.value.problems[0]
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="--enable-lora") as error:
        server.load_adapter(tmp_path, 1)
    assert "add_lora method failed" in error.value.problems[0]
    assert len(stub.requests) == requests + 2 and (server.model, server.version) == ("tiny", 0)
    with pytest.raises(InputError, match="lora_rank: 16"):
        server.sync({}, 4)


def test_a_second_run_loads_adapters_beside_those_of_the_first(stub, server, tmp_path, monkeypatch):
    adapted(stub.engine.model, tmp_path / "adapter", seed=1)
    monkeypatch.chdir(tmp_path)
    server.load_adapter("adapter", 1)  # relative to the client, not to the server
    assert stub.requests[-1][1]["lora_path"] == str(tmp_path / "adapter")
    second = VLLMEngine(server.url, model=server.model)
    assert second.context == server.context  # the card of an adapter has no context length
    second.load_adapter("adapter", 1)
    assert second.model != server.model and {second.model, server.model} < set(stub.names)
    second.close()
