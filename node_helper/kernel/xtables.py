"""Our iptables chains: whole chains, put in place by one atomic restore, only when they are not so already.

Each chain ends with a rule that never matters. Its comment is a seal: the checksum of the text that we gave, and that
of the rules as iptables prints them, which is another text, and with other versions of iptables yet another. So "is it
so already" needs no parsing of what iptables makes of our words, and no memory.

A tool that holds the lock of legacy iptables makes us wait for a moment only: the thread that asks has others waiting.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence

from node_helper.kernel import ipsets
from node_helper.kernel.commands import run
from node_helper.kernel.places import MAIN
from node_helper.plan.cover import Covers
from node_helper.plan.state import MARK, RouterWanted

_TOOLS = {4: "iptables", 6: "ip6tables"}
_WAIT = "--wait=2"
"""Seconds for the lock. What was not done then is done in the next cycle."""
# A `socket` match makes the kernel put fragments together, also without connection tracking; these never match.
_DEFRAGMENT = {4: "-s 255.255.255.255", 6: "-s ::1 -d ::1"}
HOST_CHAINS = {
    ("raw", "SERVICE-TUNNEL"): "PREROUTING",
    ("filter", "SERVICE-TUNNEL-FORWARD"): "FORWARD",
}
"""(table, our chain) -> the built-in chain that calls it first."""
_SEAL = re.compile(r"svctun-([0-9a-f]{8})-([0-9a-f]{8})")
_UNKNOWN = 8 * "0"


# Devices whose rp_filter we loosened would take any source: a pod could send packets as if from a node, and
# tunnels are believed by their source. So what is not from a VIP is checked as strictly as the kernel did.
_STRICT_BUT_FOR_VIPS = (
    f"-A SERVICE-TUNNEL -m set --match-set {ipsets.LOOSE} src,src -m set ! --match-set {ipsets.NAMES[4]} src"
    " -m rpfilter --invert -j DROP",
)


def ensure_router_chains(wanted: RouterWanted) -> bool:
    """HMARK on everything that enters the router; the thread is in its namespace, where the set must be.

    Raises CommandFailed.
    """
    changed = False
    hmark = f"--hmark-mod {wanted.buckets} --hmark-offset {MARK:#x} --hmark-rnd {wanted.seed:#x}"
    for version, tool in _TOOLS.items():
        by_address = f"-m set --match-set {ipsets.AFFINITY[version]} dst"
        rules = [
            f"-A PREROUTING {_DEFRAGMENT[version]} -m socket -j RETURN",
            f"-A PREROUTING -i host0 -j HMARK --hmark-tuple src,dst,sport,dport {hmark}",
            f"-A PREROUTING -i host0 {by_address} -j HMARK --hmark-tuple src,dst {hmark}",
        ]
        if not _is_whole(_rules_of(_saved(tool, "mangle"), "PREROUTING"), rules):
            _put(tool, "mangle", "PREROUTING", rules, [":PREROUTING ACCEPT [0:0]"], ())
            changed = True
    return changed


def remove_router_chains() -> None:
    """Takes out of the router's namespace, in which the thread is, what `ensure_router_chains` has put there.

    Raises CommandFailed.
    """
    for tool in _TOOLS.values():
        if _rules_of(_saved(tool, "mangle"), "PREROUTING"):
            _restore(tool, "mangle", [":PREROUTING ACCEPT [0:0]"])


def _host_rules(version: int, covers: Covers, links: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Addresses are compared with the network of all VIPs before they are looked up in a set."""
    vips = f"-m set --match-set {ipsets.NAMES[version]}"
    cover = covers.get(version)
    return {
        ("raw", "SERVICE-TUNNEL"): [
            *(
                (
                    # Replies to the node's own connections stay tracked: stateful INPUT rules must know them.
                    f"-A SERVICE-TUNNEL -s {cover} {vips} src -m addrtype --dst-type LOCAL -j RETURN",
                    f"-A SERVICE-TUNNEL -d {cover} {vips} dst -j CT --notrack",
                    f"-A SERVICE-TUNNEL -s {cover} {vips} src -j CT --notrack",
                )
                if cover
                else ()
            ),
            *(f"-A SERVICE-TUNNEL -i {link} -j CT --notrack" for link in links),
            *(_STRICT_BUT_FOR_VIPS if version == 4 else ()),
        ],
        ("filter", "SERVICE-TUNNEL-FORWARD"): [
            *(f"-A SERVICE-TUNNEL-FORWARD {way} {link} -j ACCEPT" for link in links for way in ("-i", "-o")),
            *((f"-A SERVICE-TUNNEL-FORWARD -s {cover} {vips} src -j ACCEPT",) if cover else ()),
        ],
    }


