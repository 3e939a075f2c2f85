"""A stub server with the part of vLLM's HTTP API that dartune uses, on the in-process engine.

Its answers, errors and silently shortened samples are those of a vLLM 0.32.0 server (docs/engines.md).
"""

import json
import threading
import warnings
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from dartune.engines.base import SampleSpec
from dartune.engines.hf import HFEngine

BASE = "tiny"
UNTRUNCATED = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}


class Rejected(Exception):
    """Carries the status and the message of an error."""


class Stub:
    """The models of the server, and the requests it received.

    Args:
        model: a Hugging Face model.
        processed: whether log-probabilities are those after temperature.
        longest: tokens after which the server ends every sample; None for no limit but the context length.

    `faults` holds statuses that the next requests are answered with, one per request.
    """

    def __init__(self, model, *, processed=True, longest=None):
        self.engine, self.processed, self.longest = HFEngine(model), processed, longest
        self.names, self.faults, self.requests, self.lock = {BASE: self.engine}, [], [], threading.Lock()

    def answer(self, path, body):
        """Returns the status and the JSON of an answer; None instead of JSON for plain text."""
        self.requests.append((path, body))
        routes = {
            "/v1/models": lambda body: {"object": "list", "data": [self.card(name) for name in self.names]},
            "/v1/load_lora_adapter": self.load,
            "/v1/unload_lora_adapter": self.unload,
            "/v1/completions": self.complete,
        }
        try:
            return 200, routes[path](body)
        except Rejected as rejected:
            status, message = rejected.args
            return status, {"error": {"message": message, "type": "Error", "param": None, "code": status}}

    def card(self, name):
        is_base = name == BASE
        length = self.engine.context if is_base else None
        return {"id": name, "object": "model", "parent": None if is_base else BASE, "max_model_len": length}

    def load(self, body):
        from peft import PeftModel

        folder, name = Path(body["lora_path"]), body["lora_name"]
        if name in self.names:
            raise Rejected(400, f"The lora adapter '{name}' has already been loaded.")
        if not (folder / "adapter_config.json").exists():
            raise Rejected(404, f"Loading lora {name} failed: No adapter found for {folder}")
        if "lora_" not in (folder / "adapter_config.json").read_text():
            raise Rejected(500, "Call to add_lora method failed: Worker failed")
        base = type(self.engine.model)(self.engine.model.config)
        base.load_state_dict(self.engine.model.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecations between the libraries
            self.names[name] = HFEngine(PeftModel.from_pretrained(base, folder).eval())

    def unload(self, body):
        if body["lora_name"] not in self.names:
            raise Rejected(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        del self.names[body["lora_name"]]

    def complete(self, body):
        engine = self.engine_for(body)
        assert body.items() >= UNTRUNCATED.items()  # otherwise the model's generation config applies
        assert body["max_tokens"] == 1 or body["ignore_eos"]
        limit = self.engine.context - len(body["prompt"])
        longest = min(value for value in (body["max_tokens"], self.longest, limit) if value is not None)
        stops = tuple(body.get("stop_token_ids", ()))
        spec = SampleSpec(body.get("n", 1), longest, body["temperature"], stops, body.get("seed", 0))
        (group,) = engine.generate([body["prompt"]], spec)
        choices = [self.choice(engine, body, index, sample) for index, sample in enumerate(group)]
        return {"object": "text_completion", "choices": choices[::-1]}  # the server does not guarantee an order

    def engine_for(self, body):
        """Returns the engine of the requested model; raises where vLLM rejects the request."""
        if body["model"] not in self.names:
            raise Rejected(404, f"The model `{body['model']}` does not exist. Valid aliases: {BASE}.")
        engine, prompt = self.names[body["model"]], body["prompt"]
        if not prompt:
            raise Rejected(400, "You must pass at least one prompt")
        if max(prompt) >= engine.vocabulary:
            raise Rejected(400, f"Token id {max(prompt)} is out of vocabulary")
        if len(prompt) >= self.engine.context:
            raise Rejected(400, "max_tokens must be at least 1, got 0.")
        if not 0 <= body["temperature"] <= 2:
            raise Rejected(400, f"temperature must be in [0, 2], got {body['temperature']}.")
        if body["temperature"] == 0 and body.get("n", 1) > 1:
            raise Rejected(400, f"n must be 1 when using greedy sampling, got {body['n']}.")
        if not -(2**63) <= body.get("seed", 0) < 2**63:
            raise Rejected(400, "body.seed: Input should be less than or equal to 9223372036854775807")
        return engine

    def choice(self, engine, body, index, sample):
        prompt, top = body["prompt"], body.get("logprobs")
        temperature = body["temperature"] if self.processed and body["temperature"] else 1
        with torch.no_grad():
            logits = engine.model(torch.tensor([[*prompt, *sample.ids]])).logits[0]
        plain = logits[: len(prompt) - 1].log_softmax(dim=-1)
        rows = (logits[len(prompt) - 1 : -1] / temperature).log_softmax(dim=-1)
        chosen = rows.gather(1, torch.tensor(sample.ids)[:, None])[:, 0].tolist()
        likeliest = [
            {f"token_id:{token}": value} | {f"token_id:{other}": row[other].item() for other in row.topk(top).indices}
            for token, value, row in zip(sample.ids, chosen, rows, strict=True)
            if top is not None
        ]
        before = [{str(t): {"logprob": row[t].item(), "rank": 1}} for t, row in zip(prompt[1:], plain, strict=True)]
        return {
            "index": index,
            "text": "-",
            "finish_reason": sample.finish,
            "token_ids": list(sample.ids) if body.get("return_token_ids") else None,
            "logprobs": None if top is None else {"token_logprobs": chosen, "top_logprobs": likeliest},
            "prompt_logprobs": [None, *before] if "prompt_logprobs" in body else None,
        }


@contextmanager
def serving(stub):
    """Serves the stub on a real socket; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            with stub.lock:
                status, answer = (stub.faults.pop(0), {}) if stub.faults else stub.answer(self.path, body)
            text = b"Success" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            if answer is not None:
                self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
