"""The copy of the API server's objects: kept up one by one, merged as a whole list would be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_helper.model import ObjectKey
from node_helper.sources.kubernetes import ObjectCopy
from node_helper.sources.kubernetes_objects import read_object, snapshot_of

VERSIONS = {"Service": "v1", "Pod": "v1", "Node": "v1", "EndpointSlice": "discovery.k8s.io/v1"}


def service(name: str, version: int = 1, **annotations: str) -> dict[str, Any]:
    named = {"name": name, "namespace": "shop", "resourceVersion": str(version), "annotations": annotations}
    return {"metadata": named, "spec": {"ports": [{"port": 80}]}}


def endpoint_slice(name: str, of: str, *addresses: str) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": of} if of else {}
    endpoints = [{"addresses": [address]} for address in addresses]
    return {
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
    }


def node(name: str, address: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}


@pytest.fixture
def objects() -> ObjectCopy:
    return ObjectCopy()


def test_an_object_that_says_the_same_again_is_no_change(objects: ObjectCopy) -> None:
    """A Node's heartbeat, a Service's status: the watch tells of them, planning does not care."""
    assert objects.put("Service", service("web", 1))
    before = objects.snapshot([])
    assert not objects.put("Service", service("web", 2))
    assert objects.snapshot([]) is before
    assert objects.versions[ObjectKey("shop", "web")] == "2"
    assert objects.put("Service", service("web", 3, **{"cmd.nu/tunnel": "198.51.100.1"}))
    assert objects.snapshot([]) is not before


def test_an_object_that_cannot_be_read_leaves_its_last_version_and_a_problem(objects: ObjectCopy) -> None:
    objects.put("Service", service("web"))
    broken = service("web", 2)
    broken["spec"]["ports"] = "many"
    assert objects.put("Service", broken)
    snapshot = objects.snapshot([])
    assert ObjectKey("shop", "web") in snapshot.services
    assert [problem.reason for problem in snapshot.problems] == ["UnreadableObject"]
    assert objects.put("Service", service("web", 3))
    assert objects.snapshot([]).problems == ()


def test_a_slice_that_goes_over_to_another_service_leaves_the_first(objects: ObjectCopy) -> None:
    objects.put("EndpointSlice", endpoint_slice("s", "web", "10.0.0.1"))
    objects.put("EndpointSlice", endpoint_slice("s", "api", "10.0.0.1"))
    assert set(objects.snapshot([]).endpoints) == {ObjectKey("shop", "api")}
    objects.remove("EndpointSlice", {"metadata": {"name": "s", "namespace": "shop"}})
    assert objects.snapshot([]).endpoints == {}


def test_what_was_never_there_may_go(objects: ObjectCopy) -> None:
    for kind in VERSIONS:
        objects.remove(kind, {"metadata": {"name": "x", "namespace": "shop"}})
    assert objects.snapshot([]).services == {}


NAMES = st.sampled_from(["a", "b", "c"])
ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3"]), max_size=3)
CHANGES = st.one_of(
    st.tuples(st.just("Service"), st.builds(service, NAMES, st.integers(1, 9))),
    st.tuples(st.just("Node"), st.builds(node, NAMES, st.sampled_from(["192.0.2.1", "192.0.2.2"]))),
    st.tuples(
        st.just("EndpointSlice"),
        st.builds(
            lambda name, of, found: endpoint_slice(name, of, *found), NAMES, st.sampled_from(["", "a", "b"]), ADDRESSES
        ),
    ),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.booleans(), CHANGES), max_size=20))
def test_one_change_after_the_other_gives_what_a_list_of_all_would(changes: list[tuple[bool, Any]]) -> None:
    objects = ObjectCopy()
    there: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    for goes, (kind, plain) in changes:
        identity = kind, plain["metadata"]["name"]
        if goes:
            objects.remove(kind, copy.deepcopy(plain))
            there.pop(identity, None)
        else:
            objects.put(kind, copy.deepcopy(plain))
            there[identity] = kind, plain
    read = [read_object({**plain, "kind": kind, "apiVersion": VERSIONS[kind]}) for kind, plain in there.values()]
    assert objects.snapshot([]) == snapshot_of([found for found in read if found is not None])
