"""The records that the parts of the router exchange about endpoints. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WAKE_EVERY_S = 5.0  # a model at zero is asked for at most so often, however many requests wait
EndpointState = Literal["starting", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """One endpoint as its source names it. `bootstrap_port`: of an SGLang prefill engine (None: the pool's)."""

    id: str
    url: str
    state: EndpointState = "ready"
    bootstrap_port: int | None = None


def url_of(scheme: str, host: str, port: int) -> str:
    """
    >>> url_of("http", "::1", 80)
    'http://[::1]:80'
    """
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
