"""All that can be seen of a node or a pod, but for counters, to be compared with what was there before."""

from __future__ import annotations

from tests.testbed.namespaces import Place

COMMANDS = {
    "links": "ip -d -o link",
    "addresses": "ip -o addr",
    "routes": "ip route show table all | sort",
    "routes6": "ip -6 route show table all | sort",
    "rules": "ip rule; ip -6 rule",
    "nexthops": "ip nexthop",
    "labels": "ip -f mpls route",
    "sets": "ipset save | sort",
    "iptables": "iptables-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//'",
    "ip6tables": "ip6tables-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//'",
    "nft": "nft -s list ruleset",
    "namespaces": "ls /run/netns",
    "sysctls": "sysctl -a | grep '^net\\.' | grep -vE 'secret|nf_conntrack_count|tcp_fastopen_key'",
}
"""Names to shell commands. What a kernel lacks is empty: `ip -f mpls route`."""


def picture(place: Place) -> dict[str, str]:
    """By the names of `COMMANDS`."""
    return {
        name: place.run("sh", "-c", f"({command}) 2>/dev/null", check=False).stdout
        for name, command in COMMANDS.items()
    }


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is missing (`-`) and what has come (`+`), line by line, by the name of its command."""
    found = []
    for name, text in before.items():
        old, new = text.splitlines(), after[name].splitlines()
        changed = [f"{name} - {line}" for line in old if line not in new]
        changed += [f"{name} + {line}" for line in new if line not in old]
        if not changed and text != after[name]:
            changed = [f"{name}: the same lines, in another order or number"]
        found += changed
    return found
