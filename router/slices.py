"""What Kubernetes says of a service's endpoints: EndpointSlices, folded into the endpoints of a pool. Pure.

A service has several slices, and each event is about one of them. An address that terminates is drained, one that is not ready
is starting; an absent condition counts as ready, as the API documents it. The same address in two slices (while it moves from
one to the other) counts once, in its better state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from router.types import EndpointSpec, EndpointState

_RANK: Mapping[EndpointState, int] = {"draining": 0, "starting": 1, "ready": 2}
BOOTSTRAP = "bootstrap"


class Slices:
    """The slices of one service. `port`: a port's name or number ("" where a slice has only one)."""

    def __init__(self, port: str, scheme: str) -> None:
        self._port = port
        self._scheme = scheme
        self._slices: dict[str, Mapping[str, Any]] = {}

    def replace(self, items: Iterable[Mapping[str, Any]]) -> None:
        """The whole list."""
        self._slices = {_name(item): item for item in items}

    def apply(self, kind: str, item: Mapping[str, Any]) -> bool:
        """A watch event (ADDED, MODIFIED, DELETED; others say nothing); whether it was one."""
        if kind == "DELETED":
            self._slices.pop(_name(item), None)
        elif kind in ("ADDED", "MODIFIED"):
            self._slices[_name(item)] = item
        else:
            return False
        return True

    def endpoints(self) -> tuple[EndpointSpec, ...]:
        """Endpoints by id (the pod's name, where the slice tells it, else the address)."""
        found: dict[str, EndpointSpec] = {}
        for item in self._slices.values():
            ports = item.get("ports") or ()
            port = _port(ports, self._port)
            if port is None:
                continue
            bootstrap = next((one["port"] for one in ports if one.get("name") == BOOTSTRAP and one.get("port")), None)
            for endpoint in item.get("endpoints") or ():
                state = _state(endpoint.get("conditions") or {})
                for address in (endpoint.get("addresses") or ())[:1]:
                    # All addresses of an endpoint are the same pod, and consumers should use the first.
                    name = (endpoint.get("targetRef") or {}).get("name") or address
                    host = f"[{address}]" if ":" in address else address
                    spec = EndpointSpec(id=name, url=f"{self._scheme}://{host}:{port}", state=state, bootstrap_port=bootstrap)
                    known = found.get(name)
                    if known is None or _RANK[known.state] < _RANK[state]:
                        found[name] = spec
        return tuple(found[name] for name in sorted(found))


def _name(item: Mapping[str, Any]) -> str:
    return str((item.get("metadata") or {}).get("name"))


def _port(ports: Iterable[Mapping[str, Any]], wanted: str) -> int | None:
    numbered = [one for one in ports if one.get("port")]
    if not wanted:
        return int(numbered[0]["port"]) if len(numbered) == 1 else None
    for one in numbered:
        if wanted in (one.get("name"), str(one["port"])):
            return int(one["port"])
    return None


def _state(conditions: Mapping[str, Any]) -> EndpointState:
    if conditions.get("terminating"):
        return "draining"
    return "starting" if conditions.get("ready") is False else "ready"
