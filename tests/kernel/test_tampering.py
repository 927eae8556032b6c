"""What somebody else changes of ours is put right when the kernel tells of it, long before the next full comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.testbed import traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.scene import VIPS, Scene

IN_ROUTER = ("ip", "netns", "exec", "service-tunnel", "ip")
RESYNC = 3600
"""Seconds until the next full comparison: longer than any test waits, on emulated processors too."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene(options=["--resync", str(RESYNC)], rp_filter=1) as scene:
        scene.apply_service()
        scene.add_pods((("worker1", "pod1"), ("worker2", "pod2")), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def picture(scene: Scene) -> list[str]:
    """Our state in host and router, without numbers that may be others after it was made anew."""
    host = scene.cluster.nodes["ingress1"].host
    asked = [
        ("ip", "route", "show", "proto", "116"),
        (*IN_ROUTER, "rule"),
        (*IN_ROUTER, "-o", "link", "show", "up"),
        (*IN_ROUTER, "route", "show", "table", "all", "proto", "116"),
        (*IN_ROUTER, "nexthop"),
    ]
    lines = [line for command in asked for line in host.run(*command, check=False).stdout.splitlines()]
    return sorted(line.split()[1].partition("@")[0] if "link/" in line else line for line in lines)


@pytest.mark.parametrize(
    "command",
    [
        ("ip", "route", "del", f"{VIPS[4]}/32"),
        (*IN_ROUTER, "rule", "del", "pref", "1000"),
        (*IN_ROUTER, "route", "del", f"{VIPS[4]}/32", "table", "1007"),
        (*IN_ROUTER, "nexthop", "flush"),
        (*IN_ROUTER, "link", "set", "svctun-gpe", "down"),
        (*IN_ROUTER, "link", "del", "host0"),
        ("ip", "netns", "del", "service-tunnel"),
    ],
    ids=lambda command: " ".join(command),
)
def test_it_is_put_right_at_once(scene: Scene, command: tuple[str, ...]) -> None:
    before = picture(scene)
    assert len(before) > 500
    scene.cluster.nodes["ingress1"].host.run(*command)
    scene.wait(lambda: picture(scene) == before, "the state is whole again")


def ruleset(scene: Scene, *inside: str) -> list[str]:
    """What nf_tables has in a namespace, without what counts; in any order, as tables come in that of their making."""
    shown = scene.cluster.nodes["ingress1"].host.run(*inside, "nft", "list", "ruleset").stdout
    return sorted(re.sub(r"counter packets \d+ bytes \d+", "counter", line) for line in shown.splitlines())


@pytest.mark.parametrize("inside", [(), ("ip", "netns", "exec", "service-tunnel")], ids=["host", "router"])
@pytest.mark.parametrize("command", ["flush ruleset", "delete table inet svctun", "flush table inet svctun"])
def test_what_is_taken_out_of_nf_tables_is_put_back_at_once(
    scene: Scene, inside: tuple[str, ...], command: str
) -> None:
    before = ruleset(scene, *inside)
    assert any("svctun" in line for line in before)
    assert any("SERVICE-TUNNEL" in line or "HMARK" in line for line in before)
    scene.cluster.nodes["ingress1"].host.run(*inside, "nft", command)
    scene.wait(lambda: ruleset(scene, *inside) == before, "all of it is there again")


FLOOD = [f"route add blackhole 203.{n >> 8}.{n & 255}.0/24 table 77" for n in range(20_000)]
"""Each is told: more than a socket has room for."""


@pytest.mark.parametrize("inside", [(), ("-n", "service-tunnel")], ids=["host", "router"])
def test_what_somebody_changed_while_more_was_told_than_could_be_heard_is_put_right_at_once(
    scene: Scene, inside: tuple[str, ...]
) -> None:
    """The kernel drops notices then (ENOBUFS), that of the change among them."""
    host = scene.cluster.nodes["ingress1"].host
    before = picture(scene)
    ours = [f"route del {VIPS[4]}/32" if not inside else f"route del {VIPS[4]}/32 table 1007"]
    try:
        with scene.helpers["ingress1"].halted():
            host.run("ip", *inside, "-batch", "-", input="\n".join(FLOOD + ours))
            assert dropped(scene, inside) > 0
            assert picture(scene) != before
        scene.wait(lambda: picture(scene) == before, "the state is whole again")
    finally:
        host.run("ip", *inside, "route", "flush", "table", "77")
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[4], 8080).client == CLIENT[4]


