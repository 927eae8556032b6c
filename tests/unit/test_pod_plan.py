"""What is done in a pod, for any wanted tunnels after any others: nothing old stays, nothing foreign is touched."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.netlink.address import pack, unpack, version
from cni_plugin.pod import PodError
from cni_plugin.pod.apply import apply
from cni_plugin.pod.ruleset import TABLE
from cni_plugin.tunnel import MODES, MPLS, HandOn, PodTunnels, Remap, Tunnel
from tests.unit.simulated_pod import FOREIGN, Failed, Kind, SimulatedPod

SOURCES = ("10.0.1.1", "10.0.1.2", "fd00:1::1")
PEERS = ("10.0.2.1", "10.0.2.2")
VIPS = ("198.51.100.7", "198.51.100.8", "203.0.113.9", "2001:db8::7", "2001:db8::8")


quick = settings(max_examples=30, deadline=None)  # the machine that runs this may be busy


kinds = st.builds(
    Kind,
    st.sampled_from([("10.0.0.2", "fd00::2"), ("10.0.0.2",), ("fd00::2",)]),
    st.sampled_from([("10.0.0.1", "fd00::1"), ("10.0.0.1",), ("fd00::1",), ()]),
    st.sampled_from([1500, 1450, 9001]),
    st.sampled_from(["0", "1", "2"]),
)


@st.composite
def pod_tunnels(draw: st.DrawFn, least: int = 0) -> PodTunnels:
    """Up to three Services; no VIP is given twice, and no port leads two ways, as `services` sees to."""
    vips = draw(st.permutations(VIPS))
    tunnels = []
    for _ in range(draw(st.integers(least, 3))):
        own, vips = vips[: (count := draw(st.integers(1, 2)))], vips[count:]
        ports = draw(st.lists(st.sampled_from((80, 443, 53)), unique=True, max_size=3))
        targets = draw(st.permutations((8080, 8443, 5353)))
        remaps = tuple(
            Remap(draw(st.sampled_from(("tcp", "udp"))), port, target)
            for port, target in zip(ports, targets, strict=False)
        )
        steps = tuple(HandOn(number, PEERS[number % 2], 100) for number in draw(st.sets(st.integers(1000, 1003))))
        peers = tuple(draw(st.lists(st.sampled_from(PEERS), unique=True)))
        if own:
            tunnels.append(Tunnel(tuple(own), draw(st.sampled_from(MODES)), remaps, steps, peers))
    return PodTunnels(tuple(tunnels), tuple(draw(st.lists(st.sampled_from(SOURCES), unique=True))))


def vips_of(wanted: PodTunnels) -> set[str]:
    return {vip for tunnel in wanted.tunnels for vip in tunnel.vips}


@quick
@given(kinds, pod_tunnels())
def test_what_was_configured_needs_no_further_change(kind: Kind, wanted: PodTunnels) -> None:
    pod = kind.build()
    done = pod.configure(wanted)
    assert bool(done) == bool(wanted.tunnels)
    assert pod.plan(wanted) == []
    assert pod.configure(wanted) == []


@quick
@given(kinds, pod_tunnels(), pod_tunnels())
def test_after_any_change_a_pod_is_as_if_it_had_never_had_anything_else(
    kind: Kind, one: PodTunnels, two: PodTunnels
) -> None:
    changed, direct = kind.build(), kind.build()
    changed.configure(one)
    changed.configure(two)
    direct.configure(two)
    assert changed.contents() == direct.contents()


@quick
@given(kinds, pod_tunnels())
def test_without_tunnels_a_pod_is_as_it_was_before(kind: Kind, wanted: PodTunnels) -> None:
    pod = kind.build()
    before = pod.contents()
    pod.configure(wanted)
    pod.configure(PodTunnels())
    assert pod.contents() == before


def has_all_of(pod: SimulatedPod, wanted: PodTunnels) -> Iterator[str]:
    """What a packet needs, of each VIP that is on `lo`; yields what is missing."""
    state = pod.state()
    sources = {rule.source.partition("/")[0] for rule in state.our_rules}
    versions = {route.version for route in state.default_routes}
    for tunnel in wanted.tunnels:
        for vip in tunnel.vips:
            if vip not in pod.vips_on("lo"):
                continue
            key = pack(vip)
            if key not in pod.elements.get(f"vips{version(vip)}", {}):
                yield f"{vip} is in no set"
            remaps = pod.elements.get(f"remap{version(vip)}", {})
            if sum(seen.startswith(key) for seen in remaps) != len(tunnel.remaps):
                yield f"{vip} lacks port remaps"
            if version(vip) in versions and vip not in sources:
                yield f"{vip} has no reply route"
            if tunnel.mode == MPLS:
                if not state.label_routed or state.sysctls["mpls/conf/eth0/input"] != "1":
                    yield f"{vip} gets no labelled packets"
            elif not any(link.name.startswith("svctun") for link in state.links):
                yield f"{vip} has no device"
            elif version(vip) == 4 and not any(vip in pod.vips_on(link.name) for link in state.links):
                yield f"{vip} is on no device"


@quick
@given(kinds, pod_tunnels(least=1))
def test_addresses_come_last_and_go_first(kind: Kind, wanted: PodTunnels) -> None:
    pod = kind.build()
    faults: list[str] = []

    def watch(_: int) -> None:
        faults.extend(has_all_of(pod, wanted))

    pod.configure(wanted, watch)
    assert vips_of(wanted) <= pod.vips_on("lo")
    pod.configure(PodTunnels(), watch)
    assert faults == []


@quick
@given(kinds, pod_tunnels(), pod_tunnels())
def test_a_vip_that_stays_never_leaves_the_pod(kind: Kind, one: PodTunnels, two: PodTunnels) -> None:
    pod = kind.build()
    pod.configure(one)
    staying = vips_of(one) & vips_of(two)

    def watch(_: int) -> None:
        assert staying <= pod.vips_on("lo")
        assert staying <= {unpack(key) for name in ("vips4", "vips6") for key in pod.elements.get(name, ())}

    pod.configure(two, watch)


@quick
@given(kinds, pod_tunnels(), pod_tunnels())
def test_nothing_foreign_is_touched_on_the_way(kind: Kind, one: PodTunnels, two: PodTunnels) -> None:
    bare = kind.build()
    routes, rules = set(bare.routes.values()), set(bare.rules)
    pod = kind.build()

    def watch(_: int) -> None:
        assert FOREIGN in pod.vips_on("lo")
        assert routes <= set(pod.routes.values())
        assert rules <= pod.rules
        assert pod.tables["filter"] == b"another's"
        assert pod.sysctls["ipv4/conf/eth0/rp_filter"] == kind.rp_filter
        assert pod.sysctls["ipv4/conf/default/rp_filter"] == kind.rp_filter

    for wanted in (one, two, PodTunnels()):
        pod.configure(wanted, watch)


@quick
@given(kinds, pod_tunnels(least=1), st.integers(0, 25))
def test_a_failure_leaves_nothing_in_a_pod_that_had_nothing(kind: Kind, wanted: PodTunnels, at: int) -> None:
    pod = kind.build()
    before = pod.contents()
    failed = False

    def watch(number: int) -> None:
        nonlocal failed
        if number == at:
            failed = True
            raise Failed(errno.EIO, "the fault of the test")

    if at >= len(pod.plan(wanted)):
        return
    with pytest.raises(PodError) as raised:
        pod.configure(wanted, watch)
    assert failed
    assert raised.value.details.endswith("the fault of the test")
    assert pod.contents() == before


@quick
@given(kinds, pod_tunnels(least=1), pod_tunnels(), st.integers(0, 25))
def test_after_a_failure_the_next_call_goes_on(kind: Kind, one: PodTunnels, two: PodTunnels, at: int) -> None:
    pod, direct = kind.build(), kind.build()
    pod.configure(one)
    direct.configure(two)

    def watch(number: int) -> None:
        if number == at:
            raise Failed(errno.EIO, "the fault of the test")

    if at >= len(pod.plan(two)):
        return
    with pytest.raises(PodError):
        pod.configure(two, watch)
    pod.configure(two)
    assert pod.contents() == direct.contents()


@quick
@given(kinds, pod_tunnels(least=1), pod_tunnels(), st.data())
def test_a_process_that_was_killed_leaves_nothing_that_the_next_call_cannot_mend(
    kind: Kind, one: PodTunnels, two: PodTunnels, data: st.DataObject
) -> None:
    pod, direct = kind.build(), kind.build()
    direct.configure(two)
    operations = pod.plan(one)
    with pod.entered():
        apply(operations[: data.draw(st.integers(0, len(operations)))], pod, pod)  # type: ignore[arg-type]
    pod.configure(two)
    assert pod.contents() == direct.contents()


@quick
@given(kinds, pod_tunnels(least=1), pod_tunnels())
def test_the_rules_of_another_version_are_replaced(kind: Kind, one: PodTunnels, two: PodTunnels) -> None:
    pod, direct = kind.build(), kind.build()
    pod.configure(one)
    pod.tables[TABLE] = b"svctun0:00000000"
    del pod.elements["unmap6"]  # which that version did not have
    pod.configure(two)
    direct.configure(two)
    assert pod.contents() == direct.contents()


def pieces(pod: SimulatedPod) -> list[tuple[dict[Any, Any], Any]]:
    """Our table, devices, addresses, routes and labels: whatever someone could take away."""
    found: list[tuple[dict[Any, Any], Any]] = [(pod.tables, TABLE)]
    found += [(pod.addresses, key) for key in pod.addresses if key[1] in VIPS]
    found += [(pod.routes, key) for key, raw in pod.routes.items() if raw[5] == 116]
    return found


@quick
@given(kinds, pod_tunnels(least=1), pod_tunnels(), st.data())
def test_what_someone_took_away_is_put_back(kind: Kind, one: PodTunnels, two: PodTunnels, data: st.DataObject) -> None:
    """Also when the next call wants something else."""
    pod = kind.build()
    pod.configure(one)
    choices = pieces(pod)
    store, key = choices[data.draw(st.integers(0, len(choices) - 1))]
    del store[key]
    lost_labels = key[0] == 28
    if store is pod.tables:
        pod.elements = {name: found for name, found in pod.elements.items() if name == "gateways"}
    wanted = data.draw(st.sampled_from((one, two)))
    direct = kind.build()
    direct.configure(wanted)
    pod.configure(wanted, had=one)
    assert pod.plan(wanted) == []
    if not lost_labels and set(kind.gateways) >= {"10.0.0.1", "fd00::1"}:
        assert pod.contents() == direct.contents()
