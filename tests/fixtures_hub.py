"""A local fake of the Hugging Face Hub: it answers the HTTP requests of an upload and records what it received."""

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
    """The uploaded files by (kind, owner/name), and all requests.

    `errors` maps a part of a request's path to the status and the message of the response.
    """

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.requests: list[str] = []
        self.errors: dict[str, tuple[int, str]] = {}
        self.endpoint = ""

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, Any]:
        self.requests.append(f"{method} {path}")
        for path_part, (status, message) in self.errors.items():
            if path_part in path:
                return status, {"error": message}
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid user token."}
        segments = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            licences = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("license:")]
            errors = [{"message": f'"license" must be one of {LICENCES}'} for name in licences if name not in LICENCES]
            return (400, {"errors": errors, "warnings": []}) if errors else (200, {"errors": [], "warnings": []})
        repo = (segments[1].removesuffix("s"), "/".join(segments[2:4]))
        if repo not in self.files:
            return 404, {"error": "Repository not found"}
        if segments[4:] == ["preupload", "main"]:
            files = json.loads(body)["files"]
            return 200, {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        if segments[4:] == ["commit", "main"]:
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": repo[1], "private": self.private[repo], "sha": "0" * 40}

    def _create(self, request: dict[str, Any]) -> tuple[int, Any]:
        kind, name = request.get("type", "model"), f"{request['organization']}/{request['name']}"
        response = {"url": f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"}
        if (kind, name) in self.files:
            return 409, {"error": "You already created this repo", **response}
        self.files[kind, name] = {}
        self.private[kind, name] = request.get("visibility") == "private"
        return 200, response

    def _commit(self, repo: tuple[str, str], lines: list[dict[str, Any]]) -> tuple[int, Any]:
        for line in lines:
            if line["key"] == "file":
                self.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = f"{len(self.files[repo]):040}"
        return 200, {"success": True, "commitUrl": f"{self.endpoint}/{repo[1]}/commit/{sha}", "commitOid": sha}


@contextmanager
def served_hub() -> Iterator[Hub]:
    """Serve a fake Hub at its `endpoint` until the context ends."""
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