def dropped(scene: Scene, inside: tuple[str, ...]) -> int:
    """Notices about routes and the like that found no room, of all sockets of the namespace."""
    entered = ("ip", "netns", "exec", inside[1]) if inside else ()
    shown = scene.cluster.nodes["ingress1"].host.run(*entered, "cat", "/proc/net/netlink").stdout.splitlines()
    drops = shown[0].split().index("Drops")
    return sum(int(line.split()[drops]) for line in shown[1:] if line.split()[1] == "0")


def foreign(scene: Scene, version: int) -> list[str]:
    """The routes of the main table that the kernel did not make itself."""
    shown = scene.cluster.nodes["ingress1"].host.run("ip", f"-{version}", "route").stdout.splitlines()
    return [line.removesuffix(" pref medium") for line in shown if "proto kernel" not in line]


def test_what_systemd_networkd_deletes_at_its_start_is_back_at_once(scene: Scene) -> None:
    """By default it deletes all routes, rules and nexthops that are neither the kernel's nor its own."""
    host = scene.cluster.nodes["ingress1"].host
    before = picture(scene)
    routes = {version: foreign(scene, version) for version in (4, 6)}
    for version, lines in routes.items():
        assert any("proto 116" in line for line in lines)
        for line in lines:
            # Without routes to the pods the helper takes away its own, and may be faster.
            host.run("ip", f"-{version}", "route", "del", *line.split(), check=False)
        assert [line for line in foreign(scene, version) if "proto 116" not in line] == []
        kept = ("from all lookup local", "from all lookup main", "from all lookup default")
        for rule in host.run("ip", f"-{version}", "rule").stdout.splitlines():
            assert rule.split("\t")[1].strip() in kept, "none of ours, so it has none to delete"
    host.run("ip", "nexthop", "flush")
    for version, lines in routes.items():
        for line in lines:
            if "proto 116" not in line:
                host.run("ip", f"-{version}", "route", "replace", *line.split())  # its own, from its configuration
    scene.wait(lambda: picture(scene) == before, "the state is whole again")
    assert {version: set(foreign(scene, version)) for version in routes} == {v: set(r) for v, r in routes.items()}
    for version, vip in VIPS.items():
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]


@pytest.mark.parametrize(("node", "device"), [("worker1", "pod"), ("ingress1", "eth0"), ("ingress1", "svctun")])
def test_a_device_that_someone_made_strict_again_is_loose_again_at_once(scene: Scene, node: str, device: str) -> None:
    """As agents of network plugins do, who set `rp_filter` of the devices that they made at any time."""
    at = scene.cluster.nodes[node]
    name = at.pods["pod1"].host_device if device == "pod" else device
    key = f"net.ipv4.conf.{name}.rp_filter"
    assert at.host.sysctl(key) == "2"
    at.host.set_sysctls({key: 1})
    scene.wait(lambda: at.host.sysctl(key) == "2", "the device is loose again")
    for version, vip in VIPS.items():
        assert scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client == CLIENT[version]


def test_what_a_device_was_before_is_remembered_although_someone_made_it_strict_meanwhile(scene: Scene) -> None:
    at = scene.cluster.nodes["worker1"]
    key = f"net.ipv4.conf.{at.pods['pod1'].host_device}.rp_filter"
    at.host.set_sysctls({key: 1})
    scene.wait(lambda: at.host.sysctl(key) == "2", "the device is loose again")
    scene.manifests.annotate("web", {"cmd.nu/tunnel": None})
    try:
        scene.wait(lambda: at.host.sysctl(key) == "1", "the device is as it was")
        assert at.host.sysctl("net.ipv4.conf.all.rp_filter") == "1"
    finally:
        scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
        scene.settle()
