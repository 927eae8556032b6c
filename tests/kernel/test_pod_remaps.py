"""Several Services before the same pods, each with ports of its own, and pods that name their ports differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from cni_plugin.tunnel import MODES
from tests.kernel.conftest import announce_where_served, places
from tests.testbed import traffic
from tests.testbed.holding import Held
from tests.testbed.manifests import service_port
from tests.testbed.scene import MAPPED_VIPS, Scene

pytestmark = pytest.mark.parametrize("mode", MODES, scope="module")
both_versions = pytest.mark.parametrize("version", [4, 6])

OTHER_VIPS = {4: "198.51.100.5", 6: "2001:db8::5"}
OTHER_PORTS = (
    service_port(80, 9091),
    service_port(80, 9091, protocol="UDP"),
    service_port(443, 8080),
    service_port(53, 8080, protocol="UDP"),
)
"""The Service `mapped` of these pods leads port 80 to 8080, where another program listens."""
NAMED_VIPS = {4: "198.51.100.6", 6: "2001:db8::6"}


def program(name: str) -> str:
    """The part of a server's name that says which program of the pod it is; "" for that of the scene."""
    return name.partition("+")[2]


@pytest.fixture(scope="module")
def other(scene: Scene, mode: str) -> Iterator[Scene]:
    """A second program in every pod, and a Service whose ports lead to both."""
    for pod in scene.cluster.pods:
        traffic.serve(pod, 9091, name=f"{pod.name}+other")
    scene.apply_service("other", ",".join(OTHER_VIPS.values()), OTHER_PORTS, selector={"app": "web"})
    scene.settle()
    yield scene
    scene.remove_service("other")
    scene.settle()


@both_versions
@pytest.mark.parametrize("ask", [traffic.ask_tcp, partial(traffic.ask_udp, connected=False)], ids=["tcp", "udp"])
def test_one_port_of_two_vips_leads_to_two_programs(other: Scene, version: int, ask: partial[traffic.Answer]) -> None:
    client = other.cluster.client
    assert program(client.call(ask, OTHER_VIPS[version], 80).name) == "other"
    assert program(client.call(ask, MAPPED_VIPS[version], 80).name) == ""


@both_versions
def test_two_ports_of_two_vips_lead_to_one_program(other: Scene, version: int) -> None:
    """Its answers come from the port and the VIP that were asked."""
    client = other.cluster.client
    assert program(client.call(traffic.ask_tcp, OTHER_VIPS[version], 443).name) == ""
    assert program(client.call(traffic.ask_udp, OTHER_VIPS[version], 53, connected=False).name) == ""
    assert program(client.call(traffic.ask_udp, MAPPED_VIPS[version], 80, connected=False).name) == ""


@both_versions
def test_a_client_may_ask_two_vips_from_one_port(other: Scene, version: int) -> None:
    """By UDP, of programs on all addresses: whom it asked is remembered for each of the pods' ports."""
    client = other.cluster.client
    for _ in range(2):
        for vip, port, name in (
            (OTHER_VIPS[version], 80, "other"),
            (MAPPED_VIPS[version], 9090, ""),
            (OTHER_VIPS[version], 53, ""),
        ):
            answer = client.call(traffic.ask_udp, vip, port, source_port=24100, connected=False)
            assert program(answer.name) == name


@both_versions
def test_ports_that_change_are_followed_and_connections_of_others_stay(other: Scene, version: int) -> None:
    client, vip = other.cluster.client, OTHER_VIPS[version]
    changed = (service_port(80, 9090), service_port(80, 9090, protocol="UDP"), *OTHER_PORTS[2:])
    apply = partial(other.apply_service, "other", ",".join(OTHER_VIPS.values()), selector={"app": "web"})

    def everywhere(name: str) -> bool:
        flows = other.cluster.client_flows(version, 40)
        try:
            answered = client.call(traffic.udp_flows, vip, 80, flows)
        except traffic.WrongAnswer:
            return False  # to a question from before the change, whose port nobody knows any more
        return {program(found) for found in answered.values()} == {name}

    with Held(client, vip, 443, 10) as held:
        try:
            for ports, name in ((changed, ""), (OTHER_PORTS, "other")):
                apply(ports=ports)
                other.wait(partial(everywhere, name), f"port 80 leading to {name or 'the first program'}")
                assert program(client.call(traffic.ask_tcp, vip, 80).name) == name
                assert held.report().kept == 10
        finally:
            apply(ports=OTHER_PORTS)
            other.settle()


@pytest.fixture(scope="module")
def named(scene: Scene, mode: str) -> Iterator[Scene]:
    """Two pods whose port `web` is not the same number, as while a Deployment changes it."""
    ports = (service_port(80, "web"), service_port(80, "web", protocol="UDP"))
    scene.apply_service("named", ",".join(NAMED_VIPS.values()), ports)
    at = places(mode)[:2]
    pods = [
        *scene.add_pods([(at[0][0], "old")], {"app": "named"}, (8081,), {"web": 8081}),
        *scene.add_pods([(at[1][0], "new")], {"app": "named"}, (8082,), {"web": 8082}),
    ]
    scene.sync()
    scene.settle()
    announce_where_served(scene, mode, NAMED_VIPS)
    yield scene
    scene.remove_service("named")
    for pod in pods:
        scene.remove_pod(pod)
    scene.settle()


@both_versions
def test_a_named_port_may_be_another_number_in_each_pod(named: Scene, version: int) -> None:
    client, vip = named.cluster.client, NAMED_VIPS[version]
    flows = named.cluster.client_flows(version, 40)
    for ask in (traffic.tcp_flows, traffic.udp_flows):
        answered = client.call(ask, vip, 80, flows)
        assert len(answered) == len(flows)
        assert set(answered.values()) == {"old", "new"}


def test_a_second_interface_comes_and_goes_and_the_tunnels_stay(scene: Scene, mode: str) -> None:
    """As multus does: our plugin is in the chain of the further network, too."""
    pod = scene.cluster.pods[0]
    runtime = scene.cluster.nodes[pod.node].runtime
    bridge = {"type": "bridge", "bridge": "further", "ipam": {"type": "host-local", "subnet": "172.30.0.0/24"}}
    second = replace(pod.attachment, interface="net1")
    chain = {"cniVersion": "1.0.0", "name": "further", "plugins": [bridge, pod.chain["plugins"][-1]]}

    def configured() -> str:
        shown = (pod.place.run("ip", *words).stdout for words in (("addr", "show", "lo"), ("rule",), ("-6", "rule")))
        return "".join(shown) + pod.place.run("ip", "route", "show", "table", "116").stdout

    before = configured()
    assert MAPPED_VIPS[4] in before
    runtime.add(chain, second)
    try:
        scene.resync()
        assert configured() == before
        pod.check()
    finally:
        runtime.delete(chain, second)
    assert configured() == before
    scene.resync()
    assert configured() == before
