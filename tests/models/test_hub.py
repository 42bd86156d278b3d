"""A model goes to the hub and comes back by its name: against a stand-in for the hub on this machine."""

import base64
import hashlib
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from models import create_model, push
from models.pretrained import FILES, from_pretrained, model_card, save_pretrained
from pipelines.common.errors import UserError
from tests.command import called
from tests.test_architecture import ROOT

pytest.importorskip("huggingface_hub")
OPTIONS = {"name": "mbf", "width": 0.125, "embedding_size": 16, "input_size": 32}
COMMIT = "c0ffee" + "0" * 34


class Hub(BaseHTTPRequestHandler):
    """The few requests that a push and a download make; files of one commit, in memory."""

    files: dict[str, bytes] = {}
    created: list[dict] = []
    refuse = 0  # status with which everything is refused

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.refuse:
            self._answer({"error": "no"}, self.refuse)
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(content))
            self._answer({"url": "https://huggingface.co/user/faces", "name": "user/faces"})
        elif "/preupload/" in self.path:
            found = json.loads(content)["files"]
            modes = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False} for each in found]
            self._answer({"files": modes})
        elif self.path == "/api/validate-yaml":  # the card's front matter
            self._answer({"errors": [], "warnings": []})
        else:
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"https://huggingface.co/user/faces/commit/{COMMIT}", "commitOid": COMMIT})

    def do_GET(self):
        if self.path.startswith("/api/models/user/faces"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": "0"} for name in self.files]
            self._answer(tree if "/tree/" in self.path else {"id": "user/faces", "sha": COMMIT, "siblings": siblings})
        else:
            self._send_file()

    do_HEAD = do_GET

    def _send_file(self):
        content = self.files.get(self.path.rpartition("/")[2].partition("?")[0])
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content or b"")

    def _answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one's own with nothing on it, whose address the package reads when it is imported."""
    kind = type("Own", (Hub,), {"files": {}, "created": [], "refuse": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = forget_package()
    yield kind
    forget_package()
    sys.modules.update(before)
    server.shutdown()
    server.server_close()


def forget_package():
    """Take the hub's package out of what is imported; what was there."""
    names = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_pretrained(create_model(**OPTIONS), OPTIONS, tmp_path / "model", model_card(OPTIONS))
    (tmp_path / "model/events.log").write_text("not to be published")
    return tmp_path / "model"


def test_a_model_goes_and_comes_back(hub, folder):
    arguments = [sys.executable, "-m", "models.push", str(folder), "--repo", "user/faces"]
    pushed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip() == f"written: https://huggingface.co/user/faces/commit/{COMMIT}"
    assert hub.files == {name: (folder / name).read_bytes() for name in FILES}
    assert [each.get("private", each.get("visibility")) for each in hub.created] in ([True], ["private"])

    first = from_pretrained("user/faces").state_dict()
    hub.refuse, hub.files = 503, {}  # from here on the cache is what there is
    cached, local = (from_pretrained(name).state_dict() for name in ("hf-hub:user/faces@main", folder))
    for tensor, again, own in zip(first.values(), cached.values(), local.values(), strict=True):
        assert torch.equal(tensor, own) and torch.equal(again, own)


@pytest.mark.parametrize(
    ("repo", "removed", "refuse", "line"),
    [
        ("faces", None, 0, "error: --repo is user/name"),
        ("user/faces", "config.json", 0, "config.json: write it by python -m models.export"),
        ("user/faces", None, 403, "error: user/faces was not written"),
    ],
)
def test_what_cannot_be_pushed_is_told_in_one_line(hub, folder, repo, removed, refuse, line):
    hub.refuse = refuse
    if removed:
        (folder / removed).unlink()
    ended = called(push.main, folder, "--repo", repo)
    assert ended.code == 2 and line in ended.error and ended.error.count("\n") == 1 and not hub.files


def test_a_hub_that_cannot_be_reached_is_told_in_one_line(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    ended = called(push.main, folder, "--repo", "user/faces")
    assert ended.code == 2 and "error: user/faces was not written: " in ended.error
    assert ended.error.count("\n") == 1


def test_a_name_that_nobody_knows(hub):
    with pytest.raises(UserError, match=r"user/none is no folder here.*") as raised:
        from_pretrained("user/none")
    assert "\n" not in str(raised.value)
