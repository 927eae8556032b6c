"""Kubernetes objects of right and wrong shapes, and the merging of EndpointSlices."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_helper.model import Endpoint, Node, ObjectKey, Pod, Service, ServicePort
from node_helper.sources.kubernetes_objects import (
    EndpointSlice,
    ObjectError,
    flatten,
    identity_of,
    merged,
    read_object,
    snapshot_of,
)

SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "uid": "3f1c",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {"cmd.nu/tunnel": "198.51.100.7", "other/key": 7},
    },
    "spec": {
        "selector": {"app": "web"},
        "clusterIP": "10.96.0.7",
        "clusterIPs": ["10.96.0.7", "fd00::7"],
        "sessionAffinity": "ClientIP",
        "externalTrafficPolicy": "Local",
        "ports": [
            {"name": "http", "port": 80, "targetPort": "web"},
            {"port": 53, "protocol": "UDP", "targetPort": 5353},
            {"port": 443, "protocol": "TCP"},
            {"port": 132, "protocol": "SCTP"},
        ],
    },
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "web-4", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
    "addressType": "IPv4",
    "endpoints": [
        {
            "addresses": ["10.244.1.5"],
            "nodeName": "worker",
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "name": "web-1", "namespace": "shop", "uid": "u1"},
        },
        {"addresses": ["10.244.1.10"]},
    ],
}
POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
    "spec": {
        "nodeName": "worker",
        "containers": [
            {"name": "a", "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 9090}]},
            {"name": "b", "ports": [{"name": "web", "containerPort": 8081}]},
        ],
        "initContainers": [{"name": "c", "ports": [{"name": "proxy", "containerPort": 15001}]}],
    },
    "status": {"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "fd00::5"}, {"ip": "10.244.1.5"}]},
}
NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "worker.example", "labels": {"node": "tunnel"}},
    "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.10"},
            {"type": "Hostname", "address": "worker.example"},
            {"type": "ExternalIP", "address": "2001:db8::10"},
        ]
    },
}
WEB = ObjectKey("shop", "web")


def changed(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy with one field set; the path has its keys separated by slashes."""
    copy = deepcopy(document)
    place: Any = copy
    *way, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for part in way:
        place = place[part]
    place[last] = value
    return copy


def test_a_service_is_read() -> None:
    assert read_object(SERVICE) == Service(
        key=WEB,
        uid="3f1c",
        created="2026-01-01T00:00:00Z",
        annotations={"cmd.nu/tunnel": "198.51.100.7"},
        selector={"app": "web"},
        ports=(
            ServicePort("http", "tcp", 80, "web"),
            ServicePort("", "udp", 53, 5353),
            ServicePort("", "tcp", 443, 443),
        ),
        client_ip_affinity=True,
        local_traffic_policy=True,
        cluster_ips=(ip_address("10.96.0.7"), ip_address("fd00::7")),
    )


def test_a_service_with_a_name_only_is_read() -> None:
    bare = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "None"}}
    assert read_object(bare) == Service(ObjectKey("default", "web"), "", "", {}, {}, ())


def test_a_pod_is_read() -> None:
    assert read_object(POD) == Pod(
        key=ObjectKey("shop", "web-1"),
        uid="u1",
        node="worker",
        labels={"app": "web"},
        annotations={},
        ips=(ip_address("10.244.1.5"), ip_address("fd00::5")),
        host_network=False,
        ports={"web": 8080, "proxy": 15001},
    )


@pytest.mark.parametrize(("phase", "finished"), [("Pending", False), ("Succeeded", True), ("Failed", True)])
def test_a_pod_that_ended_is_finished(phase: str, finished: bool) -> None:
    pod = read_object(changed(POD, "status/phase", phase))
    assert isinstance(pod, Pod)
    assert pod.finished == finished


