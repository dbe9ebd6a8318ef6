"""[I/O] Requests to an API server: where it is and who we are from the `kubernetes` client, failures as our three errors.

    WorldError
      Conflict                 409 on a write that carries a version: the object has moved on, nothing was written
      ClusterUnavailable       everything else that went wrong
        Refused                4xx: the server said no, and nothing was written
          Forbidden            403: the text names the verb and the resource that a role must allow
          NotFound             404
          Gone                 410: a watch is too old to go on

Calls block; whoever has an event loop makes them in threads.
"""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

import orjson
import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config
from kubernetes.client.rest import RESTClientObject

from pool_planner.connectors.dgd_write import JSON_PATCH, Request
from pool_planner.types import ClusterUnavailable, Conflict

Access = Literal["auto", "in-cluster", "kubeconfig"]
CALL_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 30.0
BACKOFF_S = 0.1
BACKOFF_MAX_S = 2.0
RETRIED = frozenset({429, 500, 502, 503, 504})
# What the API server says of a JSON patch whose `test` did not hold (a schema violation it tells in its own words).
_BAD_PATCH = "the server rejected our request due to an error in our request"
# A peer that vanished without a word is noticed after 10 + 3 x 5 s, not after the kernel's two hours.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
]


class Refused(ClusterUnavailable):
    """The API server said no; nothing was written."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class Forbidden(Refused):
    """403."""


class NotFound(Refused):
    """404."""


class Gone(Refused):
    """410."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: Any
    retry_after_s: float | None = None


