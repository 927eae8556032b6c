"""Services, endpoints and facts for tests of planning, in few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from cni_plugin.tunnel import VXLAN_GPE
from node_helper.buckets import BucketTable, fresh
from node_helper.model import Endpoint, ObjectKey
from node_helper.plan.state import HostFacts, Path
from node_helper.services import TunnelService, usable_addresses

ME, OTHER = "ingress1", "worker1"
ADDRESSES = ("10.1.1.2", "fd00:1::2")
VIPS = ("198.51.100.7", "2001:db8::7")


def endpoint(
    address: str, node: str = OTHER, ready: bool = True, terminating: bool = False, further: Iterable[str] = ()
) -> Endpoint:
    """`further`: what the pod has besides the address by which it is known, of the other IP version."""
    pod = ObjectKey("shop", f"pod-{address}")
    return Endpoint(tuple(map(ip_address, (address, *further))), pod, node, ready, ready, terminating)


def service(
    name: str = "web",
    endpoints: Iterable[Endpoint] = (),
    vips: Iterable[str] = VIPS,
    mode: str = VXLAN_GPE,
    local: bool = False,
    affinity: bool = False,
) -> TunnelService:
    endpoints = tuple(sorted(endpoints, key=lambda e: (e.address.version, int(e.address))))
    return TunnelService(
        key=ObjectKey("shop", name),
        uid=f"uid-{name}",
        vips=tuple(map(ip_address, vips)),
        mode=mode,
        local_policy=local,
        affinity=affinity,
        ports=(),
        selector={},
        endpoints=endpoints,
        usable=usable_addresses(endpoints),
    )


def tables(services: Iterable[TunnelService], buckets: int) -> dict[ObjectKey, BucketTable]:
    """As stored when all usable endpoints are in the table."""
    return {service.key: fresh(service.uid, service.usable, buckets) for service in services}


def facts(
    reachable: Iterable[str] = (),
    addresses: tuple[str, ...] = ADDRESSES,
    mtus: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
    mpls: bool = True,
    labels: Mapping[str, int] | None = None,
) -> HostFacts:
    """A host that reaches these endpoints by `eth0`, with a path of 1500 bytes where nothing else is said."""
    paths = {
        address: Path("eth0", 2, (mtus or {}).get(address, 1500), (sources or {}).get(address, addresses[0]))
        for address in reachable
    }
    return HostFacts(addresses, paths, mpls, labels or {})
