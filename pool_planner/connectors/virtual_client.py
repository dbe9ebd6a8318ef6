"""[I/O] The outside system's side of `environment: virtual`: fetch decisions, execute them, say when that is done.

    client = VirtualClient("http://127.0.0.1:8090")
    client.report({"VllmPrefillWorker": 1, "VllmDecodeWorker": 2})       # what there is, once at the beginning
    while True:
        decision = client.wait(after=0)
        if decision is not None:
            execute(decision.replicas)
            client.complete(decision)

Only the standard library is needed, and every call blocks: it is made for scripts.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping

from pool_planner.connectors.virtual_book import Decision, Superseded
from pool_planner.types import ClusterUnavailable


class VirtualClient:
    """The planner at `url`. Every method raises ClusterUnavailable, naming the URL; `timeout_s` bounds one call."""

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 5.0) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        self._timeout_s = timeout_s

    def wait(self, *, after: int = 0, wait_s: float = 30.0) -> Decision | None:
        """The open decision with an id above `after`, as soon as there is one; None after `wait_s` seconds."""
        status, body = self._call("GET", f"/v1/decision?after={after}&wait_s={wait_s:g}", None, wait_s)
        return None if status == 204 else Decision(**json.loads(body))

    def complete(self, decision: Decision, replicas: Mapping[str, int] | None = None) -> None:
        """The decision was executed; `replicas`: what there is now, where that is not what was decided. Raises Superseded
        when the planner has gone on to another one."""
        body = {} if replicas is None else {"replicas": dict(replicas)}
        self._call("POST", f"/v1/decisions/{decision.id}/complete", body)

    def report(self, replicas: Mapping[str, int]) -> None:
        """What there is now, by pool."""
        self._call("PUT", "/v1/replicas", {"replicas": dict(replicas)})

    def _call(self, method: str, path: str, body: object, wait_s: float = 0.0) -> tuple[int, bytes]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=content, method=method, headers=self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s + wait_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            said = error.read()[:500].decode(errors="replace")
            if error.code == 409:
                raise Superseded(said) from error
            raise ClusterUnavailable(f"{self._url}{path}: HTTP {error.code}: {said}") from error
        except OSError as error:
            raise ClusterUnavailable(f"{self._url}{path}: {error}") from error
