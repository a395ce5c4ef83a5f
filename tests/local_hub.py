"""A server with the part of the Hugging Face hub's HTTP API that uploads and downloads use."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0" * 40


@dataclass
class Hub:
    """The repositories of a server, which tests read and fill."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Whether a repository is private, by kind and name such as `models/OWNER/NAME`."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Contents of files by repository and path."""
    tokens: set[str] = field(default_factory=set)
    """Tokens of the requests that change something."""


@contextmanager
def running() -> Iterator[Hub]:
    """Run the server; it ends with the context."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            hub.tokens.add(self.headers.get("authorization", ""))
            path = self.path.partition("?")[0].removeprefix("/api/")
            kind, owner, name, *rest = [*path.split("/"), "", "", ""]
            if (kind, owner) == ("repos", "create"):
                wanted = json.loads(body)
                kind = f"{wanted.get('type') or 'model'}s"
                repository = f"{kind}/{wanted['organization']}/{wanted['name']}"
                # releases of the client differ in the name
                is_private = wanted.get("private", wanted.get("visibility") == "private")
                hub.private.setdefault(repository, is_private)
                hub.files.setdefault(repository, {})
                self.reply({"url": f"{hub.url}/{repository}"})
            elif kind == "validate-yaml":
                self.reply({"errors": [], "warnings": []})
            elif rest[0] == "preupload":
                paths = [file["path"] for file in json.loads(body)["files"]]
                mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.reply({"files": [{"path": path, **mode} for path in paths]})
            else:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        content = base64.b64decode(entry["value"]["content"])
                        hub.files[f"{kind}/{owner}/{name}"][entry["value"]["path"]] = content
                url = f"{hub.url}/{kind}/{owner}/{name}/commit/{COMMIT}"
                self.reply({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/"):
                kind, owner, name, *_ = [*path.removeprefix("/api/").split("/"), "", ""]
                files = hub.files.get(f"{kind}/{owner}/{name}")
                if kind == "whoami-v2":
                    self.reply({"name": "owner", "type": "user"})
                    return
                if files is None:
                    self.reply({"error": "Repository not found"}, status=404)
                    return
                if "/tree/" in path:
                    self.reply(
                        [
                            {"type": "file", "path": file, "size": len(content), "oid": COMMIT}
                            for file, content in files.items()
                        ]
                    )
                    return
                siblings = [{"rfilename": file} for file in files]
                identity = f"{owner}/{name}"
                self.reply({"id": identity, "sha": COMMIT, "siblings": siblings, "tags": []})
                return
            repository, _, rest = path.lstrip("/").partition("/resolve/")
            content = hub.files[repository][rest.partition("/")[2]]
            self.send(content, {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(content).hexdigest()})

        def do_HEAD(self) -> None:
            self.do_GET()

        def reply(self, body: object, *, status: int = 200) -> None:
            self.send(json.dumps(body).encode(), {}, status=status)

        def send(self, content: bytes, headers: dict[str, str], *, status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
