"""What the kernel itself shows of us, by the tools of an operator: not what the helper says of its own work."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from typing import Any

from tests.testbed.cni import Pod
from tests.testbed.host import Host
from tests.testbed.namespaces import Place, TestbedError

ROUTER = "service-tunnel"
_NAMES = ("svctun", ROUTER)
_MARK = "192.0.2.255"
_PATIENCE = 30.0


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


class Monitor:
    """Watches routes, rules and nexthops of a node and of its router until the end of `with`."""

    def __init__(self, host: Host) -> None:
        self.changes: list[str] = []
        """One line each; complete after the end of `with`."""
        self._places = (host, host.place(ROUTER, f"/run/netns/{ROUTER}"))
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Monitor:
        for place in self._places:
            command = ("stdbuf", "-oL", "ip", "monitor", "route", "rule", "nexthop")
            self._processes.append(place.popen(*command, stdout=subprocess.PIPE))
        self._mark()
        return self

    def __exit__(self, *_: object) -> None:
        # What the kernel has told before the mark has been read when the mark has.
        self._mark()
        for process in self._processes:
            process.terminate()
            process.wait(20)

    def _mark(self) -> None:
        """Changes a route of no meaning until it is seen: so the watching has begun, and is up to date."""
        for place, process in zip(self._places, self._processes, strict=True):
            assert process.stdout is not None
            deadline = time.monotonic() + _PATIENCE
            seen = False
            while not seen:
                if time.monotonic() > deadline:
                    raise TestbedError(f"`ip monitor` on {place.name} shows nothing within {_PATIENCE:.0f} s")
                for change in ("add", "del"):
                    place.run("ip", "route", change, "blackhole", _MARK, "table", "4242")
                while select.select([process.stdout], [], [], 0.1)[0]:
                    line = os.read(process.stdout.fileno(), 1 << 16).decode()
                    lines = [each for each in line.splitlines() if each.strip()]
                    seen = seen or any(_MARK in each for each in lines)
                    self.changes += [f"{place.name}: {each}" for each in lines if _MARK not in each]
