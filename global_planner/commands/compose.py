"""[I/O] compose: the manifests of a whole hierarchical deployment, written into a folder."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import yaml

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--topology", "topology_path", type=_FILE, required=True, help="The deployment: budget, groups, pools.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write; made when absent."
)
@click.option(
    "--front", type=click.Choice(["router", "global-router"]), default="router", show_default=True,
    help="Our router before engines that answer HTTP, or Dynamo's own GlobalRouter, configured from the pools' curves.",
)  # fmt: skip
@click.option(
    "--api-version", type=click.Choice(["v1beta1", "v1alpha1"]), default="v1beta1", show_default=True,
    help="Of the DynamoGraphDeployments.",
)  # fmt: skip
@click.option("--namespace", show_default="the topology's", help="Where the control plane goes, and pools without their own.")
@click.option(
    "--backend", type=click.Choice(["vllm", "sglang", "trtllm", "mocker"]), show_default="the planners', or vllm",
    help="Of the engines.",
)  # fmt: skip
@click.option("--image", default="global-planner:latest", show_default=True, help="Ours: arbiter, planners, router.")
@click.option("--engine-image", show_default="the backend's", help="Of the engines; pin a version.")
@click.option("--engine-args", default="", metavar="TEXT", help="More arguments of every engine.")
@click.option("--dynamo-image", show_default="the Dynamo runtime's", help="Of Dynamo's frontend and routers (global-router).")
@click.option(
    "--gpu-label", default="", metavar="LABEL", help="Node label whose value is the GPU type: pools select their nodes."
)
@click.option("--prometheus", metavar="URL", help="That scrapes Dynamo's routers; needed with --front global-router.")
@click.option(
    "--see-nodes", is_flag=True,
    help="Let the arbiter list nodes and all pods (a ClusterRole), so that nothing grows that no node has room for. "
    "Not with a cluster autoscaler: it makes nodes for replicas that wait.",
)  # fmt: skip
@click.option("--storage", default="1Gi", show_default=True, help="Size of the journal's volume.")
def compose(
    topology_path: Path,
    out: Path,
    front: Any,
    api_version: Any,
    namespace: str | None,
    backend: Any,
    image: str,
    engine_image: str | None,
    engine_args: str,
    dynamo_image: str | None,
    gpu_label: str,
    prometheus: str | None,
    see_nodes: bool,
    storage: str,
) -> None:
    """Write the full set for a hierarchical deployment: nothing is assembled by hand.

    One control DGD (frontend, router, arbiter), one DGD a pool (a prefill/decode pair with one `dgd` stays together) with its
    planner, ConfigMaps of planner settings, profiles and router, adapters, Services, NetworkPolicies, the journal's
    volume, the arbiter's account with the fewest verbs, and tokens. Every configuration is read back and checked first.
    Tokens that exist in the folder are kept; everything else is written anew.

    \b
    Examples:
      global-planner compose --topology topology.yaml --out manifests
      global-planner compose --topology topology.yaml --out manifests --front global-router --api-version v1alpha1
      kubectl apply --server-side --dry-run=server -k manifests
    """
    from global_planner.compose import ComposeError, ComposeOptions
    from global_planner.compose import compose as composed
    from global_planner.topology_file import TopologyError, load_profiles, load_topology

    kept = _kept_tokens(out / "tokens.yaml")
    try:
        topology = load_topology(topology_path)
        options = ComposeOptions(
            front=front,
            api_version=api_version,
            namespace=namespace,
            backend=backend,
            image=image,
            engine_image=engine_image,
            engine_args=tuple(shlex.split(engine_args)),
            dynamo_image=dynamo_image,
            gpu_label=gpu_label,
            storage=storage,
            prometheus=prometheus,
            see_nodes=see_nodes,
            token=lambda name: kept.get(name) or secrets.token_urlsafe(32),
        )
        files = composed(topology, load_profiles(topology), options)
    except TopologyError as error:
        click.echo("\n".join(error.problems), err=True)
        sys.exit(2)
    except (ComposeError, ValueError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in sorted(_written_before(out) - set(files)):
            (out / name).unlink(missing_ok=True)
        for name, text in files.items():
            _write(out / name, text, private=name == "tokens.yaml")
    except OSError as error:
        click.echo(f"error: {out} cannot be written: {error}", err=True)
        sys.exit(1)
    pools = sum(1 for _ in topology.placed_pools())
    dgds = sum(1 for name in files if name.startswith("pool-"))
    click.echo(f"{out}: 1 control DGD, {dgds} pool DGDs with {pools} pools, {len(files)} files; tokens.yaml holds secrets")
    click.echo(f"look at it: kubectl diff -k {out}; try it: kubectl apply --server-side --dry-run=server -k {out}")


def _write(path: Path, text: str, *, private: bool) -> None:
    mode = 0o600 if private else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.fchmod(descriptor, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _written_before(out: Path) -> set[str]:
    """The manifests of an earlier run."""
    try:
        listed = yaml.safe_load((out / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        listed = []
    names = {name for name in listed if isinstance(name, str) and "/" not in name}
    return names | {path.name for path in out.glob("pool-*.yaml")}


def _kept_tokens(path: Path) -> dict[str, str]:
    """Those of an earlier run: to write others would lock out whoever runs with them."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    tokens = [document["stringData"] for document in documents if isinstance(document, dict) and "stringData" in document]
    return {str(name): str(token) for each in tokens for name, token in dict(each).items()}
