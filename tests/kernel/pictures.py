"""All that can be seen of a node, its router and a pod, as lines that can be compared: before, while, after."""

from __future__ import annotations

import re
from pathlib import Path

from tests.testbed.cluster import Node
from tests.testbed.scene import Scene

_ROUTES = "ip -4 route show table all | sort"
_ROUTES6 = "ip -6 route show table all | grep -vE 'fe80::/|(local|anycast) fe80::|ff00' | sort"
_ADDRESSES = "ip -brief addr | sed -E 's/ fe80:(:[0-9a-f]{1,4}){4}.64//' | sort"
# Without the link-local addresses that devices get by themselves, some time after they were made.
_TABLES = "for t in iptables ip6tables; do echo $t; $t-save | grep -v '^#' | sed 's/ \\[[0-9:]*\\]$//'; done"
_HOST = {
    "links": "ip -brief link | sort",
    "addresses": _ADDRESSES,
    "routes": _ROUTES,
    "routes6": _ROUTES6,
    "rules": "ip rule; ip -6 rule",
    "labels": "ip -f mpls route 2>/dev/null",
    "nexthops": "ip nexthop",
    "sets": "ipset list -name 2>/dev/null | while read n; do ipset save $n | grep ^add | sort; done",
    "tables": "nft list tables",
    "iptables": _TABLES,
    "namespaces": "ls /run/netns 2>/dev/null",
}
_ROUTER = {
    "router's links": "ip -brief link | sort",
    "router's addresses": _ADDRESSES,
    "router's routes": _ROUTES,
    "router's routes6": _ROUTES6,
    "router's rules": "ip rule; ip -6 rule",
    "router's nexthops": "ip nexthop",
    "router's iptables": _TABLES,
}
_VOLATILE = re.compile(r"nf_conntrack_count|stable_secret|_key$|flush$")
"""Sysctls that change by themselves, or are made up anew for each device."""


def picture(node: Node) -> dict[str, str]:
    """Everything on a node and in its router that an operator would look at, without counters; and all sysctls."""
    there = node.host.path("/run/netns/service-tunnel").exists()
    shown = _shown(node, _HOST, "sh") | (_shown(node, _ROUTER, "ip netns exec service-tunnel sh") if there else {})
    return shown | {"sysctls": "\n".join(f"{name} = {value}" for name, value in sysctls(node).items())}


def _shown(node: Node, commands: dict[str, str], shell: str) -> dict[str, str]:
    """What the commands print; one shell runs them all."""
    script = "\n".join(f'echo "@@@ {name}"\n{command}' for name, command in commands.items())
    parts = node.host.run(*shell.split(), "-c", script, check=False).stdout.split("@@@ ")[1:]
    found = {name: text for name, _, text in (part.partition("\n") for part in parts)}
    assert found.keys() == commands.keys()
    return found


def sysctls(node: Node) -> dict[str, str]:
    """Every sysctl below /proc/sys/net of a node that can be read and does not change by itself."""
    return node.host.call(_read_sysctls)


def _read_sysctls() -> dict[str, str]:
    found = {}
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        name = str(path.relative_to("/proc/sys"))
        if path.is_file() and not _VOLATILE.search(name):
            try:
                found[name] = path.read_text().strip()
            except OSError:
                continue  # to be written only
    return found


def picture_of_pod(scene: Scene, name: str) -> str:
    """A pod's namespace, but for which UDP clients it remembers."""
    pod = next(pod for pod in scene.cluster.pods if pod.name == name)
    command = "ip addr | grep -v valid_lft; ip route show table all; ip -6 route show table all; ip rule; ip -6 rule; "
    command += "ip -f mpls route 2>/dev/null; nft -s list ruleset; sysctl -a 2>/dev/null | grep -E 'rp_filter|mpls'"
    shown = pod.place.run("sh", "-c", command).stdout
    shown = re.sub(r"(map reply(?:_odd)?[46] \{[^}]*?)\s*elements = \{[^}]*\}", r"\1", shown)
    return re.sub(r"elements = \{([^}]*)\}", _elements, shown)


def _elements(found: re.Match[str]) -> str:
    """In one line and in order: the kernel's hash tables have none, and where nft breaks lines depends on it."""
    return f"elements = {{ {', '.join(sorted(element.strip() for element in found[1].split(',')))} }}"
