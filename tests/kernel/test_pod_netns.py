"""A pod's netns of the real kernel: configured, changed, repaired, and cleared without a trace."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import pod
from cni_plugin.netlink import Socket, nftables, rtnl
from cni_plugin.netlink.address import pack
from cni_plugin.netns import entered
from cni_plugin.pod.plan import Operation
from cni_plugin.pod.ruleset import TABLE
from cni_plugin.pod.state import read, read_sysctl
from cni_plugin.pod.target import DEVICE
from cni_plugin.tunnel import GRE, MODES, MPLS, VXLAN_GPE, PodTunnels, Remap, Tunnel
from tests.kernel.private_netns import batch, private_netns, run, wait_until_delivered, wait_until_up
from tests.kernel_features import lacking_modes

VIP, VIP6, OTHER = "198.51.100.7", "2001:db8::7", "203.0.113.9"
FOREIGN = "203.0.113.200"
SOURCES = ("10.0.1.1", "fd00:1::1")
ETH0 = "eth0"
applying: Any = importlib.import_module("cni_plugin.pod.apply")


def web(mode: str) -> PodTunnels:
    remaps = (Remap("tcp", 80, 8080), Remap("udp", 53, 5353))
    return PodTunnels((Tunnel((VIP, VIP6), mode, remaps),), SOURCES)


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    """Loaded now: the first device of a kind would make the kernel add others of its own to every namespace."""
    subprocess.run(["modprobe", "-a", "-q", "ip_gre", "ip6_gre", "vxlan", "mpls_router"], check=False)


@pytest.fixture
def netns() -> Iterator[str]:
    """A pod that filters reverse paths strictly, as many distributions do."""
    with pod_netns("1") as path:
        yield path


@contextmanager
def pod_netns(rp_filter: str) -> Iterator[str]:
    """A pod with an interface, default routes, and things that are not ours but near to it."""
    with private_netns() as path:
        run(path, "sysctl", "-q", "-w", *(f"net.ipv4.conf.{n}.rp_filter={rp_filter}" for n in ("all", "default", "lo")))
        batch(
            path,
            "link add eth0 type veth peer name outside",
            "link set outside addrgenmode none up",  # no link-local addresses: they take time to settle
            "link set eth0 addrgenmode none up",
            "addr add 10.0.0.2/24 dev eth0",
            "addr add fd00::2/64 dev eth0 nodad",
            "route add default via 10.0.0.1 dev eth0",
            "route add default via fd00::1 dev eth0",
            "neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0",  # whom mode mpls would wait for
            f"addr add {FOREIGN}/32 dev lo",
            "route add 192.168.0.0/16 dev eth0 table 116 proto static",
            f"rule add pref 1160 from {FOREIGN} table 116",
            "link add tenants type vxlan id 5 dstport 4789 remote 10.0.0.3",
        )
        own = "set vips4 { type ipv4_addr; elements = { 192.0.2.1 }; }; chain c { udp dport 4790 accept; };"
        run(path, "nft", "-f", "-", text=f"table inet own {{ {own} }}")
        wait_until_up(path, ETH0, "outside")
        wait_until_delivered(path, "fd00::2")
        yield path


def sysctls() -> dict[str, str]:
    """Those of devices, of the namespace in which the thread is."""
    found = {}
    for folder in ("ipv4/conf", "ipv6/conf", "mpls/conf"):
        for device in ("all", "default", "lo", ETH0, *DEVICE.values()):
            for file in Path("/proc/sys/net", folder, device).glob("*"):
                if file.is_file() and file.name != "stable_secret":  # which is made up anew for each device
                    found[str(file)] = file.read_text()
    labels = Path("/proc/sys/net/mpls/platform_labels")
    return found | ({str(labels): labels.read_text()} if labels.exists() else {})


def picture(netns: str) -> dict[str, Any]:
    """Everything that can be seen in a namespace."""
    both = "route show table all\nrule\n"
    shown: dict[str, Any] = {
        "ip": run(netns, "ip", "-d", "-batch", "-", text=f"link\naddr\nnexthop\nneigh\n{both}"),
        "ip -6": run(netns, "ip", "-d", "-6", "-batch", "-", text=both),
        "nft": run(netns, "nft", "list", "ruleset"),
    }
    if MPLS not in lacking_modes():
        shown["labels"] = run(netns, "ip", "-f", "mpls", "route")
    with entered(netns):
        shown["sysctls"] = sysctls()
    return shown


def configured(netns: str, wanted: PodTunnels) -> dict[str, Any]:
    """The picture after `configure`."""
    pod.configure(netns, ETH0, wanted)
    return picture(netns)


def without_numbers(shown: dict[str, Any]) -> dict[str, Any]:
    """Without what is another each time a device or table is made: its number, its made-up address, its place."""
    kept: dict[str, Any] = dict(shown)
    kept["nft"] = sorted(re.split(r"(?m)^(?=table )", shown["nft"]))
    for name in ("ip", "ip -6"):
        lines = [line for line in shown[name].splitlines() if "fe80::" not in line]
        kept[name] = sorted(re.sub(r"^\d+: (svctun-\w+)(@\w+)?: .* mtu", r"\1: mtu", line) for line in lines)
    return kept


def operations(netns: str, wanted: PodTunnels) -> list[Operation]:
    with entered(netns), Socket() as route, nftables.open_socket() as netfilter:
        return pod.plan(wanted, read(route, netfilter, ETH0))


# --- configured -----------------------------------------------------------------------------------------


def test_a_second_configuration_finds_nothing_to_do(netns: str, mode: str) -> None:
    missing = pod.missing(netns, ETH0, web(mode))
    assert f"VIP {VIP} is not on lo" in missing
    assert len(pod.configure(netns, ETH0, web(mode))) >= len(missing)
    assert pod.missing(netns, ETH0, web(mode)) == []
    assert pod.configure(netns, ETH0, web(mode)) == []


def test_the_vip_is_on_lo_and_replies_have_room_for_the_encapsulation(netns: str, mode: str) -> None:
    pod.configure(netns, ETH0, web(mode))
    lo = run(netns, "ip", "addr", "show", "lo")
    assert f"inet {VIP}/32 scope global lo" in lo
    assert f"inet6 {VIP6}/128 scope global nodad deprecated" in lo
    assert f"from {VIP} lookup 116 proto 116" in run(netns, "ip", "rule")
    assert f"from {VIP6} lookup 116 proto 116" in run(netns, "ip", "-6", "rule")
    segment = {VXLAN_GPE: 1424, GRE: 1436, MPLS: 1456}[mode]
    assert f"via 10.0.0.1 dev eth0 proto 116 advmss {segment}" in run(netns, "ip", "route", "show", "table", "116")
    shown = run(netns, "ip", "-6", "route", "show", "table", "116")
    assert "via fd00::1 dev eth0 proto 116" in shown and f"advmss {segment - 20}" in shown
    with entered(netns):
        loose = "lo" if mode == MPLS else DEVICE[mode]
        assert read_sysctl(f"ipv4/conf/{loose}/rp_filter") == "2"
    if mode in DEVICE:
        assert f"inet {VIP}/32 scope host {DEVICE[mode]}" in run(netns, "ip", "addr", "show", DEVICE[mode])
    else:
        assert "100 dev lo proto 116" in run(netns, "ip", "-f", "mpls", "route")


def test_a_packet_to_any_vip_is_delivered_from_the_moment_of_the_end_on(netns: str) -> None:
    """Of every second IPv6 address the kernel says that it is there some time before it delivers to it."""
    with entered(netns), Socket() as route, nftables.open_socket() as netfilter:
        for number in range(1, 200):
            wanted = PodTunnels((Tunnel((f"2001:db8::{number:x}",), VXLAN_GPE),))
            applying.apply(pod.plan(wanted, read(route, netfilter, ETH0)), route, netfilter)
            assert rtnl.lookup_route(route, f"2001:db8::{number:x}").kind == rtnl.LOCAL


def test_the_host_wide_filter_of_reverse_paths_stays_as_it_was(netns: str, mode: str) -> None:
    names = ("all", "default", ETH0)
    with entered(netns):
        before = [read_sysctl(f"ipv4/conf/{name}/rp_filter") for name in names]
    pod.configure(netns, ETH0, web(mode))
    with entered(netns):
        assert [read_sysctl(f"ipv4/conf/{name}/rp_filter") for name in names] == before


def test_while_tunnels_stand_nothing_of_the_pods_own_is_different(netns: str, mode: str) -> None:
    """All but the sysctls that mode mpls is known to change: devices, addresses, routes, rules, tables, sysctls."""
    before = picture(netns)
    after = configured(netns, web(mode))
    listed = {"ipv4/conf/lo/rp_filter", "mpls/platform_labels", "mpls/conf/eth0/input"} if mode == MPLS else set()
    changed = {
        name.removeprefix("/proc/sys/net/")
        for name, value in before["sysctls"].items()
        if after["sysctls"].get(name) != value
    }
    assert changed == listed
    added = after["sysctls"].keys() - before["sysctls"].keys()
    assert all(f"/conf/{DEVICE.get(mode)}/" in name for name in added)
    for kind in ("ip", "ip -6", "nft"):
        lines = after[kind].splitlines()
        gone = [line for line in before[kind].splitlines() if line not in lines]
        assert gone == [], f"{kind}: {gone}"
        new = [line for line in lines if line not in before[kind].splitlines()]
        device = bool(mode in DEVICE)
        ours = re.compile(rf"{VIP}|{VIP6}|116|svctun|valid_lft" + ("|fe80|multicast|vxlan|gre|link/" * device))
        if kind != "nft":
            assert [line for line in new if not ours.search(line)] == []
    assert before["nft"] in after["nft"], "the pod's own tables, as they were"


def test_a_pod_never_talks_from_an_ipv6_vip_of_its_own_accord(mode: str) -> None:
    """Not even when the VIP came while the pod's own address was still tentative."""
    with private_netns() as netns:
        batch(
            netns,
            "link add eth0 type veth peer name outside",
            "link set outside up",
            "link set eth0 up",
            "addr add 10.0.0.2/24 dev eth0",
            "addr add fd00::2/64 dev eth0",
            "route add default via fd00::1 dev eth0",
        )
        pod.configure(netns, ETH0, PodTunnels((Tunnel((VIP6,), mode),)))
        assert "tentative" not in run(netns, "ip", "-6", "addr", "show", "eth0", "scope", "global")
        assert "src fd00::2" in run(netns, "ip", "-6", "route", "get", "2001:db8:1::1")


