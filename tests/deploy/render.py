"""As much of kustomize as deploy/ uses: resources, components, a namespace, labels, ConfigMaps from files, and JSON patches
that append. What it does not know it refuses, so that a manifest cannot use more than is rendered here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "components",
    "labels",
    "generatorOptions",
    "configMapGenerator",
    "patches",
}
CLUSTER_WIDE = {"Namespace", "ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def render(folder: Path, *components: Path) -> list[Manifest]:
    """The manifests of a kustomization, with `components` as if it named them."""
    raw = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = set(raw) - KNOWN
    assert not unknown, f"{folder}: {unknown} is not rendered here"
    found: list[Manifest] = []
    for name in raw.get("resources", ()):
        path = folder / name
        found += render(path) if path.is_dir() else [each for each in yaml.safe_load_all(path.read_text()) if each]
    for generator in raw.get("configMapGenerator", ()):
        data = {Path(file).name: (folder / file).read_text() for file in generator["files"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})
    for component in (*(folder / name for name in raw.get("components", ())), *components):
        added = yaml.safe_load((component / "kustomization.yaml").read_text())
        assert not set(added) - {"apiVersion", "kind", "resources", "patches"}, component
        for name in added.get("resources", ()):
            found += yaml.safe_load_all((component / name).read_text())
        for patch in added.get("patches", ()):
            _patch(found, patch)
    for manifest in found:
        if "namespace" in raw:
            _place(manifest, raw["namespace"])
        for label in raw.get("labels", ()):
            manifest["metadata"].setdefault("labels", {}).update(label["pairs"])
    return found


def _place(manifest: Manifest, namespace: str) -> None:
    if manifest["kind"] == "Namespace":
        manifest["metadata"]["name"] = namespace
    elif manifest["kind"] not in CLUSTER_WIDE:
        manifest["metadata"]["namespace"] = namespace
    for subject in manifest.get("subjects", ()):
        subject["namespace"] = namespace


def _patch(found: list[Manifest], patch: Manifest) -> None:
    target = patch["target"]
    for manifest in found:
        if manifest["kind"] == target["kind"] and re.fullmatch(target["name"], manifest["metadata"]["name"]):
            for operation in yaml.safe_load(patch["patch"]):
                assert (operation["op"], operation["path"][-2:]) == ("add", "/-"), operation
                place: Any = manifest
                for part in operation["path"].removeprefix("/").split("/")[:-1]:
                    place = place[part]
                place.append(operation["value"])
