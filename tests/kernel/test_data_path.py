"""Packets from a client to a VIP and back, in every mode and IP version, through everything that is real here."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from cni_plugin.tunnel import MODES, MPLS, overhead
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.cni import Pod
from tests.testbed.scene import PATIENCE, VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")
both_versions = pytest.mark.parametrize("version", [4, 6])

BIG = 10_000_000
"""Bytes of a large transfer."""


@pytest.fixture
def by_ingress1(scene: Scene) -> Iterator[Scene]:
    """The router sends everything to ingress1 for the time of a test."""
    for vip in VIPS.values():
        scene.cluster.announce(vip, ["ingress1"])
    yield scene
    for vip in VIPS.values():
        scene.cluster.announce(vip)


def pods_behind(scene: Scene, mode: str, node: str) -> set[str]:
    """Names of the pods to which an ingress node may send."""
    return {pod.name for pod in scene.cluster.pods if mode != MPLS or pod.node == node}


@both_versions
def test_a_pod_answers_tcp_and_sees_the_client_itself(scene: Scene, version: int) -> None:
    source = scene.cluster.client_addresses(version, 3)[2]
    answer = scene.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080, source=source, source_port=23456)
    assert (answer.client, answer.client_port) == (source, 23456)


@both_versions
def test_a_udp_server_on_all_addresses_answers_from_the_vip(scene: Scene, version: int) -> None:
    for connected in (True, False):
        answer = scene.cluster.client.call(traffic.ask_udp, VIPS[version], 8080, connected=connected)
        assert answer.client == CLIENT[version]


DUAL_STACK, ON_THE_VIP = 8091, 8092
"""Ports of further servers in the pods: one socket on :: for both IP versions, or sockets bound to the VIPs."""


@pytest.fixture(scope="module")
def listeners(scene: Scene) -> Iterator[Scene]:
    servers = [traffic.serve(pod, DUAL_STACK, dual_stack=True) for pod in scene.cluster.pods]
    servers += [traffic.serve(pod, ON_THE_VIP, bind=list(VIPS.values())) for pod in scene.cluster.pods]
    yield scene
    for server in servers:
        server.terminate()
        server.wait(20)


@both_versions
@pytest.mark.parametrize("port", [DUAL_STACK, ON_THE_VIP])
def test_servers_with_one_socket_for_both_versions_or_bound_to_the_vip_answer_from_the_vip(
    listeners: Scene, version: int, port: int
) -> None:
    client = listeners.cluster.client
    seen = f"::ffff:{CLIENT[4]}" if (version, port) == (4, DUAL_STACK) else CLIENT[version]
    assert client.call(traffic.ask_tcp, VIPS[version], port).client == seen
    for connected in (True, False):
        assert client.call(traffic.ask_udp, VIPS[version], port, connected=connected).client == seen


@both_versions
def test_a_vip_can_be_pinged(scene: Scene, version: int) -> None:
    scene.cluster.client.call(traffic.ping, VIPS[version])


@both_versions
def test_flows_spread_evenly_over_all_endpoints(by_ingress1: Scene, mode: str, version: int) -> None:
    scene = by_ingress1
    flows = scene.cluster.client_flows(version, 5000)
    found = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    assert len(found) == len(flows)
    counts = Counter(found.values())
    behind = pods_behind(scene, mode, "ingress1")
    assert len(behind) == 4
    assert set(counts) == behind
    # 20 to 30 % each of four endpoints: what 256 buckets and 5,000 flows allow, with room for chance.
    assert all(1000 <= count <= 1500 for count in counts.values()), counts


@both_versions
def test_two_ingress_nodes_choose_the_same_endpoint(scene: Scene, mode: str, version: int) -> None:
    flows = scene.cluster.client_flows(version, 1000)
    seen = []
    for node in ("ingress1", "ingress2"):
        scene.cluster.announce(VIPS[version], [node])
        seen.append(scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows))
    scene.cluster.announce(VIPS[version])
    assert len(seen[0]) == len(seen[1]) == 1000
    if mode == MPLS:
        # Node-local: each has pods of its own only, so the choice cannot be the same. It is a fixed one.
        assert set(seen[0].values()) == pods_behind(scene, mode, "ingress1")
        assert set(seen[1].values()) == pods_behind(scene, mode, "ingress2")
    else:
        assert seen[0] == seen[1]


@both_versions
def test_a_flow_stays_with_its_endpoint_and_udp_and_tcp_agree(scene: Scene, mode: str, version: int) -> None:
    node = scene.cluster.nodes["ingress1"].name
    scene.cluster.announce(VIPS[version], [node])
    flows = scene.cluster.client_flows(version, 100)
    first = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    again = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    tcp = scene.cluster.client.call(traffic.tcp_flows, VIPS[version], 8080, flows)
    scene.cluster.announce(VIPS[version])
    assert first == again == tcp


@both_versions
def test_trace_agrees_with_the_kernel(by_ingress1: Scene, version: int) -> None:
    scene = by_ingress1
    flows = scene.cluster.client_flows(version, 60)
    seen = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    helper = scene.helpers["ingress1"]
    for (source, port), pod in seen.items():
        assert helper.trace("udp", source, port, VIPS[version], 8080)["pod"] == f"default/{pod}"


@both_versions
def test_fragments_reach_the_pod_of_their_flow(by_ingress1: Scene, version: int) -> None:
    scene = by_ingress1
    flows = scene.cluster.client_flows(version, 25)
    seen = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    for (source, port), pod in seen.items():
        answer = scene.cluster.client.call(
            packets.ask_udp_in_fragments, VIPS[version], 8080, source=source, source_port=port, size=4000
        )
        assert (answer.name, answer.size) == (pod, 4000)


@both_versions
def test_a_frag_needed_message_reaches_the_pod_that_owns_the_flow(by_ingress1: Scene, version: int) -> None:
    """Many flows, so that a message that went to any pod would be noticed."""
    scene = by_ingress1
    flows = [(source, 20000) for source in scene.cluster.client_addresses(version, 8)]
    seen = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 8080, flows)
    for (source, port), name in seen.items():
        message = packets.too_big(VIPS[version], 8080, source, port, mtu=1300, protocol=packets.UDP)
        scene.cluster.client.call(packets.send_packet, message, VIPS[version])
        # The pod's kernel keeps the smaller path MTU for this client; no other pod's does.
        for pod in scene.cluster.pods:
            if pod.name == name:
                scene.wait(partial(_has_path_mtu, pod, version, source, 1300), f"the path MTU in {name}")
                pod.check()  # what the kernel learned is no route that somebody changed: it must not be put right
            else:
                assert _path_mtu(pod, version, source) == 0


def _has_path_mtu(pod: Pod, version: int, client: str, mtu: int) -> bool:
    return _path_mtu(pod, version, client) == mtu


def _path_mtu(pod: Pod, version: int, client: str) -> int:
    text = pod.place.run("ip", f"-{version}", "route", "get", client, "from", VIPS[version]).stdout
    words = text.split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else 0


@both_versions
def test_a_download_over_a_narrow_path_completes(scene: Scene, version: int) -> None:
    """The client's side answers the pod's full segments with frag-needed; the pod must hear it."""
    scene.cluster.narrow_client_path(1300)
    try:
        scene.cluster.client.call(traffic.download, VIPS[version], 8080, 1_000_000)
    finally:
        scene.cluster.narrow_client_path(1500)


def test_errors_about_ipv6_fragments_come_to_the_pod_that_sent_them(by_ingress1: Scene, mode: str) -> None:
    """Such an answer is sent in fragments, and too big for the client's path: the pod makes them smaller then.

    By one ingress node, since in mode mpls each has endpoints of its own, and routers hash errors otherwise than flows.
    """
    scene = by_ingress1

    def ask_again(port: int) -> str:
        for _ in range(4):
            with contextlib.suppress(traffic.NoAnswer):
                return traffic.ask_udp(
                    VIPS[6], 8080, payload=b"big 4000", source_port=port, timeout=PATIENCE / 100
                ).name
        raise traffic.NoAnswer(f"4000 bytes never came to port {port}")

    scene.cluster.narrow_client_path(1280)
    try:
        seen = set()
        for port in range(24300, 24316):
            for pod in scene.cluster.pods:  # what it learnt from the flow before would do for this one
                pod.place.run("ip", "-6", "route", "flush", "cache")
            seen.add(scene.cluster.client.call(ask_again, port, limit=5 * PATIENCE))
        behind = pods_behind(scene, mode, "ingress1")
        assert seen <= behind and len(seen) >= min(2, len(behind))
    finally:
        scene.cluster.narrow_client_path(1500)


@both_versions
def test_a_packet_too_big_for_the_encapsulation_is_answered(by_ingress1: Scene, mode: str, version: int) -> None:
    """By the ingress node, with an address of its own: clients' firewalls want to know who speaks."""
    scene = by_ingress1
    node = scene.cluster.nodes["ingress1"]
    limit = 1500 - overhead(mode, 4)

    def learned() -> int:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
            level, option = (socket.IPPROTO_IP, 10) if version == 4 else (socket.IPPROTO_IPV6, 23)
            datagrams.setsockopt(level, option, 2)  # IP_MTU_DISCOVER: DO
            datagrams.settimeout(5)
            datagrams.connect((VIPS[version], 8080))
            for _ in range(50):
                try:
                    datagrams.send(bytes(1500 - (28 if version == 4 else 48)))
                    datagrams.recv(100)
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                    break
            else:
                raise AssertionError("a packet of 1500 bytes went through, or nobody said that it did not")
            mtu = datagrams.getsockopt(level, 14 if version == 4 else 24)  # IP_MTU
            # What was learned is the whole truth: a packet of just that size is answered.
            datagrams.send(bytes(mtu - (28 if version == 4 else 48)))
            datagrams.recv(100)
            return mtu

    with packets.Capture(scene.cluster.client, "eth0") as heard:
        assert scene.cluster.client.call(learned) == limit
        errors = heard.packets(lambda packet: packet.quoted is not None)
    assert errors and {packet.source for packet in errors} == {node.addresses[version]}
    assert {packet.icmp for packet in errors} == {(3, 4) if version == 4 else (2, 0)}
    for packet in errors:
        assert packet.mtu == limit and packet.quoted is not None
        assert (packet.quoted.source, packet.quoted.destination) == (CLIENT[version], VIPS[version])