def test_a_default_route_by_nexthop_object_is_followed(netns: str, mode: str) -> None:
    batch(netns, "nexthop add id 5 via 10.0.0.1 dev eth0", "route replace default nhid 5")
    pod.configure(netns, ETH0, web(mode))
    assert "default nhid 5 via 10.0.0.1 dev eth0" in run(netns, "ip", "route", "show", "table", "116")
    assert pod.configure(netns, ETH0, web(mode)) == []


# --- changed --------------------------------------------------------------------------------------------


def test_a_change_of_ports_or_sources_changes_elements_only(netns: str, mode: str) -> None:
    before = configured(netns, web(mode))
    changed = PodTunnels((Tunnel((VIP, VIP6), mode, (Remap("tcp", 80, 9090),)),), ("10.0.1.2",))
    assert pod.configure(netns, ETH0, changed) == ["change the elements of nf_tables sets"]
    after = picture(netns)
    assert {name for name in before if before[name] != after[name]} == {"nft"}
    assert f"{VIP} . tcp . 80 : 9090" in after["nft"]
    assert "8080" not in after["nft"]
    assert "10.0.1.1" not in after["nft"]
    pod.configure(netns, ETH0, web(mode))
    assert picture(netns) == before


def test_another_vip_leaves_no_trace_of_the_one_before(netns: str, mode: str) -> None:
    pod.configure(netns, ETH0, web(mode))
    other = PodTunnels((Tunnel((OTHER,), mode),), SOURCES)
    pod.configure(netns, ETH0, other)
    assert pod.configure(netns, ETH0, other) == []
    shown = str(picture(netns))
    assert OTHER in shown
    assert f"{VIP}/" not in shown and f"{VIP} " not in shown and VIP6 not in shown


