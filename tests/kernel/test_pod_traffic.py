"""What makes programs in pods just work: remapped ports, answers from the right address, filters, DAD, affinity."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from functools import partial

import pytest

from cni_plugin.tunnel import MODES
from tests.kernel.conftest import MAPPED
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.scene import MAPPED_VIPS as VIPS
from tests.testbed.scene import VIPS as OTHER_VIPS
from tests.testbed.scene import Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")
both_versions = pytest.mark.parametrize("version", [4, 6])


@both_versions
@pytest.mark.parametrize("port", [80, 8443, 9090])
def test_a_service_port_leads_to_the_programs_port_over_tcp(scene: Scene, version: int, port: int) -> None:
    answer = scene.cluster.client.call(traffic.ask_tcp, VIPS[version], port, source_port=24000)
    assert (answer.client, answer.client_port) == (CLIENT[version], 24000)


@both_versions
def test_a_service_port_leads_to_the_programs_port_over_udp(scene: Scene, version: int) -> None:
    for connected in (True, False):
        assert scene.cluster.client.call(traffic.ask_udp, VIPS[version], 80, connected=connected).name


@both_versions
def test_the_programs_own_port_is_still_there(scene: Scene, version: int) -> None:
    """Not a Service port, so nobody rewrites its packets on the way in; its answers come from the Service port."""
    with pytest.raises((traffic.NoAnswer, ConnectionError)):
        scene.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080, timeout=1.0)


def test_a_datagram_without_checksum_keeps_having_none_when_its_port_is_remapped(scene: Scene) -> None:
    def without_checksum() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
            datagrams.settimeout(5)
            datagrams.sendto(b"hello", (VIPS[4], 80))
            return datagrams.recv(100)

    assert b"10.99.0.2" in scene.cluster.client.call(without_checksum)


@both_versions
def test_fragments_are_remapped_as_one_datagram(scene: Scene, version: int) -> None:
    """Later fragments have payload where the port would be: only a whole datagram can be rewritten."""
    source = CLIENT[version]
    answer = scene.cluster.client.call(
        packets.ask_udp_in_fragments, VIPS[version], 80, source=source, source_port=24001, size=4000
    )
    assert answer.size == 4000


@both_versions
@pytest.mark.parametrize("port", [80, 9090])
@pytest.mark.parametrize("connected", [True, False])
def test_an_answer_larger_than_a_packet_comes_from_the_vip_in_fragments(
    scene: Scene, version: int, port: int, connected: bool
) -> None:
    """Of a server on all addresses: all fragments have the VIP as source, the first one the Service's port."""
    answer = scene.cluster.client.call(traffic.ask_udp, VIPS[version], port, payload=b"big 20000", connected=connected)
    assert answer.name in {pod.name for pod in scene.cluster.pods}


@both_versions
def test_path_mtu_discovery_works_for_a_remapped_port(scene: Scene, version: int) -> None:
    """Frag-needed quotes the port that the client sees; the pod's socket has another."""
    scene.cluster.narrow_client_path(1300)
    try:
        scene.cluster.client.call(traffic.download, VIPS[version], 80, 1_000_000)
    finally:
        scene.cluster.narrow_client_path(1500)


@both_versions
@pytest.mark.parametrize(("size", "mtu"), [(1400, 1298), (4000, 1280)])  # less each time: pods know the paths of before
def test_path_mtu_discovery_works_for_a_remapped_udp_port(scene: Scene, version: int, size: int, mtu: int) -> None:
    """What is lost is asked for again, as resolvers do: the pod sends smaller packets then, or smaller fragments.

    An IPv6 error about a fragment quotes it with the header that makes it one.
    """

    def ask_again() -> traffic.Answer:
        for _ in range(10):
            with contextlib.suppress(traffic.NoAnswer):
                return traffic.ask_udp(VIPS[version], 80, payload=b"big %d" % size, source_port=24200, timeout=1.0)
        raise traffic.NoAnswer(f"{size} bytes never came")

    scene.cluster.narrow_client_path(mtu)
    try:
        assert scene.cluster.client.call(ask_again).name
    finally:
        scene.cluster.narrow_client_path(1500)


@both_versions
def test_a_client_of_the_pods_own_address_is_answered_from_there(scene: Scene, version: int) -> None:
    """Also from a port from which it has just used the VIP."""
    pod = scene.cluster.pods[0]
    for _ in range(2):
        assert scene.cluster.client.call(traffic.ask_udp, VIPS[version], 9090, source_port=24002).name
        found = scene.cluster.client.call(
            traffic.ask_udp, pod.address(version), 9090, source_port=24002, connected=False
        )
        assert found.name == pod.name


@both_versions
def test_a_client_that_asks_often_from_one_port_is_always_answered_from_the_vip(scene: Scene, version: int) -> None:
    """As a resolver or a telephone does: each question passes through the pod's memory of its clients."""

    def ask_often() -> set[str]:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(5)
            names = set()
            for _ in range(300):
                datagrams.sendto(b"hello", (VIPS[version], 9090))
                names.add(traffic.hear_udp(datagrams, VIPS[version], 9090).name)
            return names

    assert len(scene.cluster.client.call(ask_often)) == 1


@both_versions
def test_a_client_with_one_port_for_two_vips_is_answered_from_the_one_that_it_asked(scene: Scene, version: int) -> None:
    """Buckets differ, so only some ports lead to the same pod by both VIPs: those that matter here."""
    by_port: dict[int, list[str]] = {}
    for vip in (VIPS[version], OTHER_VIPS[version], VIPS[version], OTHER_VIPS[version]):
        for port in range(24100, 24116):
            answer = scene.cluster.client.call(traffic.ask_udp, vip, 9090, source_port=port, connected=False)
            by_port.setdefault(port, []).append(answer.name)
    assert any(len(set(names)) == 1 for names in by_port.values())


def test_the_vip_is_never_the_source_of_the_pods_own_connections(scene: Scene) -> None:
    for pod in scene.cluster.pods:
        for version, target in CLIENT.items():
            text = pod.place.run("ip", f"-{version}", "route", "get", target).stdout
            assert VIPS[version] not in text, text
        addresses = pod.place.run("ip", "-6", "addr", "show", "dev", "lo").stdout
        assert "deprecated" in addresses and "tentative" not in addresses


@both_versions
def test_client_ip_affinity_keeps_a_client_with_one_pod(scene: Scene, version: int) -> None:
    apply = partial(scene.apply_service, "mapped", ",".join(VIPS.values()), MAPPED, selector={"app": "web"})
    apply(sessionAffinity="ClientIP")
    try:
        scene.settle()
        scene.cluster.announce(VIPS[version], ["ingress1"])
        sources = scene.cluster.client_addresses(version, 40)

        def by_client() -> dict[str, set[str]]:
            flows = [(source, 20000 + port) for source in sources for port in range(5)]
            found: dict[str, set[str]] = {}
            seen = scene.cluster.client.call(traffic.udp_flows, VIPS[version], 9090, flows)
            for (source, _), pod in seen.items():
                found.setdefault(source, set()).add(pod)
            return found

        scene.wait(lambda: all(len(pods) == 1 for pods in by_client().values()), "one pod for each client")
        assert len(Counter(next(iter(pods)) for pods in by_client().values())) > 1
        helper, pod = scene.helpers["ingress1"], next(iter(by_client()[sources[0]]))
        scene.wait(
            lambda: helper.trace("udp", sources[0], 20001, VIPS[version], 9090)["pod"] == f"default/{pod}",
            "trace of a flow hashed by its addresses",
        )
    finally:
        apply()
        scene.settle()
