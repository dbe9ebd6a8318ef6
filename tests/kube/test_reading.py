"""DGDs as they exist, in both shapes: what is read of them, and what is said of those that cannot be read. No server needed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_planner.connectors.component_state import Target, component_state, read_adapter, read_dgd_object, slim_pod
from pool_planner.connectors.dgd import Unreadable, find_component, read_dgd
from pool_planner.connectors.dgd_pods import read_replicas
from pool_planner.connectors.writers import Edits, Writer, foreign, is_person, owner, replica_paths
from pool_planner.types import Role
from tests.kube.manifests import Shape, adapter, dgd

HEAD = {"name": "chat", "namespace": "serving", "resourceVersion": "7", "generation": 3, "uid": "u"}
Change = Callable[[dict[str, Any]], None]


def raw(shape: Shape, workers: dict[str, tuple[int, int]] | None = None, *, nodes: int = 1) -> dict[str, Any]:
    made = dgd("chat", shape, workers or {"prefill": (2, 1), "decode": (3, 4)}, nodes=nodes)
    return {**made, "metadata": {**made["metadata"], **HEAD}}


def part(body: dict[str, Any], role: str) -> dict[str, Any]:
    """The worker of a role, in either shape."""
    spec = body["spec"]
    if "components" in spec:
        return next(item for item in spec["components"] if item["type"] == role)  # type: ignore[no-any-return]
    return next(item for item in spec["services"].values() if item.get("subComponentType") == role)  # type: ignore[no-any-return]


def container(body: dict[str, Any], role: str) -> dict[str, Any]:
    found: dict[str, Any] = part(body, role)["podTemplate"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("shape", ["v1alpha1", "v1beta1"])
def test_both_shapes_say_the_same(shape: Shape) -> None:
    read = read_dgd(raw(shape))
    for role, replicas, gpus in (("prefill", 2, 1), ("decode", 3, 4)):
        found = find_component(read, role, role)  # type: ignore[arg-type]
        assert (found.role, found.replicas, found.gpus_per_replica, found.problem) == (role, replicas, gpus, None)
    assert read_dgd(raw(shape, nodes=2)).components[1].gpus_per_replica == 2


@pytest.mark.parametrize("version", ["v1alpha1", "v1beta1"])
@pytest.mark.parametrize("shape", ["v1alpha1", "v1beta1"])
def test_the_shape_counts_and_not_the_version_under_which_it_is_served(shape: Shape, version: str) -> None:
    """Where no conversion is installed, an API server serves what was written under either version."""
    body = {**raw(shape), "apiVersion": f"nvidia.com/{version}"}
    assert find_component(read_dgd(body), "decode", "decode").gpus_per_replica == 4


def status(shape: Shape, name: str, **said: Any) -> Change:
    def change(body: dict[str, Any]) -> None:
        body["status"] = {("components" if shape == "v1beta1" else "services"): {name: said}}

    return change


UNREADABLE: dict[str, tuple[Shape, Change, str]] = {
    "no replicas": ("v1beta1", lambda body: part(body, "decode").pop("replicas"), "spec.components[2].replicas is None"),
    "replicas in words": (
        "v1alpha1",
        lambda body: part(body, "decode").update(replicas="three"),
        "spec.services.VllmDecodeWorker.replicas is 'three', not a count",
    ),
    "a negative number": ("v1beta1", lambda body: part(body, "decode").update(replicas=-1), "replicas is -1, not a count"),
    "a truth": ("v1beta1", lambda body: part(body, "decode").update(replicas=True), "replicas is True, not a count"),
    "no limits": ("v1beta1", lambda body: container(body, "decode").pop("resources"), "has no limit of GPUs"),
    "no GPU among the limits": (
        "v1beta1",
        lambda body: container(body, "decode").update(resources={"limits": {"cpu": "8"}}),
        "has no limit of GPUs, which is unknown and not none",
    ),
    "zero GPUs": (
        "v1alpha1",
        lambda body: part(body, "decode").update(resources={"limits": {"gpu": "0"}}),
        "has no limit of GPUs",
    ),
    "half a GPU": ("v1alpha1", lambda body: part(body, "decode").update(resources={"limits": {"gpu": "500m"}}), "'500m'"),
    "slices": (
        "v1beta1",
        lambda body: container(body, "decode").update(resources={"limits": {"nvidia.com/mig-1g.5gb": "1"}}),
        "slices of a GPU are not counted",
    ),
    "nodes in words": (
        "v1beta1",
        lambda body: part(body, "decode").update(multinode={"nodeCount": "two"}),
        "nodeCount is 'two'",
    ),
    "no nodes": ("v1beta1", lambda body: part(body, "decode").update(multinode={"nodeCount": 0}), "nodeCount is 0"),
    "claims without a status": (
        "v1beta1",
        lambda body: part(body, "decode")["podTemplate"]["spec"].update(resourceClaims=[{"name": "gpus"}]),
        "takes GPUs by resource claims, and its status says no gpusPerReplica yet",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_unknown_and_told_with_its_path(name: str) -> None:
    shape, change, told = UNREADABLE[name]
    body = raw(shape)
    change(body)
    target = Target(namespace="serving", dgd="chat", role="decode", component="decode")
    state = component_state(target, read_dgd_object(body), [], {})
    assert state.unknown is not None and told in state.unknown and state.unknown.startswith("DGD chat in serving: ")


@pytest.mark.parametrize("key", ["gpusPerReplica", "gpusPerEngine"])
def test_claimed_gpus_are_what_status_says(key: str) -> None:
    body = raw("v1beta1")
    part(body, "decode")["podTemplate"]["spec"]["resourceClaims"] = [{"name": "gpus"}]
    status("v1beta1", "decode", **{key: 8})(body)
    assert find_component(read_dgd(body), "decode", "decode").gpus_per_replica == 8


SERVICES: dict[str, tuple[dict[str, Any], Role, str, str]] = {
    # what the services are, the pool's role and component, and the name that is found or the beginning of the complaint
    "type before name": (
        {"prefill": {"subComponentType": "decode"}, "other": {"subComponentType": "prefill"}},
        "prefill",
        "prefill",
        "other",
    ),
    "name where there is no type": (
        {"VllmPrefillWorker": {"componentType": "worker"}},
        "prefill",
        "prefill",
        "VllmPrefillWorker",
    ),
    "name without any type": ({"decode": {}}, "decode", "decode", "decode"),
    "the configured one of two": (
        {"fast": {"subComponentType": "decode"}, "slow": {"subComponentType": "decode"}},
        "decode",
        "slow",
        "slow",
    ),
    "two and none is configured": (
        {"fast": {"subComponentType": "decode"}, "slow": {"subComponentType": "decode"}},
        "decode",
        "decode",
        "!it has 2 decode components (fast, slow): say in the pool's `component` which one is meant",
    ),
    "a configured one of another type": (
        {"fast": {"subComponentType": "decode"}},
        "prefill",
        "fast",
        "!component 'fast' is of type decode, and the pool is prefill",
    ),
    "aggregated": ({"VllmWorker": {"componentType": "worker"}}, "agg", "agg", "VllmWorker"),
    "aggregated, written as a lone decode worker": (
        {"Frontend": {"componentType": "frontend"}, "VllmDecodeWorker": {"subComponentType": "decode"}},
        "agg",
        "agg",
        "VllmDecodeWorker",
    ),
    "none": (
        {"Frontend": {"componentType": "frontend"}},
        "decode",
        "decode",
        "!it has no decode component that could be 'decode' (has: Frontend (no worker))",
    ),
}


@pytest.mark.parametrize("name", SERVICES)
def test_components_are_found_by_type_first_and_name_second(name: str) -> None:
    services, role, component, expected = SERVICES[name]
    body = {"apiVersion": "nvidia.com/v1alpha1", "metadata": HEAD, "spec": {"services": services}}
    if expected.startswith("!"):
        with pytest.raises(Unreadable) as caught:
            find_component(read_dgd(body), role, component)
        assert str(caught.value) == expected[1:]
    else:
        assert find_component(read_dgd(body), role, component).name == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 99) | st.floats(allow_nan=False) | st.sampled_from(["", "2", "gpu", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "replicas", "limits", "gpu"]), inner),
    max_leaves=6,
)


@given(shape=st.sampled_from(["v1alpha1", "v1beta1"]), data=st.data())
def test_whatever_stands_anywhere_is_read_or_refused_and_never_counts_as_zero_gpus(shape: Shape, data: st.DataObject) -> None:
    body = raw(shape)
    places: list[tuple[Any, Any]] = []

    def walk(at: Any) -> None:
        for key, value in list(at.items()) if isinstance(at, dict) else list(enumerate(at)):
            places.append((at, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(body)
    at, key = data.draw(st.sampled_from(places))
    at[key] = data.draw(json_values)
    found = read_dgd_object(copy.deepcopy(body))
    for role in ("prefill", "decode"):
        target = Target(namespace="serving", dgd="chat", role=role, component=role)  # type: ignore[arg-type]
        state = component_state(target, found, [], {})
        assert state.unknown is not None or ((state.gpus_per_replica or 0) > 0 and state.spec is not None)


# ---- adapters, pods, writers ------------------------------------------------------------------------------------------------


def test_an_adapter_is_the_one_that_is_written_and_its_version_counts() -> None:
    found = read_adapter({**adapter("chat", "decode", 5), "metadata": {**HEAD, "name": "chat-decode", "resourceVersion": "9"}})
    target = Target(namespace="serving", dgd="chat", role="decode", component="decode")
    state = component_state(target, read_dgd_object(raw("v1beta1")), [found], {})
    assert (state.spec, state.adapter_spec, state.version, state.adapter) == (3, 5, "9", "chat-decode")
    assert "cannot be seen" in (component_state(target, read_dgd_object(raw("v1beta1")), None, {}).unknown or "")


def pod(name: str, *, ready: bool = True, ending: bool = False, phase: str = "Running", **labels: str) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-01-01T00:02:00Z"}]
    metadata = {"name": name, "namespace": "serving", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    if ending:
        metadata["deletionTimestamp"] = "2026-01-01T00:03:00Z"
    return {"metadata": metadata, "spec": {"containers": []}, "status": {"phase": phase, "conditions": conditions}}


def test_a_multinode_replica_is_all_its_pods() -> None:
    label = "leaderworkerset.sigs.k8s.io/group-index"
    pods = [pod("a-0", **{label: "0"}), pod("a-0-1", **{label: "0"}), pod("a-1", **{label: "1"})]
    found = read_replicas(pods, nodes=2, workload="LeaderWorkerSet", port=None)
    assert [(item.state, item.pods, item.rank) for item in found] == [
        ("ready", ("a-0", "a-0-1"), 1),
        ("starting", ("a-1",), 0),
    ]
    pods[1] = pod("a-0-1", ending=True, **{label: "0"})
    assert read_replicas(pods, nodes=2, workload="LeaderWorkerSet", port=None)[0].state == "terminating"


def test_pods_that_ended_for_good_hold_nothing() -> None:
    pods = [pod("a", phase="Failed"), pod("b", phase="Succeeded"), pod("c", ending=True), pod("d", ready=False)]
    found = read_replicas(pods, nodes=1, workload="Deployment", port=None)
    assert [(item.id, item.state) for item in found] == [("c", "terminating"), ("d", "starting")]
    assert slim_pod(pods[3]).raw["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    ("manager", "whose"),
    [
        ("global-planner", None),
        ("kubectl-edit", None),
        ("kubectl", None),
        ("manager", None),
        ("OpenAPI-Generator", "OpenAPI-Generator"),
        ("argocd-controller", "argocd-controller"),
        ("kube-controller-manager", "kube-controller-manager"),
        ("kubectlish", "kubectlish"),
    ],
)
def test_who_is_another_controller(manager: str, whose: str | None) -> None:
    found = foreign(Writer(manager=manager, at_unix_s=1.0), ["manager"])
    assert (found and found.manager) == whose
    assert is_person("kubectl-scale") and not is_person("helm")


def test_the_owner_of_a_field_is_who_wrote_it_last_in_maps_and_in_lists() -> None:
    def entry(manager: str, time: str, fields: dict[str, Any]) -> dict[str, Any]:
        return {"manager": manager, "time": time, "fieldsV1": {"f:spec": fields}}

    one = {"f:services": {"f:decode": {"f:replicas": {}}}}
    managed = [entry("early", "2026-01-01T00:00:00Z", one), entry("late", "2026-01-01T00:00:09Z", one)]
    paths = replica_paths("decode", in_list=False)
    found = owner(managed, paths)
    assert found is not None and found.manager == "late"
    assert owner(managed, replica_paths("prefill", in_list=False)) is None
    keyed = [entry("somebody", "2026-01-01T00:00:00Z", {"f:components": {'k:{"name":"decode"}': {"f:replicas": {}}}})]
    whole = [entry("somebody", "2026-01-01T00:00:00Z", {"f:components": {}})]
    for managed in (keyed, whole):
        found = owner(managed, replica_paths("decode", in_list=True))
        assert found is not None and found.manager == "somebody"


def test_an_edit_is_a_person_and_the_third_one_is_a_controller() -> None:
    edits = Edits()
    for round_no in range(3):
        edits = edits.wrote(4, str(10 * round_no))
        edits = edits.saw(3, str(10 * round_no), 60.0 * round_no)  # not there yet
        edits = edits.saw(4, str(10 * round_no + 1), 60.0 * round_no + 1.0)
        assert not edits.fights(60.0 * round_no + 2.0)
        edits = edits.saw(2, str(10 * round_no + 2), 60.0 * round_no + 2.0)
    assert edits.fights(130.0)
    assert not edits.fights(800.0), "ten minutes later it is forgotten"
