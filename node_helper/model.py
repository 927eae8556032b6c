"""The Kubernetes objects as this project sees them: a frozen snapshot, made by a source, read by planning.

Only fields that change what is programmed are here, so two equal snapshots mean that there is nothing to
do. Field names follow the Kubernetes API in snake case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeVar

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


class ObjectKey(NamedTuple):
    """Namespace and name of an object; the namespace is empty for Nodes.

    A tuple and no dataclass: every step looks objects up by it, and a tuple is hashed without running Python code.
    """

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class ServicePort:
    name: str
    protocol: str
    """`tcp` or `udp`, in lower case; ports of other protocols are left out by the source."""
    port: int
    target_port: int | str
    """A number, or the name of a container's port."""


@dataclass(frozen=True, slots=True)
class Service:
    key: ObjectKey
    uid: str
    created: str
    """creationTimestamp as RFC 3339 text (sorts by time); empty when the object has none."""
    annotations: Mapping[str, str]
    """Only keys that begin with `cmd.nu/`."""
    selector: Mapping[str, str]
    ports: tuple[ServicePort, ...]
    client_ip_affinity: bool = False
    """sessionAffinity: ClientIP."""
    local_traffic_policy: bool = False
    """spec.externalTrafficPolicy: Local."""
    cluster_ips: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One pod (or bare address) behind a Service, merged over its EndpointSlices of both IP versions."""

    addresses: tuple[IPAddress, ...]
    """IPv4 first; the first address is the one that tunnels go to and by which bucket tables name it."""
    pod: ObjectKey | None
    node: str
    ready: bool
    serving: bool
    terminating: bool

    @property
    def address(self) -> IPAddress:
        return self.addresses[0]


@dataclass(frozen=True, slots=True)
class Pod:
    key: ObjectKey
    uid: str
    node: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    """Only keys that begin with `cmd.nu/`."""
    ips: tuple[IPAddress, ...]
    host_network: bool
    ports: Mapping[str, int]
    """containerPort by name, for named target ports."""
    finished: bool = False
    """Phase Succeeded or Failed."""
    terminating: bool = False
    """It is to end: its attachment goes before its object does."""


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    labels: Mapping[str, str]
    addresses: tuple[IPAddress, ...]
    """Addresses of type InternalIP and ExternalIP."""
    pod_cidrs: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """What is wrong with an object, told to its owner: log line, metric, Event, `status`."""

    kind: str
    """`Service`, `EndpointSlice`, `File`, …"""
    key: ObjectKey
    reason: str
    """One CamelCase word, as in a Kubernetes Event: `InvalidVIP`, `UnknownMode`, `UnreadableFile`, …"""
    message: str
    """A sentence that names the object and the way out."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a source knows at one moment.

    A source hands out the same object again for what did not change, the mappings too where nothing in them did: then
    a cycle costs as much as changed, and not as much as there is. It must never change what it has handed out.
    """

    services: Mapping[ObjectKey, Service] = field(default_factory=dict)
    endpoints: Mapping[ObjectKey, tuple[Endpoint, ...]] = field(default_factory=dict)
    """By the Service's key; endpoints sorted by address."""
    pods: Mapping[ObjectKey, Pod] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    """Objects the source could not read; the others are here all the same."""


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def changed_keys(before: Mapping[_Key, _Value], after: Mapping[_Key, _Value]) -> list[_Key]:
    """Keys that came, went, or have another object now; that equal ones are told too costs only time."""
    if before is after:
        return []
    changed = [key for key, value in after.items() if before.get(key) is not value]
    came = sum(key not in before for key in changed)
    if len(before) + came != len(after):
        changed += [key for key in before if key not in after]
    return changed