def test_a_node_is_read() -> None:
    assert read_object(NODE) == Node(
        "worker.example",
        {"node": "tunnel"},
        (ip_address("192.0.2.10"), ip_address("2001:db8::10")),
        (ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")),
    )


@pytest.mark.parametrize(
    "document",
    [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": 7}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": []},
    ],
)
def test_other_kinds_are_passed_over(document: object) -> None:
    assert read_object(document) is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (7, "object without a name: it is 7, not a Kubernetes object"),
        ({}, "object without a name: kind is missing or no text"),
        ({"kind": "Service"}, "object without a name: apiVersion is missing or no text"),
        (changed(SERVICE, "metadata", None), "Service without a name: metadata.name is missing"),
        (changed(SERVICE, "metadata/name", "../x"), "Service without a name: metadata.name is '../x'"),
        (changed(SERVICE, "metadata/namespace", "a.b"), "Service without a name: metadata.namespace is 'a.b'"),
        (changed(SERVICE, "metadata/uid", 7), "Service shop/web: metadata.uid is 7, not text"),
        (changed(SERVICE, "metadata/annotations", ["x"]), "Service shop/web: metadata.annotations is ['x'], not a map"),
        (
            changed(SERVICE, "metadata/annotations", {"cmd.nu/tunnel": 1}),
            "Service shop/web: metadata.annotations.cmd.nu/tunnel is 1, not text (quote it)",
        ),
        (changed(SERVICE, "spec", "x"), "Service shop/web: spec is 'x', not a mapping"),
        (changed(SERVICE, "spec/selector/app", 1.5), "Service shop/web: spec.selector.app is 1.5, not text"),
        (changed(SERVICE, "spec/selector", {1: "x"}), "Service shop/web: spec.selector has the key 1"),
        (changed(SERVICE, "spec/clusterIPs/1", "x"), "Service shop/web: spec.clusterIPs[1] is 'x', not an IP address"),
        (changed(SERVICE, "spec/sessionAffinity", "Yes"), "spec.sessionAffinity is 'Yes', not one of None, ClientIP"),
        (changed(SERVICE, "spec/ports", {}), "Service shop/web: spec.ports is {}, not a list"),
        (changed(SERVICE, "spec/ports/0", 80), "Service shop/web: spec.ports[0] is 80, not a mapping"),
        (changed(SERVICE, "spec/ports/1/port", "53"), "Service shop/web: spec.ports[1].port is '53', not a number"),
        (changed(SERVICE, "spec/ports/1/port", True), "Service shop/web: spec.ports[1].port is True, not a number"),
        (changed(SERVICE, "spec/ports/1/port", 65536), "spec.ports[1].port is 65536, not a number from 1 to 65535"),
        (changed(SERVICE, "spec/ports/1/targetPort", "80"), "spec.ports[1].targetPort is the text '80'"),
        (changed(SERVICE, "spec/ports/1/targetPort", [1]), "spec.ports[1].targetPort is [1], not a number"),
        (
            changed(SERVICE, "spec/ports/1/protocol", "udp"),
            "spec.ports[1].protocol is 'udp', not one of TCP, UDP, SCTP",
        ),
        (changed(SLICE, "apiVersion", "discovery.k8s.io/v1beta1"), "EndpointSlice shop/web-4: apiVersion is"),
        (changed(SLICE, "addressType", None), "EndpointSlice shop/web-4: addressType is missing, not one of IPv4"),
        (changed(SLICE, "addressType", "IPv6"), "endpoints[0].addresses[0] is 10.244.1.5, which is not of the slice's"),
        (changed(SLICE, "endpoints/1/addresses", []), "EndpointSlice shop/web-4: endpoints[1].addresses is empty"),
        (changed(SLICE, "endpoints/0/addresses/0", 5), "endpoints[0].addresses[0] is 5, not text"),
        (changed(SLICE, "endpoints/0/conditions/ready", "True"), "conditions.ready is 'True', not true or false"),
        (changed(SLICE, "endpoints/0/targetRef", []), "EndpointSlice shop/web-4: endpoints[0].targetRef is []"),
        (changed(POD, "spec/containers/0/ports/0/containerPort", None), "containers[0].ports[0].containerPort is miss"),
        (changed(POD, "status/podIPs/0/ip", "10.1"), "Pod shop/web-1: status.podIPs[0].ip is '10.1', not an IP add"),
        (changed(NODE, "spec/podCIDRs/1", "fd00::/200"), "Node worker.example: spec.podCIDRs[1] is 'fd00::/200', not"),
    ],
)
def test_a_wrong_shape_names_the_object_and_the_field(document: object, message: str) -> None:
    with pytest.raises(ObjectError) as raised:
        read_object(document)
    assert message in str(raised.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


def _paths(document: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(document, dict):
        inner = list(document.items())
    elif isinstance(document, list):
        inner = list(enumerate(document))
    return [path, *(way for name, value in inner for way in _paths(value, (*path, name)))]


@given(st.sampled_from([SERVICE, SLICE, POD, NODE]), st.data(), PLAIN)
def test_anything_anywhere_in_an_object_is_read_or_refused(
    document: object, data: st.DataObject, value: object
) -> None:
    way = data.draw(st.sampled_from(_paths(document)))
    copy: Any = {"it": deepcopy(document)}
    place: Any = copy
    for part in ("it", *way)[:-1]:
        place = place[part]
    place[("it", *way)[-1]] = value
    with suppress(ObjectError):
        for _, item in flatten(copy["it"]):
            found = read_object(item)
            if found is not None:
                identity_of(found)
                snapshot_of([found])


class TestLists:
    def test_lists_are_flattened_with_the_way_to_each_item(self) -> None:
        inner = {"kind": "List", "items": [POD]}
        document = {"apiVersion": "v1", "kind": "List", "items": [SERVICE, inner]}
        assert list(flatten(document)) == [(("items", 0), SERVICE), (("items", 1, "items", 0), POD)]

    def test_items_of_a_typed_list_get_its_kind(self) -> None:
        item = {key: value for key, value in SERVICE.items() if key not in ("kind", "apiVersion")}
        ((_, found),) = flatten({"apiVersion": "v1", "kind": "ServiceList", "items": [item]})
        assert read_object(found) == read_object(SERVICE)

    def test_an_empty_document_has_no_objects(self) -> None:
        assert list(flatten(None)) == []
        assert list(flatten({"kind": "List", "items": None})) == []

    def test_a_list_that_contains_itself_is_refused(self) -> None:
        endless: dict[str, Any] = {"kind": "List"}
        endless["items"] = [endless]
        with pytest.raises(ObjectError, match="is no list of objects"):
            list(flatten(endless))


def slice_of(name: str, version: int, *endpoints: dict[str, Any], service: str | None = "web") -> EndpointSlice:
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": {} if service is None else {"kubernetes.io/service-name": service},
        },
        "addressType": f"IPv{version}",
        "endpoints": list(endpoints),
    }
    found = read_object(document)
    assert isinstance(found, EndpointSlice)
    return found


