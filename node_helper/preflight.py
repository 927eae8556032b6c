"""What a node must have for the tunnels to work: tried out in a scratch namespace, and what is around us looked at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cni_plugin.netlink import Socket, nftables, rtnl
from cni_plugin.netns import entered
from cni_plugin.pod import ruleset
from cni_plugin.pod.state import read_sysctl
from cni_plugin.tunnel import GRE, MPLS, TUNNEL_ID, VXLAN_GPE
from node_helper.kernel import ipsets, senders, xtables
from node_helper.kernel.commands import run
from node_helper.kernel.modules import load_mpls
from node_helper.kernel.router import device_of
from node_helper.kernel.survey import survey
from node_helper.node_survey import CHECKS, Check, Survey
from node_helper.plan.cover import covers
from node_helper.plan.state import ANNOUNCED, RouterWanted, Senders

_PROGRAMS = ("ip", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore")
_MODULE = {VXLAN_GPE: "vxlan", GRE: "ip_gre"}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    good: bool
    mend: str = ""
    optional: bool = False
    """Lacking it takes away one mode or IP version, not everything."""
    note: bool = False
    """Nothing is lacking, but this should be known: `mend` says what, a line each."""
    name: str = ""
    """For programs; empty: that of what was tried."""

    @property
    def passes(self) -> bool:
        """The node can take part in spite of it."""
        return self.good or self.optional or self.note


def check(modes: Iterable[str]) -> list[Finding]:
    """One finding per thing that is needed or should be known; leaves nothing behind.

    Raises CommandFailed without `ip netns`.
    """
    modes = tuple(modes)
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
    facts = survey()
    return findings + [_judged(row, facts, modes) for row in CHECKS]


def _judged(row: Check, facts: Survey, modes: Collection[str]) -> Finding:
    verdicts = list(row.judge(facts, modes))
    lacking = any(verdict.lacking for verdict in verdicts)
    says = "\n".join(verdict.says for verdict in verdicts)
    return Finding(row.what, not verdicts, says, note=bool(verdicts) and not lacking, name=row.name)


def as_text(findings: Iterable[Finding]) -> str:
    """A line for each, and the ways out below it."""
    lines = []
    for finding in findings:
        lines.append(f"{'ok  ' if finding.good else 'NOTE' if finding.note else 'LACK'}  {finding.what}")
        lines += [] if finding.good else [f"      {line}" for line in finding.mend.splitlines()]
    return "\n".join(lines)


def as_plain(findings: Sequence[Finding]) -> dict[str, Any]:
    """For programs."""
    return {
        "ok": all(finding.passes for finding in findings),
        "findings": [
            {
                "name": finding.name or finding.what,
                "what": finding.what,
                "state": "ok" if finding.good else "note" if finding.note else "lacking",
                "optional": finding.optional,
                "mend": [] if finding.good else finding.mend.splitlines(),
            }
            for finding in findings
        ],
    }


def _program(name: str) -> Finding:
    return Finding(f"the program {name}", shutil.which(name) is not None, f"install the package that has {name}")


def _tried(what: str, mend: str, attempt: Callable[[], object], optional: bool = False) -> Finding:
    try:
        attempt()
    except OSError as error:
        return Finding(f"{what} ({error.strerror or error})", False, mend, optional)
    return Finding(what, True)


def _hmark() -> None:
    ipsets.keep_affinity(frozenset())
    xtables.ensure_router_chains(RouterWanted(2, 1, ()))


_A_VIP_OF_EACH = ("192.0.2.1", "2001:db8::1")
"""Of either IP version, so that all rules are tried; documentation's addresses."""


def _notrack() -> None:
    ipsets.add(frozenset())
    xtables.ensure_host_chains(covers(frozenset(_A_VIP_OF_EACH)))


def _senders() -> None:
    _, refused = senders.ensure(Senders())
    for error in refused:
        raise error


def _pod_rules() -> None:
    with nftables.open_socket() as netfilter:
        nftables.commit(netfilter, ruleset.install())


_TRIALS: tuple[tuple[str, str, Callable[[], object], bool], ...] = (
    ("the router's HMARK target and socket match", "modprobe xt_HMARK xt_socket", _hmark, False),
    (
        "the host's ipset match, NOTRACK and reverse-path match",
        "modprobe ip_set_hash_ip ip_set_hash_netiface xt_set xt_CT ipt_rpfilter",
        _notrack,
        False,
    ),
    (
        "the host's filter of what pods send each other",
        "modprobe nft_fib_inet, and a kernel with NF_TABLES_BRIDGE; without it trust your pods",
        _senders,
        True,
    ),
    ("the pods' nf_tables rules", "modprobe nf_tables nft_tproxy", _pod_rules, False),
)


def _encapsulation(mode: str) -> Finding:
    """The device, and a nexthop object that encapsulates by it."""

    def attempt() -> None:
        name = device_of(mode, 4)
        with Socket() as route:
            route.run(rtnl.add_tunnel_device(name, mode))
            link = next(link for link in rtnl.dump_links(route) if link.name == name)
            nexthop = rtnl.Nexthop(1, 4, link.index, "", "198.51.100.1", "", 0, ANNOUNCED, TUNNEL_ID)
            route.run(rtnl.put_nexthop(nexthop))

    mend = f"modprobe {_MODULE[mode]}, and a kernel of 5.3 or later for nexthop objects (or another mode)"
    return _tried(f"mode {mode}: device and nexthop objects", mend, attempt, optional=True)


def _mpls() -> Finding:
    load_mpls()
    good = read_sysctl("mpls/platform_labels") is not None
    return Finding("mode mpls: MPLS routing", good, "modprobe mpls_router mpls_iptunnel mpls_gso", optional=True)
