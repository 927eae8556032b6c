"""What strangers do to what is ours: put right at once where the kernel tells of it, else at the next comparison."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.scene import VIPS, Scene

IN_ROUTER = ("ip", "netns", "exec", "service-tunnel")
RESTORE = "printf '*raw\\n:PREROUTING ACCEPT\\nCOMMIT\\n*filter\\n:FORWARD ACCEPT\\nCOMMIT\\n' | {}-restore"
AT_ONCE: dict[str, tuple[str, ...]] = {
    "the link is set down": ("ip", "link", "set", "svctun", "down"),
    "the link is deleted": ("ip", "link", "del", "svctun"),
    "the link loses its IPv4 address": ("ip", "addr", "flush", "dev", "svctun", "scope", "link"),
    "the link loses its IPv6 address": ("ip", "addr", "del", "fe80::74:1/64", "dev", "svctun"),
    "the link's other end is set down": (*IN_ROUTER, "ip", "link", "set", "host0", "down"),
    "an IPv4 VIP's route is deleted": ("ip", "route", "del", f"{VIPS[4]}/32"),
    "an IPv6 VIP's route is deleted": ("ip", "-6", "route", "del", f"{VIPS[6]}/128"),
    "the router's namespace is deleted": ("ip", "netns", "del", "service-tunnel"),
    "a bucket's IPv4 route is deleted": (*IN_ROUTER, "ip", "route", "del", VIPS[4], "table", "1007"),
    "a bucket's IPv6 route is deleted": (*IN_ROUTER, "ip", "route", "del", VIPS[6], "table", "1007"),
    "a bucket's route is replaced": (
        *IN_ROUTER,
        "ip",
        "route",
        "replace",
        f"{VIPS[4]}/32",
        "table",
        "1007",
        "dev",
        "lo",
    ),
    "a nexthop is replaced": (*IN_ROUTER, "ip", "nexthop", "replace", "id", "1", "dev", "host0"),
    "a nexthop is made a black hole": (*IN_ROUTER, "ip", "nexthop", "replace", "id", "1", "blackhole"),
    "the nexthops are flushed": (*IN_ROUTER, "ip", "nexthop", "flush"),
    "a rule is deleted": (*IN_ROUTER, "ip", "rule", "del", "pref", "1000"),
    "an IPv6 rule is deleted": (*IN_ROUTER, "ip", "-6", "rule", "del", "pref", "1000"),
    "the rules are flushed, the kernel's own too": (*IN_ROUTER, "ip", "rule", "flush"),
    "the router's default route is deleted": (*IN_ROUTER, "ip", "route", "del", "default"),
    "the tunnel device is deleted": (*IN_ROUTER, "ip", "link", "del", "svctun-gpe"),
    "the hash is flushed": (*IN_ROUTER, "iptables", "-t", "mangle", "-F"),
    "the hash is replaced": (*IN_ROUTER, "ip6tables", "-t", "mangle", "-R", "PREROUTING", "2", "-j", "ACCEPT"),
    "a rule of our chain is replaced": ("iptables", "-t", "raw", "-R", "SERVICE-TUNNEL", "2", "-j", "ACCEPT"),
    "the call of our chain is deleted": ("iptables", "-D", "FORWARD", "-j", "SERVICE-TUNNEL-FORWARD"),
    "somebody gets before our chain": ("ip6tables", "-t", "raw", "-I", "PREROUTING", "-i", "other", "-j", "ACCEPT"),
    "a whole restore takes our chains away": ("sh", "-ec", RESTORE.format("iptables")),
    "the same for IPv6": ("sh", "-ec", RESTORE.format("ip6tables")),
}
WITHIN_RESYNC: dict[str, tuple[str, ...]] = {
    "a set loses its members": ("ipset", "flush", "svctun-vips4"),
    "a set has a stranger's member": ("ipset", "add", "svctun-vips6", "2001:db8::99"),
    "the link is filtered strictly": ("sysctl", "-q", "-w", "net.ipv4.conf.svctun.rp_filter=1"),
    "a VIP's route is replaced by another's": ("ip", "route", "replace", f"{VIPS[4]}/32", "dev", "lo"),
    "the router does not forward": (*IN_ROUTER, "sysctl", "-q", "-w", "net.ipv4.ip_forward=0"),
    "the router's address is deleted": (*IN_ROUTER, "ip", "addr", "flush", "dev", "lo", "scope", "global"),
}
CASES = [("3600", what) for what in AT_ONCE] + [("2", what) for what in WITHIN_RESYNC]


@pytest.fixture(scope="module", params=["3600", "2"])
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Scene(options=["--resync", request.param]) as scene:
        scene.apply_service()
        scene.apply_service("sticky", "198.51.100.9", selector={"app": "web"}, sessionAffinity="ClientIP")
        scene.add_pods((("worker1", "pod1"), ("worker2", "pod2")), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def picture(scene: Scene) -> list[str]:
    """Our state in host and router, without numbers that may be others after it was made anew."""
    host = scene.cluster.nodes["ingress1"].host
    asked = [
        ("ip", "route", "show", "proto", "116"),
        ("ip", "-6", "route", "show", "proto", "116"),
        ("ip", "-o", "addr", "show", "dev", "svctun"),
        ("ip", "-o", "link", "show", "svctun", "up"),
        ("iptables-save",),
        ("ip6tables-save",),
        ("ipset", "save"),
        ("sysctl", "net.ipv4.conf.svctun.rp_filter", "net.ipv4.conf.svctun.accept_local"),
        (*IN_ROUTER, "ip", "rule"),
        (*IN_ROUTER, "ip", "-6", "rule"),
        (*IN_ROUTER, "ip", "-o", "link", "show", "up"),
        (*IN_ROUTER, "ip", "-o", "addr", "show", "scope", "global"),
        (*IN_ROUTER, "ip", "route", "show", "table", "all", "proto", "116"),
        (*IN_ROUTER, "ip", "-6", "route", "show", "table", "all", "proto", "116"),
        (*IN_ROUTER, "ip", "nexthop"),
        (*IN_ROUTER, "iptables-save", "-t", "mangle"),
        (*IN_ROUTER, "ip6tables-save", "-t", "mangle"),
        (*IN_ROUTER, "ipset", "save"),
        (*IN_ROUTER, "sysctl", "net.ipv4.ip_forward"),
    ]
    lines = []
    for command in asked:
        found = host.run(*command, check=False).stdout.splitlines()
        if any(word.endswith("-save") for word in command):
            lines += [line for line in found if line.startswith("-A") and "other" not in line]  # their order counts
        else:
            lines += sorted(_without_numbers(line) for line in found if "inet6 fe80" not in line or "fe80::74:" in line)
    return [line for line in lines if "lookup default" not in line]  # an empty table that nobody needs


def _without_numbers(line: str) -> str:
    words = line.split()
    if "link/" in line:
        return words[1].partition("@")[0]
    if len(words) > 2 and words[2] in ("inet", "inet6"):
        return " ".join(words[1:4])
    return " ".join(word for word in words if not word.startswith("0x"))


def put_right(scene: Scene, command: tuple[str, ...]) -> None:
    before = picture(scene)
    assert len(before) > 1000
    host = scene.cluster.nodes["ingress1"].host
    host.run(*command)
    scene.wait(lambda: picture(scene) == before, "the state is whole again", 20)


@pytest.mark.parametrize(("scene", "what"), CASES, indirect=["scene"])
def test_it_is_put_right(scene: Scene, what: str) -> None:
    put_right(scene, {**AT_ONCE, **WITHIN_RESYNC}[what])
