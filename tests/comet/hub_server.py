"""A small HTTP server that speaks as much of the Hugging Face hub's protocol as reading a repository's files takes.

Repositories, listings (`tree`, `paths-info`), and files behind a redirect (`resolve`), in whole, in ranges, or their
headers alone. Faults can be ordered: a connection that breaks off in mid-file, an error of the server.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """Serves the files of a folder as one repository.

    Args:
        folder: its files.
        repository: its name, OWNER/NAME.
        kind: "datasets" or "models".
    """

    def __init__(self, folder: Path, repository: str, kind: str = "datasets") -> None:
        self.folder = folder
        self.repository = repository
        self.kind = kind
        self.facts: dict = {}  # more that is said of the repository
        self.requests: list[str] = []
        self.cut_after: int | None = None  # bytes of files that are sent before a connection breaks
        self.cuts = 0  # how many more connections break
        self.errors: list[int] = []  # what the next requests for a file are answered with
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers."""
        return handler_of(self)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def point_at(server: HubServer, monkeypatch) -> None:
    """Let the libraries of this process take a server for the hub."""
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)


def _entry(hub: HubServer, path: Path) -> dict:
    name = path.relative_to(hub.folder).as_posix()
    if path.is_dir():
        oid = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "type": "file",
        "oid": hashlib.sha1(content).hexdigest(),
        "size": len(content),
        "path": name,
        "lfs": {"oid": sha256, "size": len(content), "pointerSize": 134},
    }


def handler_of(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    api = rf"/api/{hub.kind}/{hub.repository}"
    files = f"/{hub.repository}" if hub.kind == "models" else f"/{hub.kind}/{hub.repository}"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            if not re.fullmatch(rf"{api}/paths-info/[^/]+", path):
                self._refuse(404, "EntryNotFound")
                return
            if sent.startswith("{"):
                wanted = json.loads(sent)["paths"]
            else:
                wanted = re.findall(r"(?:^|&)paths=([^&]*)", sent)
            found = [hub.folder / unquote(name) for name in wanted]
            self._json([_entry(hub, one) for one in found if one.exists()])

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".rstrip())
            if re.fullmatch(rf"{api}(/revision/[^/]+)?", path):
                self._json({"id": hub.repository, "sha": COMMIT, "siblings": [], "private": False,
                            "tags": [], "downloads": 0, "likes": 0, "disabled": False, "gated": False,
                            **hub.facts})  # fmt: skip
            elif match := re.fullmatch(rf"{api}/tree/[^/]+/?(.*)", path):
                self._tree(hub.folder / match[1], "recursive=true" in self.path.lower())
            elif match := re.fullmatch(rf"{files}/resolve/([^/]+)/(.*)", path):
                self._resolve(match[2])
            elif path.startswith("/cdn/"):
                self._file(hub.folder / path.removeprefix("/cdn/"), body)
            else:
                self._refuse(404, "RepoNotFound")

        def _tree(self, folder: Path, recursive: bool) -> None:
            if not folder.is_dir():
                self._refuse(404, "EntryNotFound")
                return
            found = folder.rglob("*") if recursive else folder.glob("*")
            self._json([_entry(hub, one) for one in sorted(found)])

        def _resolve(self, name: str) -> None:
            if hub.errors:
                self._refuse(hub.errors.pop(0), "")
                return
            file = hub.folder / name
            if not file.is_file():
                self._refuse(404, "EntryNotFound")
                return
            entry = _entry(hub, file)
            self.send_response(302)
            self.send_header("Location", f"{hub.endpoint}/cdn/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Etag", f'"{entry["lfs"]["oid"]}"')
            self.send_header("X-Linked-Size", str(entry["size"]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(self, file: Path, body: bool) -> None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            first, last = 0, len(content) - 1
            given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if given:
                first = int(given[1])
                last = min(last, int(given[2])) if given[2] else last
                if first > last:
                    self._refuse(416, "")
                    return
            self.send_response(206 if given else 200)
            if given:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            if body:
                self._send(content[first : last + 1])

        def _send(self, content: bytes) -> None:
            if hub.cut_after is None or hub.cuts == 0 or hub.cut_after >= len(content):
                if hub.cut_after is not None:
                    hub.cut_after -= len(content)
                self.wfile.write(content)
                return
            self.wfile.write(content[: max(hub.cut_after, 0)])
            hub.cut_after = 0
            hub.cuts -= 1
            self.close_connection = True

        def _json(self, answer: object) -> None:
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", f"{code} at {self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler
