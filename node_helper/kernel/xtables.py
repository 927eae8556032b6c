"""Our iptables chains: whole chains, put in place by one atomic restore, only when they are not so already.

Each chain ends with a rule that never matters and carries the checksum of the wanted text as its comment,
so that "is it so already" is one look and needs no parsing of what iptables makes of our words.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from node_helper.kernel import ipsets
from node_helper.kernel.commands import run
from node_helper.plan.state import MARK, RouterWanted

_TOOLS = {4: "iptables", 6: "ip6tables"}
# A `socket` match makes the kernel put fragments together, also without connection tracking; these never match.
_DEFRAGMENT = {4: "-s 255.255.255.255", 6: "-s ::1 -d ::1"}
HOST_CHAINS = {
    ("raw", "SERVICE-TUNNEL"): "PREROUTING",
    ("filter", "SERVICE-TUNNEL-FORWARD"): "FORWARD",
}
"""(table, our chain) -> the built-in chain that calls it first."""


# Devices whose rp_filter we loosened would take any source: a pod could send packets as if from a node, and
# tunnels are believed by their source. So what is not from a VIP is checked as strictly as the kernel did.
_STRICT_BUT_FOR_VIPS = (
    f"-A SERVICE-TUNNEL -m set --match-set {ipsets.LOOSE} src,src -m set ! --match-set {ipsets.NAMES[4]} src"
    " -m rpfilter --invert -j DROP",
)


def ensure_router_chains(wanted: RouterWanted) -> bool:
    """HMARK on everything that enters the router; the thread is in its namespace. Raises CommandFailed."""
    changed = False
    for version in (4, 6):
        by_address = sorted(vip for vip in wanted.by_address if (":" in vip) == (version == 6))
        hmark = f"--hmark-mod {wanted.buckets} --hmark-offset {MARK:#x} --hmark-rnd {wanted.seed:#x}"
        rules = [
            f"-A PREROUTING {_DEFRAGMENT[version]} -m socket -j RETURN",
            f"-A PREROUTING -i host0 -j HMARK --hmark-tuple src,dst,sport,dport {hmark}",
            *(f"-A PREROUTING -i host0 -d {vip} -j HMARK --hmark-tuple src,dst {hmark}" for vip in by_address),
        ]
        seal = _seal(rules)
        if _sealed(run([f"{_TOOLS[version]}-save", "-t", "mangle"]), "PREROUTING", seal, rules):
            continue
        text = ["*mangle", ":PREROUTING ACCEPT [0:0]", *rules, f"-A PREROUTING {_comment(seal)}", "COMMIT", ""]
        run([f"{_TOOLS[version]}-restore", "-w"], "\n".join(text))
        changed = True
    return changed


def _host_rules(version: int) -> dict[tuple[str, str], list[str]]:
    vips = f"-m set --match-set {ipsets.NAMES[version]}"
    return {
        ("raw", "SERVICE-TUNNEL"): [
            # Replies to the node's own connections stay tracked: stateful INPUT rules must know them.
            f"-A SERVICE-TUNNEL {vips} src -m addrtype --dst-type LOCAL -j RETURN",
            f"-A SERVICE-TUNNEL {vips} dst -j CT --notrack",
            f"-A SERVICE-TUNNEL {vips} src -j CT --notrack",
            "-A SERVICE-TUNNEL -i svctun -j CT --notrack",
            *(_STRICT_BUT_FOR_VIPS if version == 4 else ()),
        ],
        ("filter", "SERVICE-TUNNEL-FORWARD"): [
            "-A SERVICE-TUNNEL-FORWARD -i svctun -j ACCEPT",
            "-A SERVICE-TUNNEL-FORWARD -o svctun -j ACCEPT",
            f"-A SERVICE-TUNNEL-FORWARD {vips} src -j ACCEPT",
        ],
    }


def ensure_host_chains() -> bool:
    """NOTRACK and FORWARD chains; the sets that they name must exist. Raises CommandFailed."""
    changed = False
    for version, tool in _TOOLS.items():
        for (table, chain), rules in _host_rules(version).items():
            present = run([f"{tool}-save", "-t", table])
            seal = _seal(rules)
            jump = f"-A {HOST_CHAINS[table, chain]} -j {chain}"
            lines = present.splitlines()
            if jump in lines and _sealed(present, chain, seal, rules):
                continue
            text = [f"*{table}", f":{chain} - [0:0]", *rules, f"-A {chain} {_comment(seal)}"]
            if jump not in lines:
                text.append(f"-I {HOST_CHAINS[table, chain]} -j {chain}")
            run([f"{tool}-restore", "-w", "--noflush"], "\n".join([*text, "COMMIT", ""]))
            changed = True
    return changed


def remove_host_chains(version: int) -> None:
    """Takes our chains and the calls to them away, and touches no other rule. Raises CommandFailed."""
    tool = _TOOLS[version]
    for (table, chain), builtin in HOST_CHAINS.items():
        lines = run([f"{tool}-save", "-t", table]).splitlines()
        text = [f"-D {builtin} -j {chain}"] * lines.count(f"-A {builtin} -j {chain}")
        if any(line.startswith(f":{chain} ") for line in lines):
            text += [f"-F {chain}", f"-X {chain}"]
        if text:
            run([f"{tool}-restore", "-w", "--noflush"], "\n".join([f"*{table}", *text, "COMMIT", ""]))


def _sealed(saved: str, chain: str, seal: str, rules: Sequence[str]) -> bool:
    """The chain has the seal of these rules, and as many rules as they are with the seal."""
    return seal in saved and sum(line.startswith(f"-A {chain} ") for line in saved.splitlines()) == len(rules) + 1


def _seal(rules: Iterable[str]) -> str:
    return f"svctun-{zlib.crc32(chr(10).join(rules).encode()):08x}"


def _comment(seal: str) -> str:
    return f"-m comment --comment {seal} -j RETURN"