def test_a_cluster_of_thousands_of_nodes_has_room_in_the_filter(netns: str) -> None:
    sources = tuple(f"10.{i >> 8}.{i & 255}.1" for i in range(6_000)) + tuple(f"fd00:{i:x}::1" for i in range(1, 3_000))
    wanted = web(VXLAN_GPE).replace(sources=sources)
    pod.configure(netns, ETH0, wanted)
    assert pod.configure(netns, ETH0, wanted) == []
    pod.configure(netns, ETH0, web(VXLAN_GPE))
    assert pod.configure(netns, ETH0, web(VXLAN_GPE)) == []


# --- repaired -------------------------------------------------------------------------------------------

DAMAGES: dict[str, tuple[str, ...]] = {
    "table": (f"nft delete table inet {TABLE}",),
    "elements": (f"nft flush set inet {TABLE} vips4", f"nft flush map inet {TABLE} remap4"),
    "rule": (f"ip rule del from {VIP} pref 1160",),
    "route": ("ip route flush table 116 proto 116", "ip -6 route flush table 116 proto 116"),
    "address": (f"ip addr del {VIP}/32 dev lo", f"ip addr del {VIP6}/128 dev lo"),
    "device": ("ip link del {device}",),
    "device-down": ("ip link set {device} down",),
    "filter": ("sysctl -q -w net.ipv4.conf.{loose}.rp_filter=1",),
    "label": ("ip -f mpls route del 100",),
    "input": ("sysctl -q -w net.mpls.conf.eth0.input=0",),
}


