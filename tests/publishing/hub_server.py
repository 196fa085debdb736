"""The few endpoints of the hub that an upload needs: a server in a thread here, which can be told to refuse."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "Zk3" * 11 + "x"
OWNER = "someone"


@dataclass
class Hub:
    """What the hub has, what was asked of it, and what it refuses."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Repository -> whether it is private."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> file -> content."""
    asked: list[str] = field(default_factory=list)
    """Methods and paths, in order."""
    bodies: list[bytes] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    """`look`, `create`, `upload` or `commit` -> the status to answer with; 0 hangs up."""
    blobs: dict[str, bytes] = field(default_factory=dict)

    def make(self, repo: str, private: bool, *names: str) -> None:
        """A repository as the hub makes it, and with these files."""
        self.private[repo] = private
        self.files[repo] = dict.fromkeys((".gitattributes", *names), b"there before")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._begin("look"):
            repo = self.path.removeprefix("/api/models/")
            if repo not in self.hub.private:
                self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = [{"rfilename": name} for name in self.hub.files[repo]]
            self._answer(200, {"id": repo, "private": self.hub.private[repo], "sha": "0" * 40, "siblings": siblings})

    def do_PUT(self) -> None:
        if self._begin("upload", signed=True):
            self.hub.blobs[self.path.rpartition("/")[2]] = self.body
            self._answer(200, {})

    def do_POST(self) -> None:
        kind = {"/api/repos/create": "create"}.get(self.path, "commit" if "/commit/" in self.path else "")
        if not self._begin(kind):
            return
        if kind == "create":
            asked = json.loads(self.body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.hub.make(repo, asked.get("visibility", "private" if asked.get("private") else "public") == "private")
            self._answer(200, {"url": f"{self.hub.url}/{repo}", "name": repo})
        elif kind == "commit":
            self._commit(self.path.removeprefix("/api/models/").partition("/commit/")[0])
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            found = [{"path": n, "uploadMode": modes[n], "shouldIgnore": False, "oid": None} for n in names]
            self._answer(200, {"files": found})
        else:  # LFS: where to put each object
            objects = [
                {**own, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{own['oid']}"}}}
                for own in json.loads(self.body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str) -> None:
        for line in self.body.splitlines():
            own = json.loads(line)
            if own["key"] == "file":
                self.hub.files[repo][own["value"]["path"]] = base64.b64decode(own["value"]["content"])
            elif own["key"] == "lfsFile":
                self.hub.files[repo][own["value"]["path"]] = self.hub.blobs[own["value"]["oid"]]
        url = f"{self.hub.url}/{repo}/commit/{'1' * 40}"
        self._answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "pullRequestUrl": None})

    def _begin(self, kind: str, signed: bool = False) -> bool:
        """Reads the body; whether the request is to be answered. Addresses of objects are signed and take no token."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.bodies.append(self.body)
        status = self.hub.refuse.get(kind)
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return False
        told = self.headers.get("Authorization", "")
        if status is None and (signed or told == f"Bearer {TOKEN}"):
            return True
        headers = {} if status else {"X-Error-Message": "Invalid credentials in Authorization header"}
        # A server that is as careless as some: it tells what it was sent.
        self._answer(status or 401, {"error": f"refused: {told}"}, headers)
        return False

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def serve() -> tuple[Hub, ThreadingHTTPServer]:
    """A hub on a free port; `shutdown` ends it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return hub, server
