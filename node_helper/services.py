"""From annotated Services to what they get: VIPs, mode, endpoints that take traffic.

All judgement about what users wrote is here, so that planning sees only what is to be served. A fault
costs its Service as little as possible (a bad VIP costs that VIP), costs no other Service anything, and is
told as a `Problem`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cni_plugin.tunnel import MODES
from node_helper.model import (
    Endpoint,
    IPAddress,
    ObjectKey,
    Problem,
    Service,
    ServicePort,
    Snapshot,
    changed_keys,
)
from node_helper.remaps import remaps_of
from node_helper.vips import AddressesInUse, VipRules, kind_refusal, range_refusal, vips_in

TUNNEL = "cmd.nu/tunnel"
TUNNEL_MODE = "cmd.nu/tunnel-mode"
TUNNEL_TRAFFIC_POLICY = "cmd.nu/tunnel-traffic-policy"
TUNNEL_BUCKETS = "cmd.nu/tunnel-buckets"

_LOCAL_POLICY = {"Cluster": False, "Local": True}
_NAMED = 3
"""Objects that a message names before it counts the rest."""


@dataclass(frozen=True, slots=True)
class TunnelService:
    """A Service that is served."""

    key: ObjectKey
    uid: str
    vips: tuple[IPAddress, ...]
    """IPv4 first, then by number; at least one."""
    mode: str
    local_policy: bool
    """Only endpoints of the node that takes the packet in."""
    affinity: bool
    """Hash addresses only."""
    ports: tuple[ServicePort, ...]
    selector: Mapping[str, str]
    endpoints: tuple[Endpoint, ...]
    """All that tunnels can reach, in any state, sorted by address."""
    usable: tuple[str, ...]
    """`usable_addresses` of all endpoints; for `local_policy` apply it to those of the node."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is to be served, and what is wrong."""

    services: tuple[TunnelService, ...]
    """Sorted by key."""
    problems: tuple[Problem, ...]


def tunnel_services(snapshot: Snapshot, rules: VipRules, default_mode: str) -> Resolution:
    """Every annotated Service of the snapshot that can be served, with at least one VIP.

    Raises ValueError for an unknown default mode, which is the operator's and not a Service's fault.
    """
    return Resolver(rules, default_mode).resolve(snapshot)


@dataclass(frozen=True, slots=True)
class _Judged:
    service: TunnelService | None
    problems: tuple[Problem, ...]


