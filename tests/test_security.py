"""Security: untrusted input is not executed, data are not sent anywhere, and secrets are not written (SECURITY.md)."""

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

from dartune.answers.checker import AnswerChecker
from dartune.config.load import load_config
from dartune.data.chat_template import Renderer
from dartune.errors import InputError, MachineError
from dartune.run.files import append_log
from dartune.run.folder import RunFolder
from dartune.run.redaction import HIDDEN, redacted
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
# Loaded by every Python process of the run: records where files are written, and blocks the network.
def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if not (event in ("socket.connect", "socket.bind") and isinstance(arguments[1], (str, bytes))):
            os.write(note, f"network {event} {arguments[1:]}\\n".encode())
            raise PermissionError("no network in this test")
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing and isinstance(arguments[0], str):
        os.write(note, f"write {os.path.realpath(arguments[0])}\\n".encode())
    if event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
        os.write(note, f"write {os.path.realpath(arguments[0 if event == 'os.mkdir' else 1])}\\n".encode())
note = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.set_inheritable(note, True)
sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def watched_run(tmp_path_factory):
    """Run the pipeline with secrets in the environment; return the folder, the recorded events, and the output."""
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
    completed = subprocess.run(
        [sys.executable, "-m", "dartune", *arguments(data, target, folder / "run")],
        env=environment,
        cwd=folder / "work",
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    return folder, (folder / "notes.txt").read_text().splitlines(), completed.stdout + completed.stderr


@pytest.mark.slow
def test_a_run_uses_no_network(watched_run):
    _, notes, _ = watched_run
    assert any(note.startswith("write") for note in notes)
    assert not [note for note in notes if note.startswith("network")]


def test_a_run_writes_only_into_its_folder(watched_run):
    folder, notes, _ = watched_run
    written = {Path(note.removeprefix("write ")) for note in notes if note.startswith("write ")}
    allowed = [folder / "run", folder / "temporary", folder / "notes.txt", Path("/dev"), Path("/proc")]
    caches = [folder / "home", Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")]  # of libraries
    unexpected = [path for path in written if not any(path.is_relative_to(part) for part in [*allowed, *caches])]
    assert not unexpected
    assert not list((folder / "work").iterdir()) and not list((folder / "temporary").iterdir())
    in_home = {path.relative_to(folder / "home").parts[:2] for path in (folder / "home").rglob("*") if path.is_file()}
    assert in_home <= {(".cache", "huggingface"), (".cache", "matplotlib"), (".config", "matplotlib")}


def test_no_file_and_no_output_of_a_run_contains_a_secret(watched_run):
    folder, _, output = watched_run
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert {"environment.json", "config.resolved.yaml", "run.log", "results.json"} <= {path.name for path in files}
    for secret in SECRETS.values():
        assert secret not in output
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_secrets_are_redacted_in_all_output(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.setenv("KEYBOARD", "harmless-place")
    text = f"401 for https://user:passw0rd@host/x with {SECRETS['HF_TOKEN']}, hf_{'a1' * 12} at harmless-place"
    assert redacted(text) == f"401 for https://{HIDDEN}@host/x with {HIDDEN}, {HIDDEN} at harmless-place"
    append_log(tmp_path / "log", text)
    with pytest.raises(MachineError), RunFolder(tmp_path / "run") as run:
        run.log(text)
        raise MachineError(text)
    written = (tmp_path / "log").read_text() + (tmp_path / "run/logs/run.log").read_text() + capsys.readouterr().err
    assert SECRETS["HF_TOKEN"] not in written and "passw0rd" not in written and written.count(HIDDEN) >= 9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("execution.server", "http://user:passw0rd@localhost:8000"),
        ("output", "runs/hf_" + "a1" * 12),
        ("target.system_prompt", "my key is planted-secret-5"),
        ("reward.leak_phrases", "[fine, planted-secret-5]"),
    ],
)
def test_a_secret_in_the_config_is_rejected_and_not_shown(key, value, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "planted-secret-5")
    with pytest.raises(InputError, match=f"--{key} holds a secret") as caught:
        load_config(None, {"data": "lab:values", "target": "lab:backward", key: value})
    assert not [secret for secret in ("passw0rd", "planted", "a1a1") if secret in str(caught.value)]


FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "code", "codeop"}
CALLS = {"eval", "exec", "compile", "os.system", "torch.load", "yaml.unsafe_load", "yaml.full_load", "pickle.loads"}
MAY_RUN_UNTRUSTED_CODE = ("sandbox/unit_tests.py",)
"""Runs inside the sandbox only."""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_module_can_execute_what_it_reads(path):
    violations = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            violations += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if isinstance(node, ast.Call):
            violations += [ast.unparse(node.func)] if ast.unparse(node.func) in CALLS else []
            violations += [keyword.arg for keyword in node.keywords if keyword.arg == "shell"]
    assert not violations or path.relative_to(PACKAGE).as_posix() in MAY_RUN_UNTRUSTED_CODE


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch TRACE') }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(template, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template + tokenizer.chat_template
    with pytest.raises(InputError, match="chat template"):
        Renderer(tokenizer)
    assert not list(tmp_path.iterdir())


def test_the_answer_parser_can_neither_write_nor_use_the_network_nor_read_secrets(tmp_path, monkeypatch):
    """The math worker runs under the seccomp filter of the sandbox, so a malicious expression cannot do more."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the seccomp filter exists on Linux only")
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)  # its name contains TOKEN, but it is not a secret
    (tmp_path / "attacked.py").write_text(
        textwrap.dedent(
            f"""
            import json, os, socket
            from dartune.answers import checker
            def attack(predicted, gold):
                outcome = {{}}
                for name, act in {{
                    "write": lambda: open({str(tmp_path / "trace")!r}, "w"),
                    "send": lambda: socket.socket(),
                    "run": lambda: os.fork(),
                }}.items():
                    try:
                        act()
                        outcome[name] = "done"
                    except OSError:
                        outcome[name] = "refused"
                return json.dumps({{**outcome, "seen": [n for n in os.environ if "TOKEN" in n]}})
            checker._same_maths = attack
            serve = checker.serve
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with AnswerChecker() as checker:
        checker._maths._start = ("attacked:serve", *checker._maths._start[1:])
        (answer,) = checker._maths.ask([("1", "2", 5.0)], 30.0)
    assert json.loads(answer) == {"write": "refused", "send": "refused", "run": "refused", "seen": []}
    assert not (tmp_path / "trace").exists()


def test_the_threat_model_names_tests_that_exist():
    text = (PACKAGE.parents[1] / "SECURITY.md").read_text(encoding="utf-8")
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert files and not [name for name in files if not (PACKAGE.parents[1] / name).is_file()]