def member(address: str, pod: str = "", uid: str = "", **conditions: object) -> dict[str, Any]:
    reference = {"kind": "Pod", "name": pod, **({"uid": uid} if uid else {})} if pod else None
    return {"addresses": [address], "targetRef": reference, "conditions": conditions, "nodeName": None}


def endpoint(*addresses: str, pod: str = "", ready: bool = True, serving: bool = True, ends: bool = False) -> Endpoint:
    key = ObjectKey("shop", pod) if pod else None
    return Endpoint(tuple(map(ip_address, addresses)), key, "", ready, serving, ends)


class TestEndpoints:
    @pytest.mark.parametrize(
        ("conditions", "ready", "serving", "terminating"),
        [
            ({}, True, True, False),
            ({"ready": None, "serving": None, "terminating": None}, True, True, False),
            ({"ready": False}, False, False, False),
            ({"ready": False, "serving": True, "terminating": True}, False, True, True),
        ],
    )
    def test_absent_conditions_have_kubernetes_defaults(
        self, conditions: dict[str, Any], ready: bool, serving: bool, terminating: bool
    ) -> None:
        (found,) = merged([slice_of("a", 4, member("10.0.0.1", **conditions))])[WEB]
        assert (found.ready, found.serving, found.terminating) == (ready, serving, terminating)

    @pytest.mark.parametrize("uid", ["", "u1"])
    def test_slices_of_both_versions_are_one_endpoint_per_pod(self, uid: str) -> None:
        slices = [
            slice_of("six", 6, member("fd00::9", "web-9", uid), member("fd00::8", "web-8")),
            slice_of("four", 4, member("10.0.0.9", "web-9", uid)),
        ]
        expected = {WEB: (endpoint("10.0.0.9", "fd00::9", pod="web-9"), endpoint("fd00::8", pod="web-8"))}
        assert merged(slices) == expected
        assert merged(reversed(slices)) == expected

    def test_pods_of_one_name_and_two_uids_are_two_endpoints(self) -> None:
        slices = [slice_of("a", 4, member("10.0.0.1", "db-0", "old", ready=False), member("10.0.0.2", "db-0", "new"))]
        assert [str(e.address) for e in merged(slices)[WEB]] == ["10.0.0.1", "10.0.0.2"]

    def test_bare_addresses_are_one_endpoint_per_address(self) -> None:
        slices = [
            slice_of("a", 4, member("203.0.113.10")),
            slice_of("b", 4, member("203.0.113.9"), member("203.0.113.10")),
        ]
        assert merged(slices) == {WEB: (endpoint("203.0.113.9"), endpoint("203.0.113.10"))}

    def test_a_pod_that_one_slice_knows_to_end_ends(self) -> None:
        slices = [
            slice_of("a", 4, member("10.0.0.1", "web-1", ready=False, serving=True, terminating=True)),
            slice_of("b", 6, member("fd00::1", "web-1")),
        ]
        assert merged(slices) == {WEB: (endpoint("10.0.0.1", "fd00::1", pod="web-1", ends=True),)}

    def test_a_slice_of_no_service_is_passed_over(self) -> None:
        assert merged([slice_of("a", 4, member("10.0.0.1"), service=None)]) == {}

    def test_a_slice_of_host_names_has_no_endpoints(self) -> None:
        found = read_object(changed(changed(SLICE, "addressType", "FQDN"), "endpoints/0/addresses/0", "a.example"))
        assert isinstance(found, EndpointSlice)
        assert found.endpoints == ()

    def test_a_reference_to_another_kind_is_no_pod(self) -> None:
        found = read_object(changed(SLICE, "endpoints/0/targetRef/kind", "Node"))
        assert isinstance(found, EndpointSlice)
        assert found.endpoints[0].pod is None


def test_a_snapshot_holds_every_kind() -> None:
    found = [read_object(document) for document in (SERVICE, SLICE, POD, NODE)]
    snapshot = snapshot_of([each for each in found if each is not None])
    assert list(snapshot.services) == [WEB]
    assert list(snapshot.pods) == [ObjectKey("shop", "web-1")]
    assert list(snapshot.nodes) == ["worker.example"]
    assert [str(e.address) for e in snapshot.endpoints[WEB]] == ["10.244.1.5", "10.244.1.10"]
