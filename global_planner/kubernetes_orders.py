"""[I/O] What operators set at run time, in one ConfigMap of the cluster: a record is a key. What the records are is
`control_store`'s.

Rounds read what is watched and make no call; commands read and write the ConfigMap itself, one key at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from global_planner.control_store import ControlStore
from global_planner.ports import Controls
from pool_planner.connectors.dgd_write import MERGE_PATCH, Request
from pool_planner.connectors.kubernetes_api import KubernetesApi, NotFound
from pool_planner.connectors.kubernetes_watch import Watched

MANAGER = "global-planner-operators"
DEADLINE_S = 5.0


class KubernetesOrders(ControlStore):
    """The orders of one deployment, in ConfigMap `name` of `namespace`. `watch` keeps them at hand for rounds."""

    def __init__(self, api: KubernetesApi, *, namespace: str, name: str) -> None:
        self._api, self._namespace, self._name = api, namespace, name
        self._watched: Watched[Mapping[str, str]] | None = None

    def watch(self) -> None:
        self._watched = Watched(
            self._api,
            f"/api/v1/namespaces/{self._namespace}/configmaps",
            resource="configmaps",
            read=lambda raw: dict(raw.get("data") or {}),
            group=lambda data: None,
            selector=f"metadata.name={self._name}",
        )
        self._watched.start()

    def close(self) -> None:
        if self._watched is not None:
            self._watched.close()

    def list_again(self, timeout_s: float) -> bool:
        """Read them from anew; False when that did not succeed in time."""
        return self._watched is None or self._watched.list_again(timeout_s)

    async def controls(self) -> Controls:
        """As they were last seen. Raises ClusterUnavailable when nobody can say any more."""
        return self.read()

    def texts(self) -> Iterator[tuple[str, str, bytes]]:
        place = f"ConfigMap {self._name} in {self._namespace}"
        for key, text in sorted(self._data().items()):
            yield key.removesuffix(".json"), f"{place}: {key}", text.encode()

    def put(self, name: str, content: bytes) -> None:
        data = {f"{name}.json": content.decode()}
        try:
            self._send("PATCH", f"{self._path}/{self._name}", MERGE_PATCH, {"data": data}, "patch")
        except NotFound:
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": self._name, "namespace": self._namespace},
                "data": data,
            }
            self._send("POST", self._path, "application/json", body, "create")

    def remove(self, name: str) -> bool:
        key = f"{name}.json"
        if key not in self._read_now():
            return False
        self._send("PATCH", f"{self._path}/{self._name}", MERGE_PATCH, {"data": {key: None}}, "patch")
        return True

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps"

    def _data(self) -> Mapping[str, str]:
        if self._watched is None:
            return self._read_now()
        self._watched.check()
        return next(iter(self._watched.items()), {})

    def _read_now(self) -> Mapping[str, str]:
        try:
            found = self._api.get(f"{self._path}/{self._name}", resource="configmaps", deadline_s=DEADLINE_S)
        except NotFound:
            return {}
        data: Mapping[str, str] = found.get("data") or {}
        return data

    def _send(self, method: str, path: str, content_type: str, body: Any, verb: str) -> None:
        request = Request(
            method=method,
            path=path,
            content_type=content_type,
            body=body,
            verb=verb,
            resource="configmaps",
            namespace=self._namespace,
        )
        self._api.send(request, manager=MANAGER, deadline_s=DEADLINE_S)