OF_LABELS, OF_DEVICES = {"label", "input"}, {"device", "device-down"}
"""The damages that only mode mpls can take, or only the other modes."""


@pytest.mark.parametrize(
    ("mode", "damage"),
    [
        (mode, damage)
        for mode in MODES
        for damage in DAMAGES
        if damage not in (OF_DEVICES if mode == MPLS else OF_LABELS)
    ],
)
def test_what_someone_broke_is_repaired(netns: str, mode: str, damage: str) -> None:
    device = DEVICE.get(mode, "")
    before = without_numbers(configured(netns, web(mode)))
    for command in DAMAGES[damage]:
        run(netns, *command.format(device=device, loose=device or "lo").split())
    assert pod.missing(netns, ETH0, web(mode)) != []
    assert without_numbers(configured(netns, web(mode))) == before
    assert pod.configure(netns, ETH0, web(mode)) == []


def test_vips_are_taken_away_although_someone_deleted_our_table(netns: str, mode: str) -> None:
    before = picture(netns)
    pod.configure(netns, ETH0, web(mode))
    run(netns, "nft", "delete", "table", "inet", TABLE)
    pod.clear(netns, ETH0)
    assert picture(netns) == before


def test_the_record_knows_the_vips_where_the_table_is_gone_and_no_rule_tells(mode: str) -> None:
    """A pod without a default route has no rules of ours, and its IPv6 VIPs are on `lo` only."""
    with pod_netns("1") as netns:
        batch(netns, "route del default via 10.0.0.1", "route del default via fd00::1")
        before = picture(netns)
        pod.configure(netns, ETH0, web(mode))
        run(netns, "nft", "delete", "table", "inet", TABLE)
        pod.clear(netns, ETH0, had=web(mode))
        assert picture(netns) == before


def test_the_rules_of_another_version_are_replaced(netns: str, mode: str) -> None:
    """That table had other sets, and knows VIPs that are no longer wanted."""
    pod.configure(netns, ETH0, web(mode))
    with entered(netns), nftables.open_socket() as socket:
        old = [
            nftables.delete_table(TABLE),
            nftables.add_table(TABLE, b"svctun0:00000000"),
            nftables.add_set(TABLE, "vips4", 1, (nftables.IPV4_ADDRESS,)),
            *nftables.add_elements(TABLE, "vips4", [(pack(VIP), b"")]),
        ]
        nftables.commit(socket, old)
    other = PodTunnels((Tunnel((OTHER,), mode, (Remap("tcp", 80, 8080),)),))
    done = pod.configure(netns, ETH0, other)
    assert "replace another version's nf_tables rules" in done
    assert pod.configure(netns, ETH0, other) == []
    assert f"{OTHER} . tcp . 80 : 8080" in run(netns, "nft", "list", "map", "inet", TABLE, "remap4")
    assert f"{VIP}/" not in run(netns, "ip", "addr")


# --- cleared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rp_filter", ["0", "1", "2"])
def test_a_cleared_pod_is_as_it_was_before(mode: str, rp_filter: str) -> None:
    with pod_netns(rp_filter) as netns:
        before = picture(netns)
        assert configured(netns, web(mode)) != before
        pod.clear(netns, ETH0)
        assert picture(netns) == before
        pod.clear(netns, ETH0)
        assert picture(netns) == before