class KubernetesApi:
    """One API server. Safe to use from several threads. `calls` counts requests by verb, for whoever wants to know."""

    def __init__(self, configuration: kubernetes_client.Configuration) -> None:
        configuration.connection_pool_maxsize = 16
        self._configuration = configuration
        self._pool = RESTClientObject(configuration).pool_manager
        self._pool.connection_pool_kw["socket_options"] = _KEEPALIVE
        self._lock = threading.Lock()
        self.calls: dict[str, int] = {}

    @property
    def host(self) -> str:
        return str(self._configuration.host)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def get(self, path: str, *, verb: str = "get", resource: str = "", deadline_s: float = CALL_TIMEOUT_S) -> Any:
        """The object at a path. Retries within `deadline_s`."""
        return self._retried("GET", path, None, None, verb=verb, resource=resource, deadline_s=deadline_s)[0]

    def list(
        self, path: str, *, resource: str, selector: str = "", limit: int = 500, deadline_s: float = LIST_TIMEOUT_S
    ) -> tuple[list[dict[str, Any]], str]:
        """All objects of a collection, consistently, and the version at which they were; in pages of `limit`, each within
        `deadline_s`, retries included."""
        items: list[dict[str, Any]] = []
        following = ""
        while True:
            query = {"limit": str(limit), **({"continue": following} if following else {}), **_selected(selector)}
            page = self.get(f"{path}?{urlencode(query)}", verb="list", resource=resource, deadline_s=deadline_s)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            following = metadata.get("continue") or ""
            if not following:
                kind = {"apiVersion": page.get("apiVersion"), "kind": str(page.get("kind", "")).removesuffix("List")}
                return [{**kind, **item} for item in items], str(metadata.get("resourceVersion", ""))

    def watch(
        self,
        path: str,
        *,
        version: str,
        resource: str,
        selector: str = "",
        timeout_s: float = 300.0,
        opened: Callable[[Any], None] = lambda response: None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The changes of a collection after `version`, as (type, object), bookmarks included; ends after about `timeout_s`.
        `opened` gets the response, so that another thread can close it. Raises Gone when `version` is too old."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(int(timeout_s)),
            **_selected(selector),
        }
        self._count("watch")
        timeout = urllib3.Timeout(connect=CALL_TIMEOUT_S, read=timeout_s + 15.0)
        try:
            response = self._open("GET", f"{path}?{urlencode(query)}", None, None, timeout)
            opened(response)
            if response.status != 200:
                raise _refusal(response.status, _json(response.read()), "watch", resource, path)
            for line in _lines(response):
                event = _json(line)
                if not isinstance(event, Mapping):
                    raise ClusterUnavailable(f"{self.host}{path}: a watch sent what is no event")
                kind, item = str(event.get("type")), event.get("object") or {}
                if kind == "ERROR":
                    raise _refusal(int(item.get("code") or 500), item, "watch", resource, path)
                yield kind, item
        except (urllib3.exceptions.HTTPError, OSError, ssl.SSLError, ValueError, AttributeError) as error:
            # AttributeError: urllib3's way of telling that another thread has closed the response.
            raise ClusterUnavailable(f"{self.host}{path}: watch: {type(error).__name__}: {error}") from error

    # ---- writing -----------------------------------------------------------------------------------------------------

    def send(self, request: Request, *, manager: str, deadline_s: float) -> Any:
        """Make a write and give the answer. Retries 429, 5xx and broken connections with jittered back-off within `deadline_s`.

        Raises Conflict only where certainly nothing was written: a conflict that follows an attempt whose outcome is not known
        may be with that attempt's own success, and is a ClusterUnavailable."""
        path = f"{request.path}?{urlencode({'fieldManager': manager})}"
        try:
            return self._retried(
                request.method,
                path,
                request.content_type,
                orjson.dumps(request.body),
                verb=request.verb,
                resource=request.resource,
                deadline_s=deadline_s,
            )[0]
        except Forbidden as error:
            raise Forbidden(f"{error} (namespace {request.namespace})", 403) from error
        except Refused as error:
            if error.status == 422 and request.content_type == JSON_PATCH and _BAD_PATCH in str(error):
                raise Conflict(f"{request.path}: what the patch is for is not at its place any more") from error
            raise

    def _retried(
        self,
        method: str,
        path: str,
        content_type: str | None,
        body: bytes | None,
        *,
        verb: str,
        resource: str,
        deadline_s: float,
    ) -> tuple[Any, bool]:
        ends, attempt, unsure, last = time.monotonic() + deadline_s, 0, False, ""
        while True:
            left = ends - time.monotonic()
            if left <= 0.0:
                raise ClusterUnavailable(f"{self.host}{_bare(path)}: gave up after {deadline_s:g} s: {last or 'no answer'}")
            wait_s = 0.0
            self._count(verb)
            try:
                answer = self._once(method, path, content_type, body, min(CALL_TIMEOUT_S, left))
            except ClusterUnavailable as error:
                last, unsure = str(error), True
            else:
                if answer.status < 300:
                    return answer.body, unsure
                refusal = _refusal(answer.status, answer.body, verb, resource, path)
                if answer.status == 409 and unsure:
                    raise ClusterUnavailable(f"{refusal}; an earlier attempt of this write may have succeeded")
                if answer.status not in RETRIED:
                    raise refusal
                # 429 is refused before anything happens; after a 5xx nobody knows.
                last, unsure = str(refusal), unsure or answer.status != 429
                wait_s = answer.retry_after_s or 0.0
            attempt += 1
            wait_s = max(wait_s, _jittered(attempt))
            if time.monotonic() + wait_s >= ends:
                raise ClusterUnavailable(f"{last}; gave up after {attempt} attempts")
            time.sleep(wait_s)

    def _once(self, method: str, path: str, content_type: str | None, body: bytes | None, timeout_s: float) -> Answer:
        timeout = urllib3.Timeout(connect=min(2.0, timeout_s), read=timeout_s)
        try:
            response = self._open(method, path, content_type, body, timeout)
            content = response.read()
            response.release_conn()
            return Answer(
                status=response.status,
                body=_json(content) if content else None,
                retry_after_s=_seconds(response.headers.get("Retry-After")),
            )
        except (urllib3.exceptions.HTTPError, OSError, ssl.SSLError, ValueError) as error:
            raise ClusterUnavailable(f"{self.host}{_bare(path)}: {type(error).__name__}: {error}") from error

    def _open(
        self, method: str, path: str, content_type: str | None, body: bytes | None, timeout: urllib3.Timeout
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "global-planner"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        with self._lock:  # a token that is about to expire is renewed here
            authorization = self._configuration.get_api_key_with_prefix("authorization")
        if authorization:
            headers["authorization"] = authorization
        response: urllib3.BaseHTTPResponse = self._pool.request(
            method, self.host + path, body=body, headers=headers, timeout=timeout, retries=False, preload_content=False
        )
        return response

    def _count(self, verb: str) -> None:
        with self._lock:
            self.calls[verb] = self.calls.get(verb, 0) + 1


def connect(*, access: Access = "auto", kubeconfig: str | None = None, context: str | None = None) -> KubernetesApi:
    """The API server of the pod that we are in, or of a kubeconfig. Raises ClusterUnavailable with what is missing."""
    configuration = kubernetes_client.Configuration()
    where = "the service account of this pod"
    try:
        if access != "kubeconfig" and context is None and kubeconfig is None:
            try:
                kubernetes_config.load_incluster_config(client_configuration=configuration)
                return KubernetesApi(configuration)
            except kubernetes_config.ConfigException:
                if access == "in-cluster":
                    raise
        where = f"kubeconfig {kubeconfig or '($KUBECONFIG or ~/.kube/config)'}, context {context or '(the current one)'}"
        kubernetes_config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise ClusterUnavailable(f"no way to the cluster by {where}: {error}") from error
    return KubernetesApi(configuration)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Whole lines as they arrive. `read1` gives what is there; `stream` would wait for a full buffer."""
    rest = b""
    while True:
        chunk = response.read1(65536)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())


def _selected(selector: str) -> dict[str, str]:
    key = "fieldSelector" if selector.startswith("metadata.") else "labelSelector"
    return {key: selector} if selector else {}


def _refusal(status: int, body: Any, verb: str, resource: str, path: str) -> Conflict | ClusterUnavailable:
    told = str(body.get("message") or body.get("reason")) if isinstance(body, Mapping) else str(body)[:200]
    where = _bare(path)
    if status == 409:
        return Conflict(f"{where}: {told}")
    if status == 403:
        return Forbidden(f"not allowed (403): a role must give us the verb {verb!r} on {resource or where}: {told}", status)
    if status == 404:
        return NotFound(f"{where}: not found (404): {told}", status)
    if status == 410:
        return Gone(f"{where}: too old (410): {told}", status)
    return Refused(f"{where}: status {status}: {told}", status)


def _bare(path: str) -> str:
    return path.partition("?")[0]


def _json(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return content[:200].decode(errors="replace")


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None


def _jittered(attempt: int) -> float:
    return random.uniform(0.5, 1.0) * float(min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(attempt - 1, 10)))
