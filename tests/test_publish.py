"""What goes to the Hub: the right files and a card, no path of this machine and no secret, and only when asked."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dartune.cli import main
from dartune.errors import InputError, MachineError
from dartune.publish import packed, push
from fixtures_models import save_tiny
from test_pipeline import arguments, word_problems

TOKEN = "hf_secretsecretsecret"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    parts = word_problems(folder / "problems.jsonl", 30), save_tiny(folder / "target", "llama", context=2048)
    lora = ["--mapper.adapter=lora", "--mapper.lora_rank=2"]
    assert main(arguments(*parts, folder / "run", "--arms=[base, sft, dart]", *lora)) == 0
    return folder / "run"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files needs; keeps what it is given."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if "/api/repos/create" in self.path:
            name = json.loads(sent)["name"]
            self._say({"url": f"{self.server.address}/owner/{name}", "id": f"owner/{name}", "name": f"owner/{name}"})
        elif "/validate-yaml" in self.path:
            self._say({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(sent)["files"]]
            kinds = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._say({"files": kinds})
        elif "/commit/" in self.path:
            for line in map(json.loads, sent.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self._say(
                {
                    "commitUrl": f"{self.server.address}/owner/adapted/commit/{1:040}",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        else:
            self.send_error(404)

    def do_GET(self):
        self._say({"id": "owner/adapted", "sha": "1" * 40})

    def _say(self, answer):
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for module in ("constants", "hf_api", "_commit_api", "lfs"):
        monkeypatch.setattr(f"huggingface_hub.{module}.ENDPOINT", server.address, raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.__init__.__defaults__", (server.address, None, None, None, None, None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("data", {"data.jsonl", "README.md"}),
        ("model", {"model.safetensors", "config.json", "tokenizer.json", "README.md"}),
        ("mapper", {"adapter_model.safetensors", "adapter_config.json", "README.md"}),
    ],
)
def test_files_and_card_go_up_without_a_path_or_a_secret(what, expected, run, hub, capsys):
    (run / "stages" / "mapper-s0" / "model" / "optimizer.pt").write_bytes(b"a pickle")
    assert main(["push", str(run), "--to", "owner/adapted", "--what", what]) == 0
    assert expected <= set(hub.files)
    assert not [name for name in hub.files if name.endswith((".pt", ".bin", ".pkl"))]
    home = str(run.parent)
    assert all(home.encode() not in content and TOKEN.encode() not in content for content in hub.files.values())
    assert TOKEN not in "".join(capsys.readouterr())
    card = hub.files["README.md"].decode()
    assert card.startswith("---\n") and "problems.jsonl" in card and "target" in card
    if what == "model":
        assert "| in distribution |" in card and "learning rate" in card and "`base`" in card
    if what == "mapper":
        assert "{question}" in card
    assert all(authorization == f"Bearer {TOKEN}" for _, authorization in hub.asked)


def test_a_dry_run_sends_nothing_and_shows_all(run, hub, capsys):
    assert main(["push", str(run), "--to", "owner/adapted", "--what", "model", "--arm", "sft", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "# own-data, sft" in said and not hub.asked and not hub.files


def test_everything_that_is_wrong_is_told_at_once(run, tmp_path):
    with pytest.raises(InputError) as caught:
        packed(run, "model", "grpo_tokens", seed=7)
    assert len(caught.value.problems) == 2
    for what, arm, words in (
        ("model", "base", "no model of its own"),
        ("data", "sft", "no adapted data"),
        ("mapper", "base", "no adapted data"),
    ):
        with pytest.raises(InputError, match=words):
            packed(run, what, arm)
    with pytest.raises(InputError):
        packed(tmp_path, "data")


def test_names_and_logins_are_checked_before_anything_is_sent(run, hub, monkeypatch):
    package = packed(run, "data")
    with pytest.raises(InputError, match="owner/name"):
        push(package, "not a name!")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="hf auth login"):
        push(package, "owner/adapted")
    assert not hub.asked


def test_a_hub_that_is_not_there_is_a_machine_error(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.__init__.__defaults__", ("http://127.0.0.1:9", *[None] * 5))
    with pytest.raises(MachineError, match="cannot be reached"):
        push(packed(run, "data"), "owner/adapted")


def test_a_pushed_folder_can_be_loaded(run, hub, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    push(packed(run, "model", "sft"), "owner/adapted")
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size >= len(tokenizer)
    assert Path(tmp_path / "README.md").read_text().count("## ") == 3
