"""[I/O] init: a topology out of a cluster's DGDs. It reads, and needs no Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--from-cluster", is_flag=True, required=True, help="Read the DGDs and adapters of a Kubernetes cluster.")
@click.option("-o", "--out", default="-", show_default=True, metavar="FILE", help="Where to write; - is standard output.")
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="NS", show_default="all that may be listed",
    help="Only these namespaces. Repeatable.",
)  # fmt: skip
@click.option("--name", default="production", show_default=True, help="Of the topology.")
@click.option("--kubeconfig", show_default="the pod's account, else $KUBECONFIG or ~/.kube/config", help="How to reach it.")
@click.option("--context", show_default="the current one", help="Of the kubeconfig.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def init(
    from_cluster: bool,
    out: str,
    namespaces: tuple[str, ...],
    name: str,
    kubeconfig: str | None,
    context: str | None,
    force: bool,
) -> None:
    """Write a topology from what runs in a cluster: DGDs in either version, and their scaling adapters.

    Read-only: it lists, and changes nothing. The budget it writes is what is charged now, and the mode is `observe`: nothing
    would happen before you say so. What could not be read is said, is left out, and stays as it is.

    \b
    Examples:
      global-planner init --from-cluster -o topology.yaml
      global-planner init --from-cluster --namespace prod --namespace staging -o topology.yaml
    """
    from global_planner.cluster_topology import as_yaml, read_cluster
    from pool_planner.connectors.kubernetes_api import connect
    from pool_planner.types import ClusterUnavailable

    path = Path(out)
    if out != "-" and path.exists() and not force:
        click.echo(f"error: {out} exists; --force replaces it", err=True)
        sys.exit(2)
    try:
        api = connect(kubeconfig=kubeconfig, context=context)
        reading = read_cluster(*_listed(api, namespaces))
        text = as_yaml(reading, name=name)
    except ClusterUnavailable as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    if out == "-":
        click.echo(text, nl=False)
    else:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            click.echo(f"error: {out} cannot be written: {error.strerror}", err=True)
            sys.exit(1)
    dgds = len({(pool.namespace, pool.dgd) for pool in reading.pools})
    charged = ", ".join(f"{count} {gpu_type}" for gpu_type, count in sorted(reading.charged().items()))
    click.echo(f"{len(reading.pools)} pools in {dgds} DGDs, GPUs charged: {charged}", err=True)
    for sentence in reading.unread:
        click.echo(f"could not be read, stays as it is: {sentence}", err=True)


def _listed(api: Any, namespaces: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(DGDs, adapters), each in the first version that is served and understood. Raises ClusterUnavailable."""
    from pool_planner.connectors.dgd import ADAPTER_PLURAL, DGD_PLURAL, GROUP, READABLE_VERSIONS
    from pool_planner.connectors.kubernetes_api import NotFound
    from pool_planner.types import ClusterUnavailable

    found: dict[str, list[dict[str, Any]]] = {}
    for plural in (DGD_PLURAL, ADAPTER_PLURAL):
        for version in READABLE_VERSIONS:
            root = f"/apis/{GROUP}/{version}"
            paths = [f"{root}/namespaces/{namespace}/{plural}" for namespace in namespaces] or [f"{root}/{plural}"]
            try:
                found[plural] = [item for path in paths for item in api.list(path, resource=plural)[0]]
            except NotFound:
                continue
            break
    if DGD_PLURAL not in found:
        raise ClusterUnavailable(f"{api.host} serves no {DGD_PLURAL}.{GROUP}: the Dynamo operator is not installed there")
    return found[DGD_PLURAL], found.get(ADAPTER_PLURAL, [])
