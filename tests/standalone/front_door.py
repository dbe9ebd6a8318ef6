"""A front door that exposes what a router exposes: counters that rise at a rate which the test sets."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "dynamo_component_router_"


class FrontDoor:
    """`rps` per model second; served on a free port until `close`."""

    def __init__(
        self, *, namespace: str, speed: float, rps: float, isl: float = 700.0, osl: float = 60.0, model: str = "m"
    ) -> None:
        self.rps, self._isl, self._osl = rps, isl, osl
        self._namespace, self._model, self._speed = namespace, model, speed
        self._since = time.monotonic()
        self.down = False
        door = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = door.text().encode()
                self.send_response(503 if door.down else 200)
                self.end_headers()
                self.wfile.write(b"" if door.down else body)

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/metrics"

    def text(self) -> str:
        count = (time.monotonic() - self._since) * self._speed * self.rps
        labels = f'{{dynamo_namespace="{self._namespace}",model="{self._model}"}}'
        lines = [f"{PREFIX}requests_started_total{labels} {count}", f"{PREFIX}requests_total{labels} {count}"]
        means = {"input_sequence_tokens": self._isl, "output_sequence_tokens": self._osl}
        means |= {"time_to_first_token_seconds": 1.0, "inter_token_latency_seconds": 0.3, "request_duration_seconds": 20.0}
        for name, mean in means.items():
            lines += [f"{PREFIX}{name}_sum{labels} {count * mean}", f"{PREFIX}{name}_count{labels} {count}"]
        return "\n".join(lines) + "\n"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
