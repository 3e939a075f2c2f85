"""A stand-in for the Hugging Face Hub: the few HTTP calls of an upload, on this machine, remembering what it got."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_only_for_tests"
LICENCES = ("apache-2.0", "mit")


class Hub:
    """What was uploaded, by (kind, owner/name), and every request.

    `refuse` maps a word of a path to the status and the message that it is answered with.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.requests: list[str] = []
        self.refuse: dict[str, tuple[int, str]] = {}
        self.endpoint = ""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        for word, (status, said) in self.refuse.items():
            if word in path:
                return status, {"error": said}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid user token."}
        words = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            named = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("license:")]
            wrong = [{"message": f'"license" must be one of {LICENCES}'} for name in named if name not in LICENCES]
            return (400, {"errors": wrong, "warnings": []}) if wrong else (200, {"errors": [], "warnings": []})
        repo = (words[1].removesuffix("s"), "/".join(words[2:4]))
        if repo not in self.files:
            return 404, {"error": "Repository not found"}
        if words[4:] == ["preupload", "main"]:
            asked = json.loads(body)["files"]
            return 200, {
                "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            }
        if words[4:] == ["commit", "main"]:
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": repo[1], "private": self.private[repo], "sha": "0" * 40}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        kind, name = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        made = {"url": f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"}
        if (kind, name) in self.files:
            return 409, {"error": "You already created this repo", **made}
        self.files[kind, name] = {}
        self.private[kind, name] = asked.get("visibility") == "private"
        return 200, made

    def _commit(self, repo: tuple[str, str], lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            if line["key"] == "file":
                self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = f"{len(self.files[repo]):040}"
        return 200, {"success": True, "commitUrl": f"{self.endpoint}/{repo[1]}/commit/{sha}", "commitOid": sha}


@contextmanager
def served_hub() -> Iterator[Hub]:
    """The stand-in, reachable at its `endpoint` for as long."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, value = hub.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
