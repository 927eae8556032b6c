"""What the kernel itself shows of us, by the tools of an operator: not what the helper says of its own work."""

from __future__ import annotations

import json
from typing import Any

from tests.testbed.cni import Pod
from tests.testbed.host import Host
from tests.testbed.namespaces import Place

ROUTER = "service-tunnel"
_NAMES = ("svctun", ROUTER)


def vips_of(pod: Pod) -> set[str]:
    """Addresses on the pod's loopback device that are not loopback addresses."""
    found: list[dict[str, Any]] = json.loads(pod.place.run("ip", "-j", "addr", "show", "dev", "lo").stdout)
    addresses = {entry["local"] for device in found for entry in device.get("addr_info", ())}
    return addresses - {"127.0.0.1", "::1"}


def announced_routes(host: Host) -> int:
    """Number of the routes that BGP would announce: those of protocol 116, IPv4 and IPv6."""
    shown = [host.run("ip", version, "-j", "route", "show", "proto", "116").stdout for version in ("-4", "-6")]
    return sum(len(json.loads(routes or "[]")) for routes in shown)


def ours_in(place: Place) -> list[str]:
    """Links, namespaces, chains, sets and tables by our names, in words."""
    shown = {
        "link": place.run("ip", "-o", "link").stdout,
        "namespace": place.run("ip", "netns", "list").stdout,
        "rule": place.run("iptables-save").stdout + place.run("ip6tables-save").stdout,
        "set": place.run("ipset", "list", "-name").stdout,
        "table": place.run("nft", "list", "tables").stdout,
    }
    return [
        f"{kind} {line.strip()}"
        for kind, text in shown.items()
        for line in text.splitlines()
        if any(name in line.lower() for name in _NAMES)
    ]
