"""[I/O] A topology as a form of the router's configuration: `pool-router --config topology.yaml`.

Registered as an entry point, so that the router need not know topologies (see `router.forms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from global_planner.compile import router_config_of
from global_planner.topology_file import TopologyError, load_profiles, load_topology
from router.config import ConfigError, RouterConfig


def from_topology(raw: Mapping[str, Any], path: Path) -> RouterConfig | None:
    """The router's part of a topology; None: the mapping is none. Raises ConfigError with every problem of the topology."""
    if "groups" not in raw:
        return None
    try:
        topology = load_topology(path)
        return router_config_of(topology, profiles=load_profiles(topology))
    except TopologyError as error:
        raise ConfigError(str(error)) from error
