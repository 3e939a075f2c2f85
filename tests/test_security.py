"""What comes from outside cannot execute, escape or be sent, and secrets are written nowhere (SECURITY.md)."""

import ast
import getpass
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from dartune.config import load_config
from dartune.data.render import Renderer
from dartune.errors import InputError, MachineError
from dartune.files import append_log
from dartune.redaction import HIDDEN, redacted
from dartune.rewards.checker import AnswerChecker
from dartune.run import Run
from fixtures_models import byte_tokenizer, save_tiny
from test_pipeline import arguments, word_problems

PACKAGE = Path(__file__).parents[1] / "src" / "dartune"
SECRETS = {
    "HF_TOKEN": "hf_planted0000000000000000000000001",
    "WANDB_API_KEY": "planted-wandb-0000000000000002",
    "DARTUNE_VLLM_API_KEY": "planted-vllm-0000000000000003",
    "SOMEBODYS_PASSWORD": "planted-password-4",
}
WATCH = """
import os, sys
# Loaded by every Python process of the run: notes where files are written, and lets nobody use the network.
def hook(event, words):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if not (event in ("socket.connect", "socket.bind") and isinstance(words[1], (str, bytes))):
            os.write(note, f"network {event} {words[1:]}\\n".encode())
            raise PermissionError("no network in this test")
    writing = event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR)
    if writing and isinstance(words[0], str):
        os.write(note, f"write {os.path.realpath(words[0])}\\n".encode())
    if event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
        os.write(note, f"write {os.path.realpath(words[0 if event == 'os.mkdir' else 1])}\\n".encode())
note = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.set_inheritable(note, True)
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    """A whole run with secrets in its environment: its folder, its notes, what it said, its home."""
    folder = tmp_path_factory.mktemp("watched")
    data = word_problems(folder / "problems.jsonl", 24)
    target = save_tiny(folder / "target", "llama", context=2048)
    for name in ("home", "temporary", "work", "site"):
        (folder / name).mkdir()
    (folder / "site" / "sitecustomize.py").write_text(WATCH)
    environment = {
        **os.environ,
        **SECRETS,
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "NOTES": str(folder / "notes.txt"),
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dartune", *arguments(data, target, folder / "run")],
        env=environment,
        cwd=folder / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, (folder / "notes.txt").read_text().splitlines(), done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_uses_no_network(watched_run):
    _, notes, _ = watched_run
    assert any(note.startswith("write") for note in notes)
    assert not [note for note in notes if note.startswith("network")]


def test_a_run_writes_into_its_folder_only(watched_run):
    folder, notes, _ = watched_run
    places = {Path(note.removeprefix("write ")) for note in notes if note.startswith("write ")}
    ours = [folder / "run", folder / "temporary", folder / "notes.txt", Path("/dev"), Path("/proc")]
    caches = [folder / "home", Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")]  # of libraries
    strange = [place for place in places if not any(place.is_relative_to(part) for part in [*ours, *caches])]
    assert not strange
    assert not list((folder / "work").iterdir()) and not list((folder / "temporary").iterdir())
    kept = {path.relative_to(folder / "home").parts[:2] for path in (folder / "home").rglob("*") if path.is_file()}
    assert kept <= {(".cache", "huggingface"), (".cache", "matplotlib"), (".config", "matplotlib")}


def test_no_file_and_no_message_of_a_run_has_a_secret(watched_run):
    folder, _, said = watched_run
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert {"environment.json", "config.resolved.yaml", "run.log", "results.json"} <= {path.name for path in files}
    for secret in SECRETS.values():
        assert secret not in said
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_secrets_are_hidden_in_whatever_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("KEYBOARD", "harmless-place")
    text = f"401 for https://user:passw0rd@host/x with {SECRETS['HF_TOKEN']}, hf_{'a1' * 12} at harmless-place"
    assert redacted(text) == f"401 for https://{HIDDEN}@host/x with {HIDDEN}, {HIDDEN} at harmless-place"
    append_log(tmp_path / "log", text)
    with pytest.raises(MachineError), Run(tmp_path / "run") as run:
        run.log(text)
        raise MachineError(text)
    written = (tmp_path / "log").read_text() + (tmp_path / "run/logs/run.log").read_text() + capsys.readouterr().err
    assert SECRETS["HF_TOKEN"] not in written and "passw0rd" not in written and written.count(HIDDEN) >= 9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("execution.server", "http://user:passw0rd@localhost:8000"),
        ("name", "hf_" + "a1" * 12),
        ("target.system_prompt", "my key is planted-secret-5"),
        ("reward.leak_phrases", "[fine, planted-secret-5]"),
    ],
)
def test_a_secret_in_the_config_is_refused_and_not_shown(key, value, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "planted-secret-5")
    with pytest.raises(InputError, match=f"--{key} holds a secret") as caught:
        load_config(None, {"data": "lab:values", "target": "lab:backward", key: value})
    assert not [secret for secret in ("passw0rd", "planted", "a1a1") if secret in str(caught.value)]


FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "code", "codeop"}
CALLS = {"eval", "exec", "compile", "os.system", "torch.load", "yaml.unsafe_load", "yaml.full_load", "pickle.loads"}
MAY_RUN_STRANGERS = ("rewards/unit_tests.py",)
"""Runs in the sandbox alone."""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_can_run_what_it_reads(path):
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            found += [ast.unparse(node.func)] if ast.unparse(node.func) in CALLS else []
            found += [word.arg for word in node.keywords if word.arg == "shell"]
    assert not found or path.relative_to(PACKAGE).as_posix() in MAY_RUN_STRANGERS


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch TRACE') }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_is_held_in_its_sandbox(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + tokenizer.chat_template
    with pytest.raises(InputError, match="chat template"):
        Renderer(tokenizer)
    assert not list(tmp_path.iterdir())


def test_what_parses_answers_can_neither_write_nor_send_nor_see_secrets(tmp_path, monkeypatch):
    """The worker for mathematics is held by the kernel as the sandbox is, whatever an expression gets it to do."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has the kernel's guard")
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    (tmp_path / "attacked.py").write_text(
        textwrap.dedent(
            f"""
            import json, os, socket
            from dartune.rewards import checker
            def attack(predicted, gold):
                tried = {{}}
                for name, act in {{
                    "write": lambda: open({str(tmp_path / "trace")!r}, "w"),
                    "send": lambda: socket.socket(),
                    "run": lambda: os.fork(),
                }}.items():
                    try:
                        act()
                        tried[name] = "done"
                    except OSError:
                        tried[name] = "refused"
                return json.dumps({{**tried, "seen": [n for n in os.environ if "TOKEN" in n]}})
            checker._same_maths = attack
            serve = checker.serve
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with AnswerChecker() as one:
        one._maths._start = ("attacked:serve", *one._maths._start[1:])
        (answer,) = one._maths.ask([("1", "2", 5.0)], 30.0)
    assert json.loads(answer) == {"write": "refused", "send": "refused", "run": "refused", "seen": []}
    assert not (tmp_path / "trace").exists()


def test_the_threat_model_names_tests_that_exist():
    text = (PACKAGE.parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert named and not [name for name in named if not (PACKAGE.parents[1] / name).is_file()]
