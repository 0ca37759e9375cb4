"""A model hub on a loopback port: as much of the API of huggingface.co as `huggingface_hub` asks of it."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_INFO = re.compile(r"/api/models/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>[^/]+)")


@dataclass
class Hub:
    """folder: the one repository's files; refusals: status and error code for other repositories, by their id.

    cut: names of files whose connection is closed halfway through and which are broken
    from then on; broken: those answered with 503; slow: seconds that every further kilobyte takes
    requests: what was asked for, as `METHOD PATH`
    """

    folder: Path
    repository: str = "someone/tiny-vit.v1"
    revisions: tuple[str, ...] = ("main", "v2")
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    slow: float = 0.0
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve_hub(hub: Hub) -> Generator[Hub, None, None]:
    """Runs the hub until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            hub.requests.append(f"{self.command} {self.path}")

        def answer(self) -> None:
            path = unquote(self.path.partition("?")[0])
            match = _INFO.fullmatch(path) or _FILE.fullmatch(path)
            if match is None or match["id"] != hub.repository:
                refusal = hub.refusals.get(match["id"] if match else "", (401, ""))
                self.reply(refusal[0], {"X-Error-Code": refusal[1]} if refusal[1] else {})
            elif match["revision"] not in (None, COMMIT, *hub.revisions):
                self.reply(404, {"X-Error-Code": "RevisionNotFound"})
            elif match.re is _INFO:
                files = [{"rfilename": file.name} for file in sorted(hub.folder.iterdir())]
                document = {"id": hub.repository, "sha": COMMIT, "siblings": files}
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(document).encode())
            elif not (hub.folder / match["name"]).is_file():
                self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.send_file(hub.folder / match["name"])

        def send_file(self, path: Path) -> None:
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            if self.command == "GET" and path.name in hub.broken:
                self.reply(503, {})
                return
            cut = self.command == "GET" and path.name in hub.cut
            hub.broken |= {path.name} if cut else set()
            self.reply(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}, content, cut)

        def reply(self, status: int, headers: dict[str, str], content: bytes = b"", cut: bool = False) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if cut:
                content, self.close_connection = content[: len(content) // 2], True
            if hub.slow and len(content) > 1024:
                for start in range(0, len(content), 1024):
                    self.wfile.write(content[start : start + 1024])
                    time.sleep(hub.slow)
            else:
                self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """The client went away, as the tests make it do."""

    server = Server(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
