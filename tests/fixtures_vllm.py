"""A server with the part of vLLM's HTTP API that dartune uses, on the Hugging Face engine."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dartune.models.engine import SampleSpec
from dartune.models.hf_engine import HFEngine


class Stub:
    """What the server has and what happened to it.

    `faults`: statuses to answer with before anything else, one per request. `processed`: whether log-probabilities
    are those after temperature.
    """

    def __init__(self, model, *, context=None, processed=True, adapters=None):
        self.engine, self.processed, self.adapters = HFEngine(model), processed, adapters or {}
        self.context = context or self.engine.context
        self.names, self.faults, self.requests, self.lock = {"tiny": self.engine}, [], [], threading.Lock()

    def answer(self, path, body):
        self.requests.append((path, body))
        if path == "/v1/models":
            return 200, {"data": [{"id": name, "max_model_len": self.context} for name in self.names]}
        if path == "/v1/load_lora_adapter":
            if body["lora_path"] not in self.adapters:
                return 404, {"error": {"message": f"no adapter in {body['lora_path']}"}}
            self.names[body["lora_name"]] = HFEngine(self.adapters[body["lora_path"]])
            return 200, {}
        if path == "/v1/unload_lora_adapter":
            del self.names[body["lora_name"]]
            return 200, {}
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        engine = self.names[body["model"]]
        return 200, scored(engine, body) if "prompt_logprobs" in body else sampled(engine, body, self.processed)


def scored(engine, body):
    first, *rest = body["prompt"]
    (values,) = engine.score([([first], rest)])
    rows = [{str(token): {"logprob": value, "rank": 1}} for token, value in zip(rest, values, strict=True)]
    return {"choices": [{"index": 0, "prompt_logprobs": [None, *rows]}]}


def sampled(engine, body, processed):
    assert body["ignore_eos"] and (body["top_p"], body["top_k"], body["repetition_penalty"]) == (1, 0, 1)
    spec = SampleSpec(body["n"], body["max_tokens"], body["temperature"], tuple(body["stop_token_ids"]), body["seed"])
    (group,) = engine.generate([body["prompt"]], spec)
    values = [sample.logprobs for sample in group]
    if not processed:
        values = engine.score([(body["prompt"], sample.ids) for sample in group])
    choices = [
        {"index": index, "token_ids": list(sample.ids), "logprobs": {"token_logprobs": list(row)}, "text": "-"}
        for index, (sample, row) in enumerate(zip(group, values, strict=True))
    ]
    return {"choices": choices[::-1]}  # their order is the server's


@contextmanager
def serving(stub):
    """The stub behind a real socket; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            with stub.lock:
                status, found = (stub.faults.pop(0), {}) if stub.faults else stub.answer(self.path, body)
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words):
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
