"""Which Services are in front of a pod, and what the pod is to have for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from cni_plugin.tunnel import Remap, Tunnel
from node_helper.chains import NO_HANDOVER, Handover
from node_helper.model import ObjectKey, Pod, changed_keys
from node_helper.remaps import remaps_of
from node_helper.services import TunnelService

_Key = TypeVar("_Key")


class ServiceIndex:
    """Finds the Services in front of a pod without looking at each."""

    def __init__(self, services: Iterable[TunnelService] = ()) -> None:
        self._services: dict[ObjectKey, TunnelService] = {}
        self._by_label: dict[tuple[str, str, str], tuple[TunnelService, ...]] = {}
        self._by_pod: dict[ObjectKey, tuple[TunnelService, ...]] = {}
        now = {service.key: service for service in services}
        self._change_to(now, now)

    def updated(self, services: Iterable[TunnelService]) -> ServiceIndex:
        """The index of these Services, made from this one, which stays as it is; this one where nothing changed."""
        now = {service.key: service for service in services}
        changed = changed_keys(self._services, now)
        if not changed:
            return self
        index = ServiceIndex()
        index._services, index._by_label, index._by_pod = self._services, dict(self._by_label), dict(self._by_pod)
        index._change_to(now, changed)
        return index

    def _change_to(self, now: dict[ObjectKey, TunnelService], changed: Iterable[ObjectKey]) -> None:
        for key in changed:
            if key in self._services:
                _change(self._by_label, _label_of(self._services[key]), self._services[key], there=False)
                _change(self._by_pod, _pods_of(self._services[key]), self._services[key], there=False)
            if key in now:
                _change(self._by_label, _label_of(now[key]), now[key], there=True)
                _change(self._by_pod, _pods_of(now[key]), now[key], there=True)
        self._services = now

    def in_front_of(self, pod: Pod) -> tuple[TunnelService, ...]:
        """Services whose selector matches the pod or that have it as an endpoint, sorted by key."""
        if pod.host_network or pod.finished:
            return ()
        found = {service.key: service for service in self._by_pod.get(pod.key, ())}
        for name, value in pod.labels.items():
            for service in self._by_label.get((pod.key.namespace, name, value), ()):
                if service.selector.items() <= pod.labels.items():
                    found[service.key] = service
        return tuple(found[key] for key in sorted(found))


def _label_of(service: TunnelService) -> Iterable[tuple[str, str, str]]:
    if service.selector:
        # One label of the selector is enough to find the Service by; the others are compared then.
        name, value = max(service.selector.items())
        yield service.key.namespace, name, value


def _pods_of(service: TunnelService) -> set[ObjectKey]:
    # Another namespace's pods do not get a VIP because someone's EndpointSlice names them.
    pods = (endpoint.pod for endpoint in service.endpoints)
    return {pod for pod in pods if pod is not None and pod.namespace == service.key.namespace}


def _change(
    index: dict[_Key, tuple[TunnelService, ...]], keys: Iterable[_Key], service: TunnelService, there: bool
) -> None:
    for key in keys:
        found = tuple([other for other in index.get(key, ()) if other is not service])
        if there:
            found += (service,)
        if found:
            index[key] = found
        else:
            index.pop(key, None)


def tunnels_for_pod(
    services: Iterable[TunnelService] | ServiceIndex,
    pod: Pod,
    handovers: Mapping[ObjectKey, Mapping[str, Handover]] | None = None,
) -> tuple[Tunnel, ...]:
    """What a pod is to have; nothing for pods of the host's network and finished ones.

    For many pods make one `ServiceIndex` and hand that in. `handovers`: by Service and endpoint.
    """
    index = services if isinstance(services, ServiceIndex) else ServiceIndex(services)
    tunnels = []
    for service in index.in_front_of(pod):
        handover = _handover(service, pod, (handovers or {}).get(service.key, {}))
        vips, remaps = tuple(map(str, service.vips)), remaps_for(service, pod)
        tunnels.append(Tunnel(vips, service.mode, remaps, handover.hand_ons, handover.peers))
    return tuple(tunnels)


def _handover(service: TunnelService, pod: Pod, handovers: Mapping[str, Handover]) -> Handover:
    if handovers:
        # Its endpoint says what the pod itself may not say yet; a helper of role node sees no endpoints.
        own = [str(endpoint.address) for endpoint in service.endpoints if endpoint.pod == pod.key]
        for name in (*own, table_name(pod)):
            if name is not None and (found := handovers.get(name)) is not None:
                return found
    return NO_HANDOVER


def table_name(pod: Pod) -> str | None:
    """By which name bucket tables know the pod: its first address, IPv4 before IPv6; None before it has one."""
    return next((str(address) for address in sorted(pod.ips, key=lambda address: address.version)), None)


def remaps_for(service: TunnelService, pod: Pod) -> tuple[Remap, ...]:
    """The Service's ports that have another number in this pod; none of those that are ambiguous."""
    return remaps_of(service.ports, pod.ports).remaps
