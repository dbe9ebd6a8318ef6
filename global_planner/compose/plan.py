"""What is composed out of a topology, file by file. Pure.

    topology ─┬─► control DGD: frontend (our router, or Dynamo's with its GlobalRouter), arbiter
              ├─► one DGD a pool (or a prefill/decode pair): engines, their local router, the planner
              ├─► ConfigMaps: the topology as it will run, planner configurations, profiles, router configuration
              └─► adapters, Services, NetworkPolicies, the journal's volume, the arbiter's account, tokens

The arbiter runs in a process of its own there, and the planners report to it over HTTP: every value that was written down
once in the topology is written out where it is needed, and nowhere by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from global_planner.compile import rules_in_force
from global_planner.compose.components import control_dgd, pool_dgds
from global_planner.compose.configurations import as_yaml, config_maps, profile_data
from global_planner.compose.engines import Front
from global_planner.compose.manifests import Manifest, scaling_adapter
from global_planner.compose.network import policies, services
from global_planner.compose.options import JOURNAL, PROFILES, ComposeError, ComposeOptions, Curves, digest
from global_planner.compose.rights import account, tokens
from global_planner.compose.settle import problems_of, settle
from global_planner.config import Topology
from global_planner.topology_checks import check
from global_planner.topology_draft import draft_of
from pool_planner.performance.profile import Profile

__all__ = ["ComposeError", "ComposeOptions", "Front", "compose"]


def compose(topology: Topology, profiles: Mapping[str, Profile], options: ComposeOptions) -> Mapping[str, str]:
    """File name -> text; `tokens.yaml` holds secrets. `profiles` by pool name. Every configuration in them was read back by
    whoever will read it. Raises ComposeError, and ValueError of those readers."""
    settled = settle(topology, options)
    problems = list(problems_of(settled, options))
    if problems:
        raise ComposeError("\n".join(problems))
    data: dict[str, Curves] = {pool.name: profile_data(profiles[pool.name]) for _, pool in settled.placed_pools()}
    placed = settled.model_copy(
        update={
            "groups": tuple(
                group.model_copy(
                    update={
                        "pools": tuple(
                            pool.model_copy(update={"profile": f"{PROFILES}/{digest(data[pool.name])}"}) for pool in group.pools
                        )
                    }
                )
                for group in settled.groups
            )
        }
    )
    # The composed topology is one: whoever reads it in the cluster must find nothing wrong with it.
    wrong = check(draft_of(placed), {})
    if wrong:
        raise ComposeError("\n".join(f"the topology as composed: {problem}" for problem in wrong))
    files: dict[str, Sequence[Manifest]] = {
        "config.yaml": list(config_maps(placed, profiles, options, data)),
        "rights.yaml": list(account(placed, options)),
        "control.yaml": [_journal(placed, options), control_dgd(placed, options, data)],
        "network.yaml": [*services(placed, options), *policies(placed, options)],
        "adapters.yaml": list(_adapters(placed, options)),
        "tokens.yaml": list(tokens(placed, options)),
    }
    for name, manifest in pool_dgds(placed, options, data):
        files[f"pool-{name}.yaml"] = [manifest]
    out = {name: "---\n".join(as_yaml(manifest) for manifest in manifests) for name, manifests in files.items()}
    out["kustomization.yaml"] = as_yaml(
        {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": sorted(files)}
    )
    return out


def _adapters(topology: Topology, options: ComposeOptions) -> Iterator[Manifest]:
    rules = rules_in_force(topology)
    for group, pool in topology.placed_pools():
        where = topology.namespace_of(group)
        minimum = rules[pool.name].minimum
        yield scaling_adapter(options.api_version, pool.dgd_name, where, pool.component_name, minimum)


def _journal(topology: Topology, options: ComposeOptions) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": JOURNAL, "namespace": topology.cluster.namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": options.storage}}},
    }