class Resolver:
    """`tunnel_services` for one snapshot after the other: judges anew only what a change concerns.

    What did not change is the very same `TunnelService` as before; the steps after this one go by that.
    """

    def __init__(self, rules: VipRules, default_mode: str) -> None:
        if default_mode not in MODES:
            raise ValueError(f"unknown mode {default_mode!r}: one of {', '.join(MODES)}")
        self._rules = rules
        self._default_mode = default_mode
        self._seen = Snapshot()
        self._in_use = AddressesInUse(rules)
        self._claims: dict[ObjectKey, tuple[str, str]] = {}
        """What decides who has a VIP: time of creation and annotation of each annotated Service."""
        self._vips: dict[ObjectKey, tuple[IPAddress, ...]] = {}
        self._asked: frozenset[IPAddress] = frozenset()
        self._taken: frozenset[IPAddress] = frozenset()
        self._claim_problems: list[Problem] = []
        self._node_addresses: frozenset[IPAddress] = frozenset()
        self._judged: dict[ObjectKey, _Judged] = {}
        self._result = Resolution((), ())

    def resolve(self, snapshot: Snapshot) -> Resolution:
        """The same as `tunnel_services` gives."""
        before, self._seen = self._seen, snapshot
        services = changed_keys(before.services, snapshot.services)
        concerned = {*services, *changed_keys(before.endpoints, snapshot.endpoints)}
        if pods := frozenset(changed_keys(before.pods, snapshot.pods)):
            concerned.update(
                key for key, endpoints in snapshot.endpoints.items() if any(e.pod in pods for e in endpoints)
            )
        if snapshot.nodes is not before.nodes:
            addresses = frozenset(address for node in snapshot.nodes.values() for address in node.addresses)
            if addresses != self._node_addresses:
                self._node_addresses = addresses
                concerned |= self._claims.keys()
        held = self._in_use.follow(snapshot)
        if self._note_claims(services, snapshot) or held is None or not held.isdisjoint(self._asked):
            concerned |= self._decide(snapshot)
        news = False
        for key in concerned:
            news |= self._judge(key, snapshot)
        if news:
            self._assemble()
        return self._result

    def _note_claims(self, keys: Iterable[ObjectKey], snapshot: Snapshot) -> bool:
        changed = False
        for key in keys:
            service = snapshot.services.get(key)
            claim = None
            if service is not None and TUNNEL in service.annotations:
                claim = service.created, service.annotations[TUNNEL]
            if claim != self._claims.get(key):
                changed = True
                if claim is None:
                    del self._claims[key]
                else:
                    self._claims[key] = claim
        return changed

    def _decide(self, snapshot: Snapshot) -> set[ObjectKey]:
        """Who has which VIP; returns the Services that this concerns."""
        annotated = sorted((snapshot.services[key] for key in self._claims), key=_by_age)
        self._claim_problems = []
        vips = _vips(annotated, self._in_use, self._rules, self._claim_problems)
        self._asked = frozenset(
            address for text in self._claims.values() for _, address in vips_in(text[1]) if address is not None
        )
        taken = frozenset(vip for own in vips.values() for vip in own)
        concerned = {key for key in vips.keys() | self._vips.keys() if vips.get(key) != self._vips.get(key)}
        if taken != self._taken:
            # A VIP among the endpoints of whichever Service is a loop.
            concerned |= vips.keys()
        self._vips, self._taken = vips, taken
        # Problems with claims are told again as they are now, also where no Service is served otherwise.
        self._assemble()
        return concerned

    def _judge(self, key: ObjectKey, snapshot: Snapshot) -> bool:
        """Works one Service out; whether that gives anything else than before."""
        before = self._judged.get(key)
        if key not in self._claims:
            self._judged.pop(key, None)
            return before is not None
        problems: list[Problem] = []
        found = self._serve(snapshot.services[key], snapshot, problems)
        if before is not None and found == before.service:
            found = before.service
        now = _Judged(found, tuple(problems))
        if before is not None and now == before:
            return False
        self._judged[key] = now
        return True

    def _serve(self, service: Service, snapshot: Snapshot, problems: list[Problem]) -> TunnelService | None:
        vips = self._vips[service.key]
        mode, local_policy = _mode(service, self._default_mode, problems), _traffic_policy(service, problems)
        if mode is None or local_policy is None or not vips:
            return None
        endpoints = _reachable(service, snapshot, self._node_addresses, self._taken, problems)
        usable = usable_addresses(endpoints)
        if not usable:
            problems.append(_no_endpoints(service, endpoints))
        problems.extend(_ambiguous_ports(service, endpoints, snapshot))
        return TunnelService(
            key=service.key,
            uid=service.uid,
            vips=vips,
            mode=mode,
            local_policy=local_policy,
            affinity=service.client_ip_affinity,
            ports=service.ports,
            selector=service.selector,
            endpoints=endpoints,
            usable=usable,
        )

    def _assemble(self) -> None:
        judged = [self._judged[key] for key in sorted(self._judged)]
        problems = [*self._claim_problems, *(problem for one in judged for problem in one.problems)]
        services = tuple([one.service for one in judged if one.service is not None])
        self._result = Resolution(services, tuple(sorted(problems)))


