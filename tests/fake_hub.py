"""A hub on the loopback interface: the few endpoints of huggingface_hub that profiles pass through.

Repositories live in memory, one commit a push. Failures are switched on by the test: what a name
answers, and how many bytes of a file are sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_test"


class Repo:
    """Branches to commits to files; `private` needs the token."""

    def __init__(self, *, private=False):
        self.private = private
        self.commits = {}
        self.branches = {}
        self.messages = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch, files, message):
        content = repr((len(self.messages), branch, sorted(files.items()), message)).encode()
        oid = hashlib.sha1(content).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def files(self, branch="main"):
        return self.commits[self.branches[branch]]

    def find(self, revision):
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


class FakeHub:
    """repos: by name. status: a repository's name to what every request of it answers instead.

    cut: a path to the bytes of it that are sent before the connection ends. requests: what came in.
    """

    def __init__(self):
        self.repos = {}
        self.status = {}
        self.cut = {}
        self.requests = []
        self.endpoint = ""

    def add(self, name, folder=None, *, private=False):
        """A repository, with the files of a folder."""
        repo = self.repos[name] = Repo(private=private)
        if folder is not None:
            files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
            repo.commit("main", files, "files")
        return repo


@contextmanager
def serve():
    """A FakeHub that answers at its `endpoint`."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle(None)

    def do_HEAD(self):
        self._handle(None)

    def do_POST(self):
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _handle(self, body):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for pattern, name in _ROUTES:
            if match := re.fullmatch(pattern, path):
                getattr(self, name)(*match.groups(), **({} if body is None else {"body": body}))
                return
        self._json(404, {"error": f"no route {path}"})

    # -- reading --------------------------------------------------------------------------------
    def _repo(self, name):
        """The repository, or None after an answer that refuses it."""
        repo = self.hub.repos.get(name)
        if (status := self.hub.status.get(name)) is not None:
            self._json(status, {"error": "switched on by the test"})
        elif repo is None or (repo.private and not self._signed_in()):
            self._json(401, {"error": "Repository not found"}, code="RepoNotFound")
        else:
            return repo
        return None

    def _commit(self, name, revision):
        repo = self._repo(name)
        if repo is None:
            return None
        oid = repo.find(revision)
        if oid is None:
            self._json(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
            return None
        return oid, repo.commits[oid]

    def info(self, name, revision="main"):
        if found := self._commit(name, revision):
            oid, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            private = self.hub.repos[name].private
            self._json(
                200,
                {"_id": name, "id": name, "sha": oid, "private": private, "siblings": siblings},
            )

    def tree(self, name, revision):
        if found := self._commit(name, revision):
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": _etag(data)}
                for path, data in sorted(found[1].items())
            ]
            self._json(200, entries)

    def resolve(self, name, revision, path):
        found = self._commit(name, revision)
        if not found:
            return
        oid, files = found
        if path not in files:
            self._json(404, {"error": "Entry not found"}, code="EntryNotFound")
            return
        data = files[path]
        start = 0
        if given := self.headers.get("Range"):
            start = int(re.match(r"bytes=(\d+)-", given)[1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", oid)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut.get(path)
        self.wfile.write(data[start:] if cut is None else data[start:cut])
        if cut is not None:
            self.close_connection = True

    # -- writing --------------------------------------------------------------------------------
    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not self._may_write(name):
            return
        if name in self.hub.repos:
            self._json(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repos[name] = Repo(private=bool(private))
        self._json(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def branch(self, name, branch, body):
        if self._may_write(name) and (repo := self._repo(name)):
            if branch in repo.branches:
                self._json(409, {"error": "exists"})
                return
            repo.branches[branch] = repo.branches["main"]
            self._json(200, {})

    def validate_yaml(self, body):
        self._json(200, {"errors": [], "warnings": []})

    def whoami(self):
        if self._may_write(None):
            self._json(200, {"name": "me", "type": "user", "auth": {}})

    def preupload(self, name, revision, body):
        if self._may_write(name) and self._commit(name, revision):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json(200, {"files": files})

    def commit(self, name, revision, body):
        if not (self._may_write(name) and (found := self._commit(name, revision))):
            return
        files, message = dict(found[1]), ""
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.repos[name].commit(revision, files, message)
        url = f"{self.hub.endpoint}/{name}/commit/{oid}"
        self._json(200, {"commitUrl": url, "commitOid": oid, "success": True})

    # -- answers --------------------------------------------------------------------------------
    def _signed_in(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _may_write(self, name):
        if (status := self.hub.status.get(name)) is not None:
            self._json(status, {"error": "switched on by the test"})
            return False
        if not self._signed_in():
            self._json(401, {"error": "Invalid username or password."})
            return False
        return True

    def _json(self, status, value, *, code=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data):
    return hashlib.sha1(data).hexdigest()


_REPO = r"([^/]+/[^/]+)"
_ROUTES = [
    (r"/api/repos/create", "create"),
    (r"/api/validate-yaml", "validate_yaml"),
    (r"/api/whoami-v2", "whoami"),
    (rf"/api/models/{_REPO}/branch/(.+)", "branch"),
    (rf"/api/models/{_REPO}/preupload/(.+)", "preupload"),
    (rf"/api/models/{_REPO}/commit/(.+)", "commit"),
    (rf"/api/models/{_REPO}/revision/(.+)", "info"),
    (rf"/api/models/{_REPO}/tree/([^/]+)/?", "tree"),
    (rf"/api/models/{_REPO}", "info"),
    (rf"/{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
]
