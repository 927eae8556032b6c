"""The testbed's servers, clients, packets and manifests, on pods' own addresses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Cluster, NodeSpec
from tests.testbed.cni import Pod
from tests.testbed.holding import Held, Report
from tests.testbed.manifests import ClusterFolder, service_port
from tests.testbed.packets import Capture

PORT = 8080


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster([NodeSpec("ingress", ingress=True), NodeSpec("worker")]) as cluster:
        for pod in cluster.add_pods([("ingress", "near"), ("worker", "far")], {"app": "web"}):
            traffic.serve(pod, PORT)
        yield cluster


@pytest.fixture
def far(cluster: Cluster) -> Pod:
    return cluster.nodes["worker"].pods["far"]


def reported(held: Held, wanted: Callable[[Report], bool]) -> Report:
    deadline = time.monotonic() + 10
    while not wanted(report := held.report()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return report


versions = pytest.mark.parametrize("version", [4, 6])


@versions
def test_the_server_says_who_it_is_and_whom_it_sees_over_tcp(cluster: Cluster, far: Pod, version: int) -> None:
    source = cluster.client_addresses(version, 7)[-1]
    answer = cluster.client.call(traffic.ask_tcp, far.address(version), PORT, source=source, source_port=30001)
    assert answer == traffic.Answer("far", source, 30001, 5)


@versions
@pytest.mark.parametrize("connected", [True, False])
def test_the_server_says_whom_it_sees_over_udp(cluster: Cluster, far: Pod, version: int, connected: bool) -> None:
    answer = cluster.client.call(traffic.ask_udp, far.address(version), PORT, source_port=30002, connected=connected)
    assert answer == traffic.Answer("far", CLIENT[version], 30002, 5)


@versions
def test_large_transfers_arrive_whole(cluster: Cluster, far: Pod, version: int) -> None:
    cluster.client.call(traffic.download, far.address(version), PORT, 3_000_001)
    cluster.client.call(traffic.upload, far.address(version), PORT, 3_000_001)


@versions
def test_a_large_transfer_passes_a_narrow_path(version: int) -> None:
    with Cluster([NodeSpec("node")]) as cluster:
        pod = cluster.add_pod("node", "pod")
        traffic.serve(pod, PORT)
        cluster.narrow_client_path(1300)
        with Capture(cluster.router, "to-node") as capture:
            cluster.client.call(traffic.download, pod.address(version), PORT, 300_001)
            told = capture.wait_for(lambda packet: packet.mtu == 1300)
        assert told.destination == pod.address(version)
        assert told.quoted is not None
        assert told.quoted.source_port == PORT


@versions
def test_thousands_of_flows_are_answered_in_seconds(cluster: Cluster, far: Pod, version: int) -> None:
    flows = cluster.client_flows(version, 5000)
    began = time.monotonic()
    found = cluster.client.call(traffic.udp_flows, far.address(version), PORT, flows)
    assert len(set(flows)) == 5000
    assert found == dict.fromkeys(flows, "far")
    assert time.monotonic() - began < 30


def test_flows_without_an_answer_are_left_out(cluster: Cluster, far: Pod) -> None:
    flows = cluster.client_flows(4, 10)
    assert cluster.client.call(traffic.udp_flows, "10.244.2.99", PORT, flows, tries=1, timeout=0.1) == {}
    assert cluster.client.call(traffic.udp_flows, far.ipv4, 9, flows, tries=1, timeout=0.1) == {}


@versions
def test_tcp_flows_tell_the_pod_of_each(cluster: Cluster, far: Pod, version: int) -> None:
    flows = cluster.client_flows(version, 100)
    assert cluster.client.call(traffic.tcp_flows, far.address(version), PORT, flows) == dict.fromkeys(flows, "far")


def test_a_closed_port_refuses_and_an_absent_pod_does_not_answer(cluster: Cluster, far: Pod) -> None:
    with pytest.raises(ConnectionRefusedError):
        cluster.client.call(traffic.ask_tcp, far.ipv4, 9)
    with pytest.raises(traffic.NoAnswer, match=r"10\.244\.2\.99"):
        cluster.client.call(traffic.ask_udp, "10.244.2.99", PORT, timeout=0.1)


@versions
def test_a_ping_is_answered(cluster: Cluster, far: Pod, version: int) -> None:
    assert cluster.client.call(traffic.ping, far.address(version), size=1000) < 5
    with pytest.raises(traffic.NoAnswer):
        cluster.client.call(traffic.ping, far.address(version)[:-1] + "99", timeout=0.1)


@versions
def test_an_answer_from_elsewhere_is_told(cluster: Cluster, version: int) -> None:
    pod = cluster.add_pod("worker", "two-addresses")
    further = {4: "198.51.100.9", 6: "2001:db8::9"}[version]
    pod.place.batch([f"addr add {further}/{32 if version == 4 else 128} dev lo"])
    worker = cluster.nodes["worker"]
    worker.host.batch([f"route add {further} via {pod.address(version)} dev {pod.host_device}"])
    cluster.announce(further, ["worker"])
    traffic.serve(pod, PORT)
    with pytest.raises(traffic.WrongAnswer, match="answers"):
        cluster.client.call(traffic.ask_udp, further, PORT, connected=False)
    with pytest.raises(traffic.NoAnswer):
        cluster.client.call(traffic.ask_udp, further, PORT, timeout=0.2)
    cluster.withdraw(further)
    cluster.delete_pod(pod)


@versions
def test_fragments_out_of_order_become_one_datagram(cluster: Cluster, far: Pod, version: int) -> None:
    with Capture(cluster.nodes["worker"].host, "eth0") as capture:
        answer = cluster.client.call(
            packets.ask_udp_in_fragments, far.address(version), PORT, source=CLIENT[version], source_port=30003
        )
        parts = capture.packets(lambda packet: packet.fragment is not None and packet.direction == "in")
    assert answer == traffic.Answer("far", CLIENT[version], 30003, 3000)
    assert [part.fragment for part in parts] == [(2416, False), (1208, True), (0, True)]
    assert parts[-1].destination_port == PORT


@versions
def test_a_message_about_a_too_big_packet_is_believed(cluster: Cluster, version: int) -> None:
    pod = cluster.add_pod("worker", "told")
    message = packets.too_big(pod.address(version), PORT, CLIENT[version], 30004, mtu=1300, protocol=packets.UDP)
    # A pod believes only what is about a socket of its own.
    bound = packets.open_socket(pod.place, socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    bound.bind((pod.address(version), PORT))
    with bound, Capture(pod.place, "eth0") as capture:
        cluster.client.call(packets.send_packet, message, pod.address(version))
        told = capture.wait_for(lambda packet: packet.mtu == 1300)
    assert told.quoted is not None
    assert (told.quoted.source, told.quoted.source_port) == (pod.address(version), PORT)
    assert (told.quoted.destination, told.quoted.destination_port) == (CLIENT[version], 30004)
    assert "mtu 1300" in pod.place.run("ip", "route", "get", CLIENT[version]).stdout
    cluster.delete_pod(pod)


def test_held_connections_are_kept_and_counted_by_pod(cluster: Cluster, far: Pod) -> None:
    with Held(cluster.client, far.ipv6, PORT, 50, interval=0.02) as held:
        report = held.report()
    assert (report.asked, report.kept, report.lost, report.moved) == (50, 50, 0, 0)
    assert report.pods == {"far": 50}


def test_connections_to_a_pod_that_ends_are_lost_and_counted(cluster: Cluster) -> None:
    pod = cluster.add_pod("worker", "ends")
    traffic.serve(pod, PORT)
    with Held(cluster.client, pod.ipv4, PORT, 20, interval=0.02) as held:
        assert held.report().kept == 20
        pod.place.stop_processes()
        report = reported(held, lambda report: not report.kept)
    assert report.lost == 20
    assert report.reset + report.closed == 20
    cluster.delete_pod(pod)


def test_connections_to_nowhere_are_counted_as_failed(cluster: Cluster, far: Pod) -> None:
    with Held(cluster.client, far.ipv4, 9, 3) as held:
        assert held.report().failed == 3


def test_the_folder_holds_what_a_cluster_would_hold(cluster: Cluster, far: Pod, tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "manifests")
    far.ports["http"] = PORT
    folder.apply_service("web", {"cmd.nu/tunnel": "198.51.100.1"}, ports=[service_port(80, PORT)])
    folder.sync(cluster)
    documents = [yaml.safe_load(path.read_text()) for path in folder.folder.iterdir()]
    assert sorted(document["kind"] for document in documents) == [
        *["EndpointSlice"] * 2,
        *["Node"] * 2,
        *["Pod"] * 2,
        "Service",
    ]
    slices = {document["addressType"]: document for document in documents if document["kind"] == "EndpointSlice"}
    assert far.ipv6 in [endpoint["addresses"][0] for endpoint in slices["IPv6"]["endpoints"]]
    assert slices["IPv4"]["ports"] == [{"name": "tcp-80", "protocol": "TCP", "port": PORT}]
    service = folder.service("web")
    folder.annotate("web", {"cmd.nu/tunnel": None})
    changed = folder.service("web")
    assert changed["metadata"]["annotations"] == {}
    assert changed["metadata"]["uid"] == service["metadata"]["uid"]
    far.terminating = True
    folder.sync(cluster)
    far.terminating = False
    written = yaml.safe_load((folder.folder / "endpointslice-default-web-ipv4.yaml").read_text())
    conditions = {each["targetRef"]["name"]: each["conditions"] for each in written["endpoints"]}
    assert conditions["far"] == {"ready": False, "serving": True, "terminating": True}
    folder.remove("Service", "web")
    assert not [path for path in folder.folder.iterdir() if "web" in path.name]
