"""A proxy before the API server that makes the faults of one: late, refused, cut before or after the call was made.

It speaks HTTP to the planner and HTTPS to the server; watches are streamed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import urllib3
from kubernetes import client as kubernetes_client

from pool_planner.connectors.kubernetes_api import KubernetesApi
from tests.kube.server import ADMIN_TOKEN, ApiServer


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests that `match` (method, path). `late_s`: answered so much later. `status`:
    refused with it. `cut`: the connection ends `before` the call is made, or `after` it, without an answer."""

    match: Callable[[str, str], bool]
    times: int = 1
    late_s: float = 0.0
    status: int | None = None
    cut: str | None = None
    retry_after_s: int | None = None
    hits: int = 0


def writes(method: str, path: str) -> bool:
    """Orders of replicas, not the lease's renewals."""
    return method == "PATCH" and "nvidia.com" in path


def leases(method: str, path: str) -> bool:
    return "/leases" in path and method in ("GET", "PUT", "POST")


def watches(method: str, path: str) -> bool:
    return "watch=1" in path


def anything(method: str, path: str) -> bool:
    return True


@dataclass(slots=True)
class Proxy:
    server: ApiServer
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    held: threading.Event | None = None
    """While it is set to an event, writes wait for it before they are passed on."""
    _http: ThreadingHTTPServer | None = None
    _watching: set[Any] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Again after `stop`: at the same address."""
        proxy, port = self, 0 if self._http is None else int(self._http.server_address[1])
        upstream = urllib3.PoolManager(
            ca_certs=str(self.server.folder / "certs" / "apiserver.crt"), retries=False, maxsize=16, num_pools=4
        )

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                proxy.serve(self, upstream)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.05}).start()

    def stop(self) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
        self.cut_watches()

    @property
    def url(self) -> str:
        assert self._http is not None
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def api(self, user: str) -> KubernetesApi:
        configuration = kubernetes_client.Configuration()
        configuration.host = self.url
        configuration.api_key = {"authorization": ADMIN_TOKEN if user == "admin" else f"token-{user}"}
        configuration.api_key_prefix = {"authorization": "Bearer"}
        return KubernetesApi(configuration)

    def cut_watches(self) -> int:
        """End every watch under way without a word; how many there were."""
        with self._lock:
            open_now, self._watching = list(self._watching), set()
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(open_now)

    # ---- one request -------------------------------------------------------------------------------------------------

    def serve(self, request: BaseHTTPRequestHandler, upstream: urllib3.PoolManager) -> None:
        method, path = request.command, request.path
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length) if length else None
        fault = self._fault(method, path)
        if fault is not None:
            time.sleep(fault.late_s)
            if fault.status is not None:
                self.seen.append((method, path, fault.status))
                if fault.status == 410 and watches(method, path):
                    return self._gone_in_the_middle(request)
                return self._refuse(request, fault)
            if fault.cut == "before":
                return self._cut(request)
        if self.held is not None and writes(method, path):
            self.held.wait(20.0)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in ("authorization", "content-type", "accept", "user-agent")
        }
        url = f"https://127.0.0.1:{self.server.port}{path}"
        try:
            answer = upstream.request(method, url, body=body, headers=headers, preload_content=False, timeout=60.0)
        except urllib3.exceptions.HTTPError:
            return self._cut(request)
        self.seen.append((method, path, answer.status))
        if fault is not None and fault.cut == "after":
            answer.read()
            answer.release_conn()
            return self._cut(request)
        if watches(method, path) and answer.status == 200:
            return self._stream(request, answer)
        content = answer.read()
        answer.release_conn()
        with contextlib.suppress(OSError):
            self._answer(request, answer.status, content)

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.hits < fault.times and fault.match(method, path):
                    fault.hits += 1
                    return fault
        return None

    def _refuse(self, request: BaseHTTPRequestHandler, fault: Fault) -> None:
        status = {"kind": "Status", "code": fault.status, "message": f"made to fail with {fault.status}"}
        extra = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        with contextlib.suppress(OSError):
            self._answer(request, fault.status or 500, json.dumps(status).encode(), extra)

    def _gone_in_the_middle(self, request: BaseHTTPRequestHandler) -> None:
        """As an API server says it: in the stream of a watch that began well."""
        event = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
        with contextlib.suppress(OSError):
            self._answer(request, 200, json.dumps(event).encode() + b"\n")

    def _answer(
        self, request: BaseHTTPRequestHandler, status: int, content: bytes, extra: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        for name, value in (extra or {}).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)

    def _cut(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)

    def _stream(self, request: BaseHTTPRequestHandler, answer: urllib3.BaseHTTPResponse) -> None:
        request.close_connection = True
        with self._lock:
            self._watching.add(request.connection)
        try:
            request.send_response(200)
            request.send_header("Content-Type", "application/json")
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            request.wfile.flush()
            while chunk := answer.read1(65536):
                request.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                request.wfile.flush()
            request.wfile.write(b"0\r\n\r\n")
        except (OSError, urllib3.exceptions.HTTPError):
            pass
        finally:
            with self._lock:
                self._watching.discard(request.connection)
            with contextlib.suppress(OSError, AttributeError):
                answer.connection.sock.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
            answer.close()