def usable_addresses(endpoints: Iterable[Endpoint]) -> tuple[str, ...]:
    """Addresses of the endpoints that get traffic, in their order.

    Those that are ready and not terminating; where there are none, the terminating ones that still serve, as
    Kubernetes does (KEP-1669, ProxyTerminatingEndpoints).
    """
    endpoints = tuple(endpoints)
    chosen = [endpoint for endpoint in endpoints if endpoint.ready and not endpoint.terminating]
    if not chosen:
        # Ready and terminating but not serving: a pod of a Service that publishes addresses that are not ready.
        chosen = [endpoint for endpoint in endpoints if endpoint.terminating and (endpoint.serving or endpoint.ready)]
    return tuple(dict.fromkeys(str(endpoint.address) for endpoint in chosen))


def _by_age(service: Service) -> tuple[bool, str, ObjectKey]:
    """The older first; one without a time (written by hand) never takes from one with a time."""
    return (not service.created, service.created, service.key)


def _problem(service: Service, reason: str, message: str) -> Problem:
    return Problem("Service", service.key, reason, message)


def _vips(
    services: Iterable[Service], in_use: AddressesInUse, rules: VipRules, problems: list[Problem]
) -> dict[ObjectKey, tuple[IPAddress, ...]]:
    """The VIPs of each Service, of which the oldest has first choice.

    A Service that is not served for another fault keeps its claim: a typing mistake in its mode must not send
    its clients to somebody else's pods.
    """
    holders: dict[IPAddress, ObjectKey] = {}
    vips: dict[ObjectKey, tuple[IPAddress, ...]] = {}
    for service in services:
        own: set[IPAddress] = set()
        for text, address in vips_in(service.annotations[TUNNEL]):
            if address is None:
                problems.append(_invalid_vip(service, text))
                continue
            if address in own:
                message = f"Service {service.key} names {address} twice in {TUNNEL}: remove one, it is served once"
                problems.append(_problem(service, "DuplicateVIP", message))
                continue
            refusal = (
                kind_refusal(address) or range_refusal(address, service.key.namespace, rules) or in_use.refusal(address)
            )
            if refusal:
                message = f"Service {service.key} cannot have {address}: {refusal}; choose another in {TUNNEL}"
                problems.append(_problem(service, "VIPNotAllowed", message))
                continue
            holder = holders.setdefault(address, service.key)
            if holder != service.key:
                message = (
                    f"Service {service.key} cannot have {address}: Service {holder} has it and is older; "
                    f"choose another in {TUNNEL}, or take it off {holder}"
                )
                problems.append(_problem(service, "VIPTaken", message))
                continue
            own.add(address)
        vips[service.key] = tuple(sorted(own, key=lambda address: (address.version, int(address))))
    return vips


def _invalid_vip(service: Service, text: str) -> Problem:
    fault = f"{text!r} in {TUNNEL} is no IP address" if text else f"{TUNNEL} has an empty member"
    message = f"Service {service.key}: {fault}; write addresses separated by commas, like 192.0.2.1,2001:db8::1"
    return _problem(service, "InvalidVIP", message)


def _mode(service: Service, default: str, problems: list[Problem]) -> str | None:
    mode = service.annotations.get(TUNNEL_MODE, default).strip()
    if mode in MODES:
        return mode
    message = f"Service {service.key} is not served: {TUNNEL_MODE} is {mode!r}, not one of {', '.join(MODES)}"
    problems.append(_problem(service, "UnknownMode", message))
    return None


def _traffic_policy(service: Service, problems: list[Problem]) -> bool | None:
    policy = service.annotations.get(TUNNEL_TRAFFIC_POLICY)
    if policy is None:
        return service.local_traffic_policy
    local = _LOCAL_POLICY.get(policy.strip())
    if local is None:
        known = ", ".join(_LOCAL_POLICY)
        message = f"Service {service.key} is not served: {TUNNEL_TRAFFIC_POLICY} is {policy!r}, not one of {known}"
        problems.append(_problem(service, "UnknownTrafficPolicy", message))
    return local


