"""The Kubernetes source against a real API server: what is listed, followed, lost sight of and found again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

from cni_plugin.netns import entered
from conformance.api.control_plane import API_PORT, ControlPlane
from node_helper.api import Api, Listing
from node_helper.model import ObjectKey, Snapshot
from node_helper.settings import INGRESS, NODE
from node_helper.sources.kubernetes import KubernetesSource

WEB = ObjectKey("default", "web")
PATIENCE = 60.0


def service(name: str = "web", **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80}]},
    }


def node(name: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"node": "tunnel"}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def pod(name: str, on: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": on, "containers": [{"name": "c", "image": "none"}], "automountServiceAccountToken": False},
    }


def endpoint_slice(name: str, *addresses: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]} for address in addresses],
    }


class Followed:
    """A source inside the control plane's namespace."""

    def __init__(self, control: ControlPlane, account: str, roles: list[str], name: str = "n1") -> None:
        with entered(control.host.netns()):  # threads stay in the namespace in which they were started
            self.source = KubernetesSource(Api.connect(control.kubeconfig(account)), roles, name)

    def wait(self, condition: Callable[[Snapshot], bool], seconds: float = PATIENCE) -> Snapshot:
        deadline = time.monotonic() + seconds
        while True:
            snapshot = self.source.read()
            if snapshot is not None and condition(snapshot):
                return snapshot
            assert time.monotonic() < deadline, f"not so after {seconds} s: {snapshot}"
            time.sleep(0.01)


@pytest.fixture
def ingress(control: ControlPlane) -> Iterator[Followed]:
    followed = Followed(control, "ingress", [INGRESS])
    yield followed
    followed.source.close()


def test_a_change_arrives_and_so_does_its_end(control: ControlPlane, ingress: Followed) -> None:
    ingress.wait(lambda _: True)
    control.apply(
        service(**{"cmd.nu/tunnel": "198.51.100.1"}), endpoint_slice("web-1", "10.244.0.5"), node("n1", "10.0.0.1")
    )
    found = ingress.wait(lambda snapshot: WEB in snapshot.services and WEB in snapshot.endpoints)
    assert found.services[WEB].annotations == {"cmd.nu/tunnel": "198.51.100.1"}
    control.apply(endpoint_slice("web-1", "10.244.0.5", "10.244.0.6"))
    ingress.wait(lambda snapshot: len(snapshot.endpoints[WEB]) == 2)
    control.kubectl("delete", "service", "web")
    control.kubectl("delete", "endpointslice", "web-1")
    gone = ingress.wait(lambda snapshot: WEB not in snapshot.services and WEB not in snapshot.endpoints)
    assert not gone.problems


def test_a_node_sees_its_own_pods_and_no_endpoints(control: ControlPlane) -> None:
    control.apply(pod("mine", "n1"), pod("other", "n2"), endpoint_slice("web-1", "10.244.0.5"))
    followed = Followed(control, "node", [NODE])
    try:
        found = followed.wait(lambda snapshot: bool(snapshot.pods))
        assert set(found.pods) == {ObjectKey("default", "mine")}
        assert found.endpoints == {}
        assert not found.problems
    finally:
        followed.source.close()


def test_an_api_server_that_goes_leaves_the_last_copy_and_says_so(control: ControlPlane, ingress: Followed) -> None:
    control.apply(service(**{"cmd.nu/tunnel": "198.51.100.1"}))
    ingress.wait(lambda snapshot: WEB in snapshot.services)
    control.stop("kube-apiserver", kill=True)
    away = ingress.wait(lambda snapshot: bool(snapshot.problems))
    assert {problem.reason for problem in away.problems} == {"ApiUnreachable"}
    assert WEB in away.services
    control.start_api()
    ingress.wait(lambda snapshot: not snapshot.problems)
    control.apply(service(**{"cmd.nu/tunnel": "198.51.100.2"}))
    ingress.wait(lambda snapshot: snapshot.services[WEB].annotations["cmd.nu/tunnel"] == "198.51.100.2")


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Lists that were answered, by the path of the client's method; a watch that goes on needs none."""
    counted: Counter[str] = Counter()
    listed = Listing._list

    def counting(listing: Listing, wanted: dict[str, Any]) -> Any:
        found = listed(listing, wanted)
        counted[listing._method.__name__] += 1
        return found

    monkeypatch.setattr(Listing, "_list", counting)
    return counted


def test_what_changed_beyond_the_servers_memory_is_listed_anew(
    control: ControlPlane, lists: Counter[str], ingress: Followed
) -> None:
    """Changes by another server while ours is gone: it does not know of them one by one (410, Gone)."""
    control.apply(service("old"), service("web"))
    ingress.wait(lambda snapshot: ObjectKey("default", "old") in snapshot.services)
    control.stop("kube-apiserver", kill=True)
    control.start_api(port=API_PORT + 1)
    control.kubectl("delete", "service", "old")
    control.apply(service("new"))
    control.stop("kube-apiserver")
    control.start_api()
    found = ingress.wait(lambda snapshot: ObjectKey("default", "new") in snapshot.services and not snapshot.problems)
    assert ObjectKey("default", "old") not in found.services
    assert lists["list_service_for_all_namespaces"] >= 2, "by another list, not by the watch"


def test_a_pod_of_the_cluster_is_its_service_account(
    control: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --kubeconfig: by the folder that every pod with an account has, and the variables of its environment."""
    server = urlsplit(json.loads(control.kubeconfig("ingress").read_text())["clusters"][0]["cluster"]["server"])
    authority = json.loads(control.kubeconfig("ingress").read_text())["clusters"][0]["cluster"]["certificate-authority"]
    (tmp_path / "token").write_text("ingress")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", authority)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    control.apply(service())
    with entered(control.host.netns()):
        source = KubernetesSource(Api.connect(None), [INGRESS], "n1")
    try:
        deadline = time.monotonic() + PATIENCE
        while WEB not in (source.read() or Snapshot()).services:
            assert time.monotonic() < deadline, source.trouble()
            time.sleep(0.01)
    finally:
        source.close()


def test_without_rights_nothing_is_served_and_the_missing_one_is_named(control: ControlPlane) -> None:
    followed = Followed(control, "stranger", [INGRESS])
    try:
        deadline = time.monotonic() + PATIENCE
        while "services is forbidden" not in followed.source.trouble():
            assert time.monotonic() < deadline, followed.source.trouble()
            time.sleep(0.01)
        assert followed.source.read() is None
    finally:
        followed.source.close()
