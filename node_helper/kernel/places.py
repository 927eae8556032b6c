"""Where routers are: the one that everybody knows, and the one that takes its traffic while that is built anew."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

LINK_PREFIX = {4: 30, 6: 64}
"""Of the addresses of a link to a router, by IP version."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a router is: its namespace, and the host's end of the link to it, with the addresses of both ends."""

    namespace: str
    host_device: str
    host_link: Mapping[int, str]
    router_link: Mapping[int, str]


MAIN = Place("service-tunnel", "svctun", {4: "169.254.74.1", 6: "fe80::74:1"}, {4: "169.254.74.2", 6: "fe80::74:2"})
SECOND = Place(
    "service-tunnel-2", "svctun-2", {4: "169.254.74.5", 6: "fe80::74:5"}, {4: "169.254.74.6", 6: "fe80::74:6"}
)
"""Of the router that takes the traffic while the one in the first place is built anew."""
PLACES = (MAIN, SECOND)


def has_link(place: Place) -> bool:
    """The host has a link to a router there; asked in the host's namespace."""
    try:
        return bool(socket.if_nametoindex(place.host_device))
    except OSError:
        return False
