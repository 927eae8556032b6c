"""What a node must have for the tunnels to work, tried out in a scratch namespace rather than looked up."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cni_plugin.netlink import Socket, nftables, rtnl
from cni_plugin.netns import entered
from cni_plugin.pod import ruleset
from cni_plugin.pod.state import read_sysctl
from cni_plugin.tunnel import GRE, MPLS, TUNNEL_ID, VXLAN_GPE
from node_helper.kernel import ipsets, xtables
from node_helper.kernel.commands import run
from node_helper.kernel.modules import load_mpls
from node_helper.kernel.router import device_of
from node_helper.plan.state import ANNOUNCED, RouterWanted

_PROGRAMS = ("ip", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore")
_MODULE = {VXLAN_GPE: "vxlan", GRE: "ip_gre"}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    good: bool
    mend: str = ""
    optional: bool = False
    """Lacking it takes away one mode or IP version, not everything."""


def check(modes: Iterable[str]) -> list[Finding]:
    """One finding per thing that is needed; leaves nothing behind. Raises CommandFailed without `ip netns`."""
    findings = [_program(name) for name in _PROGRAMS]
    for version, name in ((4, "net.ipv4.ip_forward"), (6, "net.ipv6.conf.all.forwarding")):
        good = read_sysctl(name.removeprefix("net.").replace(".", "/")) == "1"
        mend = f"sysctl -w {name}=1 (a network plugin usually does)"
        findings.append(Finding(f"IPv{version} forwarding ({name})", good, mend, optional=version == 6))
    if not findings[0].good:
        return findings
    scratch = f"svctun-try-{os.getpid()}"
    run(["ip", "netns", "add", scratch])
    try:
        with entered(f"/run/netns/{scratch}"):
            findings += [_tried(*trial) for trial in _TRIALS]
            findings += [_mpls() if mode == MPLS else _encapsulation(mode) for mode in modes]
    finally:
        run(["ip", "netns", "delete", scratch])
    return findings


def _program(name: str) -> Finding:
    return Finding(f"the program {name}", shutil.which(name) is not None, f"install the package that has {name}")


def _tried(what: str, mend: str, attempt: Callable[[], object], optional: bool = False) -> Finding:
    try:
        attempt()
    except OSError as error:
        return Finding(f"{what} ({error.strerror or error})", False, mend, optional)
    return Finding(what, True)


def _hmark() -> None:
    xtables.ensure_router_chains(RouterWanted(2, 1, ()))


def _notrack() -> None:
    ipsets.add(frozenset())
    xtables.ensure_host_chains()


def _pod_rules() -> None:
    with nftables.open_socket() as netfilter:
        nftables.commit(netfilter, ruleset.install())


_TRIALS: tuple[tuple[str, str, Callable[[], object]], ...] = (
    ("the router's HMARK target and socket match", "modprobe xt_HMARK xt_socket", _hmark),
    (
        "the host's ipset match, NOTRACK and reverse-path match",
        "modprobe ip_set_hash_ip ip_set_hash_netiface xt_set xt_CT ipt_rpfilter",
        _notrack,
    ),
    ("the pods' nf_tables rules", "modprobe nf_tables nft_tproxy", _pod_rules),
)


def _encapsulation(mode: str) -> Finding:
    """The device, and a nexthop object that encapsulates by it."""

    def attempt() -> None:
        name = device_of(mode, 4)
        with Socket() as route:
            route.run(rtnl.add_tunnel_device(name, mode))
            link = next(link for link in rtnl.dump_links(route) if link.name == name)
            nexthop = rtnl.Nexthop(1, 4, link.index, "", "198.51.100.1", "", 0, ANNOUNCED)
            route.run(rtnl.put_nexthop(nexthop, TUNNEL_ID))

    mend = f"modprobe {_MODULE[mode]}, and a kernel of 5.3 or later for nexthop objects (or another mode)"
    return _tried(f"mode {mode}: device and nexthop objects", mend, attempt, optional=True)


def _mpls() -> Finding:
    load_mpls()
    good = read_sysctl("mpls/platform_labels") is not None
    return Finding("mode mpls: MPLS routing", good, "modprobe mpls_router mpls_iptunnel mpls_gso", optional=True)
