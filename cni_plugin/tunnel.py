"""What a pod is to have: VIPs, the encapsulation by which their packets arrive, port remaps.

The vocabulary that the plugin and the helper share. The helper answers the plugin's ask with a
`PodTunnels`; both then hand it to `cni_plugin.pod`.
"""

from __future__ import annotations

from cni_plugin.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VXLAN_GPE = "vxlan-gpe"
GRE = "gre"
MPLS = "mpls"
MODES = (VXLAN_GPE, GRE, MPLS)
PROTOCOLS = ("tcp", "udp")
"""Those of remaps: what has ports."""

FIRST_INTERFACE = "eth0"
"""The name that every Kubernetes runtime gives the interface with the pod's own address."""

VXLAN_GPE_PORT = 4790
"""UDP port of VXLAN-GPE (IANA, draft-ietf-nvo3-vxlan-gpe)."""
FIRST_OUTER_PORT, OUTER_PORTS = 61000, 256
"""The source ports of VXLAN-GPE packets: enough to spread flows over queues and links, and not one for each flow, since
a node that tracks connections has an entry for each. They lie above those that programs get by default."""
POD_LABEL = 100
"""MPLS label that a packet carries into a pod."""
TUNNEL_ID = 100
"""VNI of VXLAN-GPE packets; unused on the wire in GRE, which sends a key only where the id is another."""

OVERHEAD = {VXLAN_GPE: 16, GRE: 4, MPLS: 4}
"""Bytes in front of the inner IP header, without the outer IP header (which MPLS does not have)."""
KEY_OVERHEAD = 4
"""Bytes more in GRE for packets whose tunnel id says something: only then it is sent."""
OUTER_HEADER = {4: 20, 6: 40}
"""Bytes of the outer IP header by IP version."""
GRE_KEY = 4
"""Bytes of GRE's key."""


def overhead(mode: str, outer_version: int, tunnel_id: int = TUNNEL_ID) -> int:
    """Bytes that the encapsulation takes from the path's MTU."""
    key = GRE_KEY if mode == GRE and tunnel_id != TUNNEL_ID else 0
    return OVERHEAD[mode] + key + (0 if mode == MPLS else OUTER_HEADER[outer_version])


class Remap(Record):
    """A Service port whose packets go to another port of the pod's program."""

    protocol: str
    """`tcp` or `udp`."""
    port: int
    """The port that the client sees."""
    target_port: int
    """The port that the program listens on."""


class HandOn(Record):
    """Where a pod sends packets of connections that it does not know, of buckets that came to it from others.

    The tunnel by which such a packet comes names, by its id, the endpoints that had the bucket before, the latest
    first. The pod hands the packet on to the first of them, with the id that names the rest: every step shortens the
    list, so no packet can go round in circles.
    """

    tunnel_id: int
    """The id with which packets come: 24 bits, and not `TUNNEL_ID`."""
    endpoint: str
    """Address of the pod that had the bucket before."""
    next_id: int
    """The id with which the packet goes on; `TUNNEL_ID` where nobody else had the bucket."""


class Tunnel(Record):
    """One Service's VIPs on a pod."""

    vips: tuple[str, ...]
    """Addresses in canonical text form (RFC 5952 for IPv6), IPv4 and IPv6 mixed."""
    mode: str = VXLAN_GPE
    remaps: tuple[Remap, ...] = ()
    hand_ons: tuple[HandOn, ...] = ()
    """Only while buckets have moved lately."""
    peers: tuple[str, ...] = ()
    """Addresses of pods that may hand on packets for these VIPs to this pod."""


class PodTunnels(Record):
    """All that a pod is to have."""

    tunnels: tuple[Tunnel, ...] = ()
    sources: tuple[str, ...] = ()
    """Outer source addresses from which encapsulated packets are accepted; empty: from anywhere."""


NOTHING = PodTunnels()
"""A pod without tunnels."""


def to_plain(pod: PodTunnels) -> dict[str, Any]:
    """The form that goes over the socket and into attachment records."""
    return {
        "tunnels": [
            {
                "vips": list(tunnel.vips),
                "mode": tunnel.mode,
                "remaps": [[remap.protocol, remap.port, remap.target_port] for remap in tunnel.remaps],
                "hand_ons": [[step.tunnel_id, step.endpoint, step.next_id] for step in tunnel.hand_ons],
                "peers": list(tunnel.peers),
            }
            for tunnel in pod.tunnels
        ],
        "sources": list(pod.sources),
    }


def from_plain(plain: Any) -> PodTunnels:
    """Inverse of `to_plain`; raises ValueError on anything of another shape."""
    try:
        return PodTunnels(
            tuple([_tunnel(tunnel) for tunnel in _list(plain["tunnels"])]),
            tuple([_address(source) for source in _list(plain["sources"])]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a description of tunnels: {error!r}") from None


def _tunnel(plain: Any) -> Tunnel:
    vips = tuple([_address(vip) for vip in _list(plain["vips"])])
    mode = _one_of(MODES, "mode", plain["mode"])
    return Tunnel(
        vips,
        mode,
        tuple([_remap(*_list(remap)) for remap in _list(plain["remaps"])]),
        # Records of the time before buckets could move without a loss have neither.
        tuple([_hand_on(*_list(step)) for step in _list(plain.get("hand_ons", []))]),
        tuple([_address(peer) for peer in _list(plain.get("peers", []))]),
    )


def _hand_on(tunnel_id: object, endpoint: object, next_id: object) -> HandOn:
    return HandOn(_tunnel_id(tunnel_id), _address(endpoint), _tunnel_id(next_id))


def _remap(protocol: object, port: object, target: object) -> Remap:
    return Remap(_one_of(PROTOCOLS, "protocol", protocol), _port(port), _port(target))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"list expected, not {value!r}")
    return value


def _address(value: object) -> str:
    """An address as it is: the kernel is told it, and what is no address would fail there, half-way."""
    from _socket import AF_INET, AF_INET6, inet_pton  # its functions only compute

    if not isinstance(value, str):
        raise ValueError(f"address expected, not {value!r}")
    try:
        inet_pton(AF_INET6 if ":" in value else AF_INET, value)
    except (OSError, ValueError):
        raise ValueError(f"address expected, not {value!r}") from None
    return value


def _one_of(choices: tuple[str, ...], what: str, value: object) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {what} {value!r}: one of {', '.join(choices)}")
    return value


def _tunnel_id(value: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 24:
        raise ValueError(f"tunnel id of 24 bits expected, not {value!r}")
    return value


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise ValueError(f"port expected, not {value!r}")
    return value
