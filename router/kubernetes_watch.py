"""[I/O] Watches the EndpointSlices of one Kubernetes service.

List, then watch from the list's version; a watch that ends goes on from the last version seen, and one that is too old (410)
starts with a new list. Credentials are those of the pod, or of the kubeconfig, read anew for each list: a pod's token expires.
Clusters before 1.21 serve only v1beta1.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from router.config_pools import DiscoveryConfig
from router.slices import Slices
from router.types import EndpointSpec

WATCH_S = 240
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0)
MAX_LINE = 16 * 1024 * 1024
VERSIONS = ("v1", "v1beta1")


class _Gone(Exception):
    """The version to watch from is too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach an API server."""

    url: str
    headers: dict[str, str]
    tls: ssl.SSLContext | bool


def access(kubeconfig: str | None) -> Access:
    """From the pod's service account, else from a kubeconfig. Raises OSError or kubernetes' ConfigException."""
    from kubernetes import client, config

    loaded = client.Configuration()
    if kubeconfig is not None:
        config.load_kube_config(kubeconfig, client_configuration=loaded)
    else:
        config.load_config(client_configuration=loaded)
    tls: ssl.SSLContext | bool = True
    if loaded.host.startswith("https"):
        tls = ssl.create_default_context(cafile=loaded.ssl_ca_cert) if loaded.verify_ssl else ssl._create_unverified_context()
        if loaded.cert_file:
            tls.load_cert_chain(loaded.cert_file, loaded.key_file)
    token = loaded.get_api_key_with_prefix("authorization")
    return Access(url=loaded.host, headers={"authorization": token} if token else {}, tls=tls)


async def watch(
    config: DiscoveryConfig,
    *,
    found: Callable[[Sequence[EndpointSpec]], None],
    failed: Callable[[str], None],
    wanted: Callable[[], bool],
) -> None:
    """Tell `found` of every change as long as it is `wanted`, and `failed` when the API server cannot be asked."""
    from kubernetes.config.config_exception import ConfigException

    assert config.service is not None
    service, _, port = config.service.partition(":")
    namespace, _, name = service.rpartition("/")
    slices = Slices(port, config.scheme)
    failures = 0
    while wanted():
        try:
            to = await asyncio.to_thread(access, config.kubeconfig)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_S + 30)
            async with aiohttp.ClientSession(headers=to.headers, timeout=timeout, read_bufsize=1 << 20) as session:
                one = _Service(session, to, namespace or "default", name)
                version = await one.list(slices)
                found(slices.endpoints())
                failures = 0
                while wanted():
                    version = await one.watch(slices, version, lambda: found(slices.endpoints()))
        except _Gone:
            continue
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, ConfigException) as error:
            failed(f"EndpointSlices of {namespace}/{name}: {type(error).__name__}: {error}")
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1


class _Service:
    def __init__(self, session: aiohttp.ClientSession, to: Access, namespace: str, name: str) -> None:
        self._session = session
        self._to = to
        self._namespace = namespace
        self._query = {"labelSelector": f"kubernetes.io/service-name={name}"}
        self._version = VERSIONS[0]

    def _url(self, version: str) -> str:
        return f"{self._to.url}/apis/discovery.k8s.io/{version}/namespaces/{self._namespace}/endpointslices"

    async def list(self, slices: Slices) -> str:
        """Fill `slices`; the version to watch from."""
        for version in VERSIONS:
            async with self._session.get(self._url(version), params=self._query, ssl=self._to.tls) as answer:
                if answer.status == 404 and version != VERSIONS[-1]:
                    continue
                answer.raise_for_status()
                listed = await answer.json()
            self._version = version
            slices.replace(listed.get("items") or ())
            return str(listed["metadata"]["resourceVersion"])
        raise AssertionError("the last version either answers or raises")

    async def watch(self, slices: Slices, version: str, changed: Callable[[], None]) -> str:
        """Follow the changes until the server ends the watch; the version to go on from."""
        query = {**self._query, "watch": "1", "resourceVersion": version, "timeoutSeconds": str(WATCH_S)}
        query["allowWatchBookmarks"] = "true"
        async with self._session.get(self._url(self._version), params=query, ssl=self._to.tls) as answer:
            if answer.status == 410:
                raise _Gone
            answer.raise_for_status()
            rest = b""
            async for piece in answer.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > MAX_LINE:
                    raise ValueError("a watch event without an end")
                for line in lines:
                    version = self._event(json.loads(line), slices, changed) or version
        return version

    @staticmethod
    def _event(event: Any, slices: Slices, changed: Callable[[], None]) -> str | None:
        item = event["object"]
        if event["type"] == "ERROR":
            if item.get("code") == 410:
                raise _Gone
            raise ValueError(f"the watch failed: {item.get('message')}")
        if slices.apply(event["type"], item):
            changed()
        return str(item["metadata"]["resourceVersion"])