def _reachable(
    service: Service,
    snapshot: Snapshot,
    node_addresses: frozenset[IPAddress],
    vips: frozenset[IPAddress],
    problems: list[Problem],
) -> tuple[Endpoint, ...]:
    """The Service's endpoints without those that tunnels cannot or must not reach."""
    reachable, on_host, loops = [], [], []
    for endpoint in snapshot.endpoints.get(service.key, ()):
        if not vips.isdisjoint(endpoint.addresses):
            loops.append(str(endpoint.address))
        elif endpoint.pod is not None and _on_host_network(endpoint, snapshot, node_addresses):
            on_host.append(str(endpoint.pod))
        else:
            reachable.append(endpoint)
    if on_host:
        message = (
            f"Service {service.key}: {_named(on_host)} in the host's network cannot have tunnels and get no traffic; "
            "run them without hostNetwork"
        )
        problems.append(_problem(service, "HostNetworkPod", message))
    if loops:
        # A packet encapsulated towards a VIP would come back to be encapsulated again, without end.
        message = f"Service {service.key}: {_named(loops)} among its endpoints is a VIP and gets no traffic; remove it"
        problems.append(_problem(service, "EndpointIsVIP", message))
    return _one_of_each_address(reachable, snapshot)


def _one_of_each_address(endpoints: list[Endpoint], snapshot: Snapshot) -> tuple[Endpoint, ...]:
    """Addresses are given to new pods while a slice still names the pod before: only who has it now counts.

    Conditions decide first, since every node sees the same of these; the pods that it knows are another node's others.
    """
    if len({endpoint.address for endpoint in endpoints}) == len(endpoints):
        return tuple(endpoints)

    def claim(endpoint: Endpoint) -> tuple[bool, bool, bool, bool]:
        pod = snapshot.pods.get(endpoint.pod) if endpoint.pod is not None else None
        has_it = pod is not None and endpoint.address in pod.ips and not (pod.finished or pod.terminating)
        return endpoint.ready and not endpoint.terminating, not endpoint.terminating, endpoint.serving, has_it

    chosen: dict[IPAddress, Endpoint] = {}
    for endpoint in endpoints:
        if endpoint.address not in chosen or claim(endpoint) > claim(chosen[endpoint.address]):
            chosen[endpoint.address] = endpoint
    return tuple(chosen.values())


def _on_host_network(endpoint: Endpoint, snapshot: Snapshot, node_addresses: frozenset[IPAddress]) -> bool:
    pod = snapshot.pods.get(endpoint.pod) if endpoint.pod is not None else None
    if pod is not None:
        return pod.host_network
    return not node_addresses.isdisjoint(endpoint.addresses)


def _named(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _no_endpoints(service: Service, endpoints: tuple[Endpoint, ...]) -> Problem:
    if not endpoints:
        message = f"Service {service.key} has no endpoints, so its VIPs lead nowhere: check its selector and its pods"
    else:
        message = f"Service {service.key}: none of its {len(endpoints)} endpoints is ready: check its pods"
    return _problem(service, "NoEndpoints", message)


def _ambiguous_ports(service: Service, endpoints: tuple[Endpoint, ...], snapshot: Snapshot) -> Iterable[Problem]:
    """What `remaps_for` will leave out in any of the Service's pods; one problem per port that they land on."""
    port_names: list[Mapping[str, int]] = [{}]
    if any(isinstance(port.target_port, str) for port in service.ports):
        pods = (snapshot.pods.get(endpoint.pod) for endpoint in endpoints if endpoint.pod is not None)
        port_names += [pod.ports for pod in pods if pod is not None]
    for clash in sorted({clash for names in port_names for clash in remaps_of(service.ports, names).clashes}):
        message = f"Service {service.key}: {clash}, so they are not remapped; give each Service port its own targetPort"
        yield _problem(service, "AmbiguousPorts", message)
