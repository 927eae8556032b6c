"""The kernel state that this project owns, in the form in which wanted and present are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cni_plugin.tunnel import TUNNEL_ID

ANNOUNCED, FORWARDED = 116, 117
"""Protocol of a VIP's host route: announced by BGP, or only forwarded while this node drains."""
FORWARDED_METRIC = {4: 1, 6: 1025}
"""Metric, by IP version, of a host route that is only forwarded: for routing daemons that do not see protocols, as FRR.

It is one more than the kernel's own, which announced ones have: of the two those count, and otherwise little does, such
as what a node learned of the VIP from its router.
"""
FIRST_TABLE = 1000
"""Bucket b's routes are in table FIRST_TABLE + b of the router's namespace."""
FIRST_LABEL = 16000
"""The first MPLS label that a node gives to its own endpoints."""
MARK = 0x10000
"""HMARK writes MARK + bucket; packets without this bit are not for a VIP."""


@dataclass(frozen=True, slots=True)
class Path:
    """How this host reaches an address: what `ip route get` says."""

    device: str
    device_index: int
    mtu: int
    """Bytes: the route's, else the device's."""
    source: str
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What planning has to know of the host, read from its kernel."""

    addresses: tuple[str, ...]
    """The node's own addresses, at most one of each IP version, IPv4 first: source of what the router sends."""
    paths: Mapping[str, Path] = field(default_factory=dict)
    """By endpoint address; addresses that the host cannot reach are missing."""
    mpls: bool = False
    labels: Mapping[str, int] = field(default_factory=dict)
    """Labels that local endpoints have already, by endpoint address."""

    def address(self, ip_version: int) -> str:
        return next((a for a in self.addresses if (":" in a) == (ip_version == 6)), "")


class Hop(NamedTuple):
    """Where a bucket's packets go: one nexthop object of the router's namespace.

    A tuple and no dataclass: it is looked up by the thousand.
    """

    version: int
    """IP version of the VIP."""
    mode: str
    endpoint: str
    """Outer destination; empty in mode mpls, where `label` names the endpoint."""
    source: str = ""
    """Outer source address."""
    label: int = 0
    tunnel_id: int = TUNNEL_ID
    """Names who had the bucket before (`chains.chain_id`); not in mode mpls."""


@dataclass(frozen=True, slots=True)
class VipBuckets:
    """One VIP's routes in all bucket tables."""

    hops: tuple[Hop | None, ...]
    """By bucket."""
    mtu: int
    """Bytes, of the routes in the router; the largest packet, and in mode mpls the label that is pushed."""


@dataclass(frozen=True, slots=True)
class RouterWanted:
    """The router's namespace. `RouterWanted(...)` without VIPs is an idle router."""

    buckets: int
    seed: int
    addresses: tuple[str, ...]
    """On the router's `lo`: sources of ICMP errors and of outer packets."""
    vips: Mapping[str, VipBuckets] = field(default_factory=dict)
    by_address: frozenset[str] = frozenset()
    """VIPs hashed by addresses only (sessionAffinity: ClientIP)."""
    ip_versions: tuple[int, ...] = (4, 6)
    """IP versions in which the node has an address; the router forwards no other."""
    tunnels: frozenset[tuple[str, int]] = frozenset()
    """Modes that hops use, each with the IP version of its outer packets."""


@dataclass(frozen=True, slots=True)
class Senders:
    """What pods of this node must not send, since other pods would believe it."""

    nodes: frozenset[str] = frozenset()
    """Source addresses of what the cluster's nodes encapsulate."""
    labels: bool = False
    """Some Service has mode mpls, so pods take labelled packets."""


@dataclass(frozen=True, slots=True)
class HostWanted:
    """What is ours in the host's own namespace."""

    served: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """VIP -> (protocol, mtu) of its host route."""
    vips: frozenset[str] = frozenset()
    """All tunnelled VIPs of the cluster: not tracked, accepted by FORWARD."""
    labels: Mapping[int, str] = field(default_factory=dict)
    """MPLS label -> local endpoint."""
    loose: frozenset[str] = frozenset()
    """Devices on which replies from pods enter: strict reverse-path filtering would drop them there."""
    senders: Senders = Senders()
    router: bool = False
    """This host has a router: the veth `svctun` and what belongs to it."""


@dataclass(frozen=True, slots=True)
class RouterPresent:
    """What the router's namespace holds; ids are the kernel's.

    `RouterPresent(hops, vips)` is what was read; what `changes.after` makes of it knows also what it came from.
    """

    hops: Mapping[int, Hop] = field(default_factory=dict)
    """Nexthop objects by id."""
    vips: Mapping[str, tuple[Mapping[int, int], int]] = field(default_factory=dict)
    """VIP -> ({bucket: nexthop id}, mtu); mtu is -1 where the routes differ in it."""
    made_from: Mapping[str, VipBuckets] = field(default_factory=dict)
    """VIP -> what its routes were programmed from: the same object need not be compared with them again."""
    ids: Mapping[Hop, int] = field(default_factory=dict)
    """Of the hops that `made_from` uses."""
    users: Mapping[int, int] = field(default_factory=dict)
    """Nexthop id -> how many VIPs of `made_from` use it."""
