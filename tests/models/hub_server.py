"""A model hub on this machine for tests: the parts of its interface that a download uses, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`repos`: owner/name -> folder. `asked`: the paths of all requests, in order. `gated`: nobody is given a file."""

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos = repos
        self.asked: list[str] = []
        self.endpoint = ""
        self.gated = False


@contextmanager
def serving(repos: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repos)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repo = (info or file or ["", ""])[1]
            if repo not in repos:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            elif hub.gated and file:  # a gated repository's listing is public, its files are not
                self._send(401, b"", {"X-Error-Code": "GatedRepo"}, body)
            elif info:
                siblings = [
                    {"rfilename": f.relative_to(repos[repo]).as_posix(), "size": f.stat().st_size}
                    for f in sorted(repos[repo].rglob("*"))
                    if f.is_file()
                ]
                answer = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
            else:
                assert file is not None
                target = repos[repo] / file[3]
                if not target.is_file():
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
                    return
                content = target.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                self._send(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