def test_a_pod_with_tunnels_of_every_mode_is_cleared_of_all(netns: str) -> None:
    before = picture(netns)
    modes = [mode for mode in (VXLAN_GPE, GRE, MPLS) if mode not in lacking_modes()]
    wanted = PodTunnels(tuple(Tunnel((f"198.51.100.{n}", f"2001:db8::{n}"), mode) for n, mode in enumerate(modes, 1)))
    pod.configure(netns, ETH0, wanted)
    assert pod.configure(netns, ETH0, wanted) == []
    pod.clear(netns, ETH0)
    assert picture(netns) == before


def fail_once(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The operation of this number fails after it did what it had to do, which leaves the most behind."""
    number = 0

    def wrapped(function: Callable[..., None]) -> Callable[..., None]:
        def operation(*arguments: Any) -> None:
            nonlocal number
            number += 1
            function(*arguments)
            if number == at + 1:
                raise OSError(5, "the fault of the test")

        return operation

    kinds = {kind: wrapped(function) for kind, function in applying._KINDS.items()}
    monkeypatch.setattr(applying, "_KINDS", kinds)


def test_a_failure_at_any_operation_leaves_nothing(netns: str, mode: str) -> None:
    before = picture(netns)
    count = len(operations(netns, web(mode)))
    assert count > 5
    for at in range(count):
        with pytest.MonkeyPatch.context() as patch:
            fail_once(patch, at)
            with pytest.raises(pod.PodError) as raised:
                pod.configure(netns, ETH0, web(mode))
        assert raised.value.details.endswith("the fault of the test")
        assert picture(netns) == before, f"operation {at} of {count}"


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (mode, kind)
        for mode in MODES
        for kind in ("netlink", "device_address", "await_delivery", "sysctl", "install_ruleset")
        if (mode, kind) != (MPLS, "device_address")  # no device in this mode
    ],
)
def test_a_kind_of_operation_that_never_works_leaves_nothing(
    netns: str, mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a read-only /proc/sys; the undoing meets the same fault."""

    def fails(*_: object) -> None:
        raise OSError(30, "the fault of the test")

    before = picture(netns)
    monkeypatch.setitem(applying._KINDS, kind, fails)
    with pytest.raises(pod.PodError) as raised:
        pod.configure(netns, ETH0, web(mode))
    assert raised.value.details.endswith("the fault of the test")
    assert picture(netns) == before


def test_after_a_kill_at_any_operation_the_pod_can_be_cleared_or_configured(netns: str, mode: str) -> None:
    before = picture(netns)
    count = len(operations(netns, web(mode)))
    for at in range(count + 1):
        with entered(netns), Socket() as route, nftables.open_socket() as netfilter:
            applying.apply(pod.plan(web(mode), read(route, netfilter, ETH0))[:at], route, netfilter)
        if at % 2:
            pod.configure(netns, ETH0, web(mode))
            assert pod.configure(netns, ETH0, web(mode)) == []
        pod.clear(netns, ETH0)
        assert picture(netns) == before, f"killed after {at} of {count} operations"


def test_what_is_no_namespace_and_an_interface_that_is_not_there_are_named(netns: str, tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "file"):
        if path.name == "file":
            path.touch()
        with pytest.raises(pod.PodError) as raised:
            pod.configure(str(path), ETH0, web(VXLAN_GPE))
        assert str(path) in raised.value.details
    with pytest.raises(pod.PodError) as raised:
        pod.configure(netns, "net1", web(VXLAN_GPE))
    assert "the pod has no interface 'net1', only lo, " in raised.value.details


@pytest.mark.parametrize(("wanted", "kept"), [((VIP, OTHER), True), ((OTHER,), False)])
def test_with_a_vip_goes_what_the_pod_remembers_of_udp_clients(netns: str, wanted: tuple[str, ...], kept: bool) -> None:
    """One that always uses the same port would be answered from the old VIP for ever."""
    pod.configure(netns, ETH0, PodTunnels((Tunnel((VIP,), VXLAN_GPE, ()),), SOURCES))
    run(netns, "nft", f"add element inet {TABLE} reply4 {{ 203.0.113.1 . 5060 . 5060 timeout 3m : {VIP} }}")
    pod.configure(netns, ETH0, PodTunnels((Tunnel(wanted, VXLAN_GPE, ()),), SOURCES))
    assert ("203.0.113.1" in run(netns, "nft", "list", "map", "inet", TABLE, "reply4")) is kept
