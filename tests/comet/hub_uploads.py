"""A stand-in for the hub that models are pushed to: it makes the repository, and takes files by git and by LFS.

What arrives lies in a folder; large files arrive beside it first, named by their hash, and a commit puts them there.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from hub_server import COMMIT, HubServer, handler_of

TOKEN = "hf_token_of_a_test"


class ModelHub(HubServer):
    """A hub with one model's repository, made by whoever has the token.

    Args:
        folder: where its files will lie.
        repository: its name, OWNER/NAME.
    """

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(folder, repository, "models")
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.created: list[dict] = []
        self.branches: list[str] = []
        self.commits: list[str] = []  # the branch of each
        self.forbidden = False  # to write, with whatever token

    def handler(self) -> type[BaseHTTPRequestHandler]:
        return _uploads_of(self)


def _uploads_of(hub: ModelHub) -> type[BaseHTTPRequestHandler]:
    api = f"/api/models/{hub.repository}"
    base: type = handler_of(hub)

    class Handler(base):  # type: ignore[misc, valid-type]
        def do_POST(self) -> None:  # noqa: N802
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            if path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._refuse(401, "")
            elif hub.forbidden:
                self._refuse(403, "")
            elif path == "/api/repos/create":
                hub.created.append(json.loads(sent))
                self._json({"url": f"{hub.endpoint}/{hub.repository}"})
            elif match := re.fullmatch(rf"{api}/branch/(.+)", path):
                hub.branches.append(match[1])
                self._json({})
            elif re.fullmatch(rf"{api}/preupload/.+", path):
                self._json({"files": [self._mode(one) for one in json.loads(sent)["files"]]})
            elif path == f"/{hub.repository}.git/info/lfs/objects/batch":
                self._json({"objects": [self._action(one) for one in json.loads(sent)["objects"]]})
            elif match := re.fullmatch(rf"{api}/commit/(.+)", path):
                self._commit([json.loads(line) for line in sent.splitlines()], match[1])
            else:
                self._refuse(404, "RepoNotFound")

        def do_PUT(self) -> None:  # noqa: N802
            content = self.rfile.read(int(self.headers["Content-Length"]))
            hub.requests.append(f"PUT {self.path}")
            oid = self.path.removeprefix("/lfs/")
            if hub.errors or hashlib.sha256(content).hexdigest() != oid:
                self._refuse(hub.errors.pop(0) if hub.errors else 400, "")
                return
            hub.large[oid] = content
            self._json({})

        def _mode(self, file: dict) -> dict:
            large = file["path"].endswith((".safetensors", ".onnx"))
            return {
                "path": file["path"],
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": False,
            }

        def _action(self, one: dict) -> dict:
            if one["oid"] in hub.large:
                return one
            return {**one, "actions": {"upload": {"href": f"{hub.endpoint}/lfs/{one['oid']}"}}}

        def _commit(self, lines: list[dict], branch: str) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    continue
                content = (
                    hub.large[value["oid"]]
                    if line["key"] == "lfsFile"
                    else base64.b64decode(value["content"])
                )
                place = hub.folder / value["path"]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            hub.commits.append(branch)
            self._json(
                {
                    "commitUrl": f"{hub.endpoint}/{hub.repository}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )

    return Handler
