"""One pod on several networks, each with the built plugin in its chain and with tunnels of its own, as by multus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_helper import FakeHelper, tunnels
from tests.kernel.plugin_calls import Pod
from tests.kernel.private_netns import batch, run, wait_until_up
from tests.kernel.test_pod_netns import ETH0, picture, pod_netns, without_numbers

FIRST, SECOND, SHARED = "198.51.100.7", "203.0.113.9", "198.51.100.8"


@pytest.fixture
def netns() -> Iterator[str]:
    with pod_netns("1") as path:
        batch(
            path,
            "link add net1 type veth peer name outside1",
            "link set outside1 addrgenmode none up",
            "link set net1 addrgenmode none up",
            "addr add 172.16.0.2/24 dev net1",
        )
        wait_until_up(path, "net1", "outside1")
        yield path


class Networks:
    """Calls for the interfaces of one pod: eth0 of network `pods`, net1 of `more`."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod

    def call(self, verb: str, interface: str, *vips: str) -> Any:
        conf = self.pod.conf(
            name="pods" if interface == ETH0 else "more", tunnels=[{"vips": list(vips), "mode": "vxlan-gpe"}]
        )
        if not vips:
            del conf["tunnels"]
        return self.pod.call(verb, conf, environ={"CNI_IFNAME": interface})

    def vips(self) -> set[str]:
        found = json.loads(run(self.pod.netns, "ip", "-j", "addr", "show", "dev", "lo"))
        return {address["local"] for address in found[0]["addr_info"]} & {FIRST, SECOND, SHARED}


@pytest.fixture
def networks(pod: Pod) -> Networks:
    return Networks(pod)


@pytest.mark.parametrize("first_ends", [ETH0, "net1"])
def test_each_network_brings_its_tunnels_and_takes_them_along(networks: Networks, first_ends: str) -> None:
    untouched = without_numbers(picture(networks.pod.netns))
    networks.call("ADD", ETH0, FIRST, SHARED).succeeded()
    alone = without_numbers(picture(networks.pod.netns))
    networks.call("ADD", "net1", SECOND, SHARED).succeeded()
    assert networks.vips() == {FIRST, SECOND, SHARED}
    networks.call("CHECK", ETH0, FIRST, SHARED).succeeded()
    networks.call("CHECK", "net1", SECOND, SHARED).succeeded()
    networks.call("DEL", first_ends).succeeded()
    if first_ends == ETH0:
        assert networks.vips() == {SECOND, SHARED}
        networks.call("CHECK", "net1", SECOND, SHARED).succeeded()
        networks.call("DEL", "net1").succeeded()
    else:
        assert networks.vips() == {FIRST, SHARED}
        assert without_numbers(picture(networks.pod.netns)) == alone
        networks.call("CHECK", ETH0, FIRST, SHARED).succeeded()
        networks.call("DEL", ETH0).succeeded()
    assert without_numbers(picture(networks.pod.netns)) == untouched
    assert networks.pod.records() == []


def test_what_a_second_network_lacks_is_told_by_its_check(networks: Networks) -> None:
    networks.call("ADD", ETH0, FIRST).succeeded()
    networks.call("ADD", "net1", SECOND).succeeded()
    run(networks.pod.netns, "ip", "addr", "del", f"{SECOND}/32", "dev", "lo")
    error = networks.call("CHECK", "net1", SECOND).failed(102)
    assert f"VIP {SECOND} is not on lo" in error["msg"]


def test_the_helpers_tunnels_and_a_standalone_networks_live_side_by_side(networks: Networks, tmp_path: Path) -> None:
    with FakeHelper(networks.pod.socket, tunnels(FIRST)):
        networks.call("ADD", ETH0).succeeded()
    networks.call("ADD", "net1", SECOND).succeeded()
    assert networks.vips() == {FIRST, SECOND}
    networks.call("DEL", ETH0).succeeded()
    assert networks.vips() == {SECOND}


def test_garbage_collection_of_one_network_leaves_the_other(networks: Networks) -> None:
    networks.call("ADD", ETH0, FIRST).succeeded()
    networks.call("ADD", "net1", SECOND).succeeded()
    conf = networks.pod.conf("1.1.0", name="more", **{"cni.dev/valid-attachments": []})
    networks.pod.call("GC", conf).succeeded()
    assert networks.vips() == {FIRST}
    assert [record.interface for record in networks.pod.records()] == [ETH0]
    networks.call("CHECK", ETH0, FIRST).succeeded()