@both_versions
def test_ten_megabytes_go_both_ways(scene: Scene, version: int) -> None:
    scene.cluster.client.call(traffic.upload, VIPS[version], 8080, BIG, timeout=60)
    scene.cluster.client.call(traffic.download, VIPS[version], 8080, BIG, timeout=60)


@pytest.mark.parametrize(("of_hosts", "of_pods"), [(0, (0, 1)), (1, (2, 0)), (2, (1, 2))], ids=["0", "1", "2"])
def test_every_rp_filter_on_hosts_and_in_pods_is_survived(
    scene: Scene, mode: str, of_hosts: int, of_pods: tuple[int, int]
) -> None:
    """Also when pods inherit another value than their host has; the first is on the ingress node itself.

    Strict filtering (1) on both is what all other tests here run with.
    """
    vips = {4: f"198.51.100.3{of_hosts}", 6: f"2001:db8::3{of_hosts}"}
    filters = [f"net.ipv4.conf.{which}.rp_filter" for which in ("all", "default")]
    nodes = [node.host for node in scene.cluster.nodes.values()]
    usual = scene.cluster.pod_sysctls
    name = f"filtered{of_hosts}"
    places = ["ingress1", "ingress1" if mode == MPLS else "worker1"]
    pods = []
    for host in nodes:
        host.set_sysctls(dict.fromkeys([*filters, "net.ipv4.conf.eth0.rp_filter"], of_hosts))
    try:
        scene.apply_service(name, ",".join(vips.values()))
        for node, value in zip(places, of_pods, strict=True):
            scene.cluster.pod_sysctls = usual | dict.fromkeys(filters, value)
            pods += scene.add_pods([(node, f"{name}-{value}")], {"app": name})
        scene.sync()
        scene.settle()
        for version, vip in vips.items():
            scene.cluster.announce(vip, ["ingress1"])
            flows = scene.cluster.client_flows(version, 20)
            for ask in (traffic.udp_flows, traffic.tcp_flows):
                found = scene.cluster.client.call(ask, vip, 8080, flows)
                assert len(found) == len(flows) and set(found.values()) == {pod.name for pod in pods}
            for source in scene.cluster.client_addresses(version, 5):
                scene.cluster.client.call(traffic.ping, vip, source=source)
        for host in nodes:
            assert {host.sysctl(key) for key in filters} == {str(of_hosts)}
    finally:
        scene.cluster.pod_sysctls = usual
        scene.remove_service(name)
        for pod in pods:
            scene.remove_pod(pod)
        for host in nodes:
            host.set_sysctls(dict.fromkeys([*filters, "net.ipv4.conf.eth0.rp_filter"], 1))
        scene.resync()
