"""The whole upload, over HTTP, by the installed huggingface_hub to a hub of our own on loopback."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import mooring as api
from served import served


class Hub(ThreadingHTTPServer):
    """What the hub keeps: a repository's files, and large files by digest."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.exists = False
        self.files: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def about(self) -> dict[str, Any]:
        """The repository, as the hub describes it."""
        siblings = []
        for name, digest in self.files.items():
            lfs = {"sha256": digest, "size": len(self.large[digest]), "pointerSize": 100}
            siblings.append({"rfilename": name, "size": len(self.large[digest]), "lfs": lfs})
        about = {"id": "me/merged", "_id": "1", "sha": "0" * 40, "private": False, "siblings": siblings}
        return {**about, "downloads": 0, "likes": 0, "tags": [], "gated": False, "disabled": False}


class Handler(BaseHTTPRequestHandler):
    """One request to the hub."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, status: int, data: Any, **headers: str) -> None:
        raw = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        """The repository, or the commit that an upload starts from."""
        self.server.asked.append(f"GET {self.path}")
        if not self.server.exists:
            self._reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            self._reply(200, self.server.about())

    def do_POST(self) -> None:
        """Create, ask how to upload, and commit."""
        self.server.asked.append(f"POST {self.path}")
        body = self._body()
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_secret":
            self._reply(401, {"error": "no token"})
        elif path == "/api/repos/create":
            self.server.exists = True
            self._reply(200, {"url": f"{self.server.url}/me/merged", "name": "me/merged", "id": "1"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for each in files
            ]
            self._reply(200, {"files": modes, "commitOid": "0" * 40})
        elif path.endswith("/info/lfs/objects/batch"):
            found = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._reply(200, {"transfer": "basic", "objects": found})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    data = base64.b64decode(value["content"])
                    digest = hashlib.sha256(data).hexdigest()
                    self.server.large[digest] = data
                    self.server.files[value["path"]] = digest
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = value["oid"]
            commit = {"commitUrl": f"{self.server.url}/me/merged/commit/{'1' * 40}", "commitOid": "1" * 40}
            self._reply(200, {"success": True, **commit})
        else:
            self._reply(200, {})

    def do_PUT(self) -> None:
        """A large file."""
        data = self._body()
        self.server.large[self.path.rpartition("/")[2]] = data
        self._reply(200, {})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub on loopback."""
    with served(Hub()) as server:
        yield server


def command(hub: Hub, *args: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, since huggingface_hub reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    line = [sys.executable, "-m", "mooring", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **settings})


@pytest.fixture
def merged(tmp_path: Path, save_tiny_model: Any) -> Path:
    """A merged model."""
    base, tuned = (save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "tuned")))
    return api.merge(base, tuned, lam=0.5, out=tmp_path / "merged")


@pytest.mark.slow
def test_a_merge_is_pushed_whole_with_its_card(hub: Hub, merged: Path) -> None:
    done = command(hub, "push", merged, "me/merged")
    assert done.returncode == 0, done.stderr
    assert f"{hub.url}/me/merged" in done.stdout
    assert "# merged" in hub.large[hub.files.pop("README.md")].decode()
    here = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in merged.iterdir()}
    here.pop("README.md", None)
    assert hub.files == here
    hub.large["0" * 64] = b"other"
    hub.files["model.safetensors"] = "0" * 64
    other = command(hub, "push", merged, "me/merged")
    assert other.returncode == 2
    assert "me/merged: holds other weights on the hub (model.safetensors)" in other.stderr


@pytest.mark.slow
def test_a_hub_that_is_out_of_reach_is_named_in_one_line(hub: Hub, merged: Path) -> None:
    hub.shutdown()
    hub.server_close()
    done = command(hub, "push", merged, "me/merged")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "out of reach" in done.stderr