def ensure_host_chains(
    covers: Covers,
    before: Callable[[int, str, str], None] = lambda *_: None,
    links: Sequence[str] = (MAIN.host_device,),
) -> bool:
    """NOTRACK and FORWARD chains, called first; the sets that they name must exist. Raises CommandFailed.

    They heed VIPs in the networks of `covers` only, and what comes from a router by one of `links`. `before` is told of
    IP version, table and built-in chain before the first rule of ours comes into it.
    """
    changed = False
    for version, tool in _TOOLS.items():
        for (table, chain), rules in _host_rules(version, covers, links).items():
            lines = _saved(tool, table)
            builtin = HOST_CHAINS[table, chain]
            calls = _calls(lines, builtin, chain)
            called_first = calls == 1 and _rules_of(lines, builtin)[0] == f"-A {builtin} -j {chain}"
            if called_first and _is_whole(_rules_of(lines, chain), rules):
                continue
            if not _has(lines, chain):
                before(version, table, builtin)
            move = () if called_first else (*[f"-D {builtin} -j {chain}"] * calls, f"-I {builtin} -j {chain}")
            _put(tool, table, chain, rules, [f":{chain} - [0:0]"], move, "--noflush")
            changed = True
    return changed


def remove_host_chains(version: int) -> None:
    """Takes our chains and the calls to them away, and touches no other rule. Raises CommandFailed."""
    tool = _TOOLS[version]
    for (table, chain), builtin in HOST_CHAINS.items():
        lines = _saved(tool, table)
        text = [f"-D {builtin} -j {chain}"] * _calls(lines, builtin, chain)
        if _has(lines, chain):
            text += [f"-F {chain}", f"-X {chain}"]
        if text:
            _restore(tool, table, text, "--noflush")


def _put(
    tool: str, table: str, chain: str, rules: Sequence[str], heads: Sequence[str], more: Sequence[str], *flags: str
) -> None:
    """The chain with its seal; twice, since what iptables prints is known only when it has been printed."""
    seal = f"svctun-{_checksum(rules)}-{_UNKNOWN}"
    _restore(tool, table, [*heads, *rules, _sealing(chain, seal), *more], *flags)
    printed = _printed(_rules_of(_saved(tool, table), chain))
    _restore(tool, table, [*heads, *rules, _sealing(chain, seal.replace(f"-{_UNKNOWN}", f"-{printed}"))], *flags)


def _saved(tool: str, table: str) -> list[str]:
    return run([f"{tool}-save", "-t", table]).splitlines()


def _restore(tool: str, table: str, lines: Iterable[str], *flags: str) -> None:
    run([f"{tool}-restore", _WAIT, *flags], "\n".join([f"*{table}", *lines, "COMMIT", ""]))


def _has(saved: Sequence[str], chain: str) -> bool:
    return any(line.startswith(f":{chain} ") for line in saved)


def _calls(saved: Sequence[str], builtin: str, chain: str) -> int:
    return saved.count(f"-A {builtin} -j {chain}")


def _rules_of(saved: Sequence[str], chain: str) -> list[str]:
    return [line for line in saved if line.startswith(f"-A {chain} ")]


def _is_whole(printed: Sequence[str], rules: Sequence[str]) -> bool:
    """Whether a chain was made from these rules, and is printed as it was then."""
    seal = _SEAL.search(printed[-1]) if printed else None
    return seal is not None and (seal[1], seal[2]) == (_checksum(rules), _printed(printed))


def _printed(rules: Sequence[str]) -> str:
    """The checksum of rules as iptables prints them, the seal's own place for it left out."""
    return _checksum([*rules[:-1], *[_SEAL.sub(r"\1", line) for line in rules[-1:]]])


def _checksum(rules: Iterable[str]) -> str:
    return f"{zlib.crc32(chr(10).join(rules).encode()):08x}"


def _sealing(chain: str, seal: str) -> str:
    return f"-A {chain} -m comment --comment {seal} -j RETURN"
