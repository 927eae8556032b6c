"""What a cycle works out from what changed is what it would work out from scratch, whatever changed before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.tunnel import GRE, MPLS, VXLAN_GPE
from node_helper.bucket_store import BucketStore
from node_helper.model import Endpoint, Node, ObjectKey, Pod, Service, ServicePort, Snapshot, changed_keys
from node_helper.plan.changes import after, router_changes
from node_helper.plan.ingress import IngressPlanner, plan_ingress
from node_helper.plan.state import HostFacts, Path, RouterPresent
from node_helper.service_index import ServiceIndex
from node_helper.services import TUNNEL, TUNNEL_MODE, Resolver, tunnel_services
from node_helper.tables import TableKeeper
from node_helper.vips import VipRules, vip_range
from tests.unit.planning import ME, OTHER

BUCKETS, SEED = 8, 7
SERVICES = [ObjectKey("shop", "a"), ObjectKey("shop", "b"), ObjectKey("blog", "a")]
PODS = [ObjectKey("shop", f"p{n}") for n in range(4)]
ADDRESSES = [f"10.0.0.{n}" for n in range(1, 6)] + ["fd00::1"]
VIPS = ["198.51.100.1", "198.51.100.2", "2001:db8::1", "10.0.0.1", "192.0.2.1", "nonsense"]
RULES = [VipRules(), VipRules((vip_range("0.0.0.0/0"), vip_range("2001:db8::/32=shop")))]

ports = st.sampled_from([(), (ServicePort("http", "tcp", 80, "web"), ServicePort("alt", "tcp", 81, "web"))])
modes = st.sampled_from([None, GRE, MPLS, VXLAN_GPE, "ipip"])


@st.composite
def services(draw: st.DrawFn, key: ObjectKey) -> Service:
    annotations = {}
    if draw(st.integers(0, 5)):
        annotations[TUNNEL] = ",".join(draw(st.lists(st.sampled_from(VIPS), max_size=3)))
    if mode := draw(modes):
        annotations[TUNNEL_MODE] = mode
    created = draw(st.sampled_from(["", "2030-01-01T00:00:00Z", "2031-01-01T00:00:00Z"]))
    own = draw(st.sampled_from([(), (ip_address("198.51.100.2"),)]))
    flags = draw(st.booleans()), draw(st.booleans())
    uid = draw(st.sampled_from(["u1", "u2"]))
    return Service(key, f"{key}-{uid}", created, annotations, {"app": key.name}, draw(ports), *flags, own)


@st.composite
def endpoint_lists(draw: st.DrawFn) -> tuple[Endpoint, ...]:
    addresses = draw(st.lists(st.sampled_from([*ADDRESSES, "198.51.100.1"]), unique=True, max_size=4))
    return tuple(
        Endpoint(
            (ip_address(address),),
            draw(st.sampled_from([None, *PODS])),
            draw(st.sampled_from([ME, OTHER])),
            *draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        )
        for address in sorted(addresses)
    )


@st.composite
def pods(draw: st.DrawFn, key: ObjectKey) -> Pod:
    ips = draw(st.sampled_from([(), (ip_address("10.0.0.1"),), (ip_address("198.51.100.2"),)]))
    names: dict[str, int] = draw(st.sampled_from([{}, {"web": 8080}]))
    labels = draw(st.sampled_from([{}, {"app": "a"}]))
    return Pod(key, "uid", ME, labels, {}, ips, draw(st.booleans()), names, draw(st.booleans()))


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Node:
    addresses = draw(st.sampled_from([(), (ip_address("10.1.1.2"),), (ip_address("10.0.0.2"),)]))
    cidrs = draw(st.sampled_from([(), (ip_network("198.51.100.0/31"),), (ip_network("10.0.0.0/24"),)]))
    return Node(name, {}, addresses, cidrs)


def changed(mapping: Any, key: Any, value: Any) -> dict[Any, Any]:
    """A copy with one thing put or, where it is None, taken away; what did not change is the same object."""
    return {k: v for k, v in {**mapping, key: value}.items() if v is not None}


@st.composite
def steps(draw: st.DrawFn) -> Callable[[Snapshot], Snapshot]:
    kind = draw(st.sampled_from(["services", "endpoints", "endpoints", "pods", "nodes"]))
    places: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "services": (SERVICES, services),
        "endpoints": (SERVICES, lambda _: endpoint_lists()),
        "pods": (PODS, pods),
        "nodes": ([ME, OTHER], nodes),
    }
    keys, objects = places[kind]
    key = draw(st.sampled_from(keys))
    value = draw(st.none() | objects(key))

    def step(seen: Snapshot) -> Snapshot:
        one: dict[str, Any] = {kind: changed(getattr(seen, kind), key, value)}
        return replace(seen, **one)

    return step


def _served(number: int, key: ObjectKey) -> Service:
    return Service(key, f"{key}-u1", "", {TUNNEL: f"203.0.113.{number}"}, {"app": key.name}, ())


def _ready(address: str, node: str) -> Endpoint:
    return Endpoint((ip_address(address),), None, node, True, True, False)


BEGIN = Snapshot(
    services={key: _served(number, key) for number, key in enumerate(SERVICES)},
    endpoints={key: (_ready("10.0.0.1", ME), _ready("10.0.0.3", OTHER)) for key in SERVICES},
    nodes={ME: Node(ME, {}, (ip_address("10.1.1.2"),), ())},
)
"""Something is served, so that changes have something to change."""
histories = st.lists(steps(), min_size=1, max_size=25)


class Memory(BucketStore):
    """A store in which a step may find something else than what was written."""

    def __init__(self) -> None:
        self.texts: dict[ObjectKey, str] = {}

    def read(self, key: ObjectKey) -> str | None:
        return self.texts.get(key)

    def write(self, key: ObjectKey, text: str, expected: str | None) -> bool:
        if self.texts.get(key) != expected:
            return False
        self.texts[key] = text
        return True

    def keys(self) -> frozenset[ObjectKey]:
        return frozenset(self.texts)

    def remove(self, key: ObjectKey) -> None:
        del self.texts[key]


quick = settings(deadline=None, max_examples=150)


@quick
@given(histories, st.sampled_from(RULES))
def test_services_are_judged_as_from_scratch(history: list[Callable[[Snapshot], Snapshot]], rules: VipRules) -> None:
    resolver, index, seen = Resolver(rules, VXLAN_GPE), ServiceIndex(), BEGIN
    for step in history:
        seen = step(seen)
        found = resolver.resolve(seen)
        assert found == tunnel_services(seen, rules, VXLAN_GPE)
        index = index.updated(found.services)
        assert index.updated(found.services) is index
        for pod in seen.pods.values():
            assert index.in_front_of(pod) == ServiceIndex(found.services).in_front_of(pod)


@quick
@given(histories)
def test_a_service_that_nothing_concerns_is_the_very_same_object(history: list[Callable[[Snapshot], Snapshot]]) -> None:
    resolver, seen = Resolver(VipRules(), VXLAN_GPE), BEGIN
    for step in history:
        before = {service.key: service for service in resolver.resolve(seen).services}
        seen = step(seen)
        for service in resolver.resolve(seen).services:
            if service == before.get(service.key):
                assert service is before[service.key]


@st.composite
def grounds(draw: st.DrawFn) -> HostFacts:
    """What the host says of itself: ways may be missing, wider, by another device, from another address."""
    reached = draw(st.sets(st.sampled_from(ADDRESSES)))
    paths = {
        address: Path(*draw(st.sampled_from([("eth0", 2, 1500, "10.1.1.2"), ("flannel", 3, 1450, "10.1.1.9")])))
        for address in sorted(reached)
    }
    own = draw(st.sampled_from([("10.1.1.2",), ("10.1.1.2", "fd00:1::2"), ("fd00:1::2",), ()]))
    return HostFacts(own, paths, draw(st.booleans()))


@quick
@given(
    st.lists(st.tuples(steps(), st.none() | grounds(), st.booleans(), st.sampled_from([*SERVICES, None])), max_size=20)
)
def test_the_plan_and_the_routes_that_come_of_it_are_as_from_scratch(history: list[Any]) -> None:
    resolver, planner, seen = Resolver(VipRules(), VXLAN_GPE), IngressPlanner(ME, BUCKETS, SEED), BEGIN
    store, local, now = Memory(), Memory(), iter(range(0, 10_000, 10))
    keeper = TableKeeper(store, local, BUCKETS, lambda: float(next(now)))  # type: ignore[arg-type]
    present, facts = RouterPresent(), HostFacts(())
    for step, new_facts, draining, spoilt in history:
        seen, facts = step(seen), new_facts or facts
        if spoilt in store.texts:
            store.texts[spoilt] = "rubbish"
        found = resolver.resolve(seen).services
        for _ in range(3):  # who was away for a moment is told of first
            tables = keeper.look(found, seen).tables
        other = TableKeeper(store, local, BUCKETS, lambda: 0.0)  # type: ignore[arg-type]
        assert tables == other.look(found, seen).tables
        assert planner.endpoints(found) == IngressPlanner(ME, BUCKETS, SEED).endpoints(found)
        router, host, problems = planner.plan(found, tables, facts, draining)
        assert (router, host, problems) == plan_ingress(found, tables, facts, ME, BUCKETS, SEED, draining)
        changes = router_changes(router, present)
        # As if the kernel had been read: nothing is known but what is there.
        assert changes_of(changes) == changes_of(router_changes(router, RouterPresent(present.hops, present.vips)))
        present = after(changes, present)
        assert not router_changes(router, present)
        assert not router_changes(router, RouterPresent(present.hops, present.vips))
        assert set(present.users) == set(present.hops) and min(present.users.values(), default=1) > 0


def changes_of(changes: Any) -> Any:
    return changes.add_hops, changes.put_routes, changes.delete_routes, sorted(changes.delete_hops)


keys = st.dictionaries(st.integers(0, 5), st.sampled_from([object() for _ in range(3)]))


@given(keys, keys)
def test_changed_keys_are_those_with_another_object(before: dict[int, object], now: dict[int, object]) -> None:
    different = {key for key in before.keys() | now.keys() if before.get(key) is not now.get(key)}
    found = changed_keys(before, now)
    assert set(found) == different and len(found) == len(different)
