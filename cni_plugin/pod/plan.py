"""What has to change in a pod's netns: pure, from what it is to hold (`target`) and what it holds.

Every piece answers something that was seen to fail without it (docs/architecture.md, "In the pod"):

- the VIP on `lo`, IPv6 ones without duplicate address detection and deprecated, so that the pod never uses
  them for connections of its own;
- the decapsulation: one device per encapsulation that takes every tunnel, or an MPLS label;
- the VIP on the tunnel device too and loose reverse-path filtering on that device alone: a pod inherits
  strict filtering, and then a device without an IPv4 address drops everything;
- a rule `from VIP` to a table whose default route is the pod's own with a segment size that fits the
  encapsulation;
- the nf_tables rules of `ruleset`.

Additions come in an order in which a packet finds everything ready: the addresses last. Removals run the
other way.
"""

from __future__ import annotations

from cni_plugin.netlink import rtnl
from cni_plugin.netlink.address import unpack, version
from cni_plugin.pod import ruleset
from cni_plugin.pod.target import DEVICE, TABLE, PodState, Target, Unsupported
from cni_plugin.record import Record
from cni_plugin.tunnel import MPLS, NOTHING, VXLAN_GPE, PodTunnels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Operation(Record):
    """One change; `kind` names the function in `apply` that makes it."""

    kind: str
    what: str
    """The change in words, for logs and errors."""
    argument: object = None
    difference: str = ""
    """In words, what is not as it should be, which the change mends; empty for what only goes with another one."""
    follows: bool = False
    """It only follows what the pod's owner did with routes of his own: until then nothing of ours is amiss."""


def plan(wanted: PodTunnels, state: PodState, had: PodTunnels = NOTHING) -> list[Operation]:
    """The operations that bring `state` to `wanted`; empty when all is as it should be.

    `had`: what the pod was given, or was to be given by somebody who was interrupted.
    """
    target = Target(wanted, state)
    _refuse_foreign_replies(target, state)
    operations: list[Operation] = []
    operations += _withdraw_addresses(target, state, _ours(state, had))
    operations += _rules(target, state, add=False)
    operations += _label(target, state, add=False)
    operations += _devices(target, state, add=False)
    operations += _ruleset(target, state)
    operations += _devices(target, state, add=True)
    operations += _label(target, state, add=True)
    operations += _reply_routes(target, state)
    operations += _rules(target, state, add=True)
    operations += _add_addresses(target, state)
    operations += _forget_elements(target, state)
    return _with_hand_on(operations, target, state)


def _with_hand_on(operations: list[Operation], target: Target, state: PodState) -> list[Operation]:
    """What is handed on needs all the rest: it comes last and goes first."""
    if state.hand_on is None and not target.hands_on:
        return operations
    from cni_plugin.pod.hand_on import plan as hand_on

    device_of = {mode: device for device, mode in target.devices.items()}
    wanted = hand_on.wanted_of(target.wanted, {**device_of, MPLS: DEVICE[VXLAN_GPE]})
    present = hand_on.HandOnState({}, {}, (), ()) if state.hand_on is None else state.hand_on
    indices = {link.name: link.index for link in state.links}
    change = hand_on.difference(wanted, present, indices, hand_on.VERSIONS if state.ipv6 else (4,))
    if change is None:
        return operations
    # Nothing of the pod's own depends on it, and the helper follows the moves of buckets.
    operation = Operation("hand_on", change.what, change, follows=True)
    return [*operations, operation] if wanted else [operation, *operations]


def left_out(wanted: PodTunnels, state: PodState) -> list[str]:
    """What `plan` does without since the pod cannot have it, each in words."""
    if state.ipv6:
        return []
    vips = sorted({vip for tunnel in wanted.tunnels for vip in tunnel.vips if version(vip) == 6})
    return [f"VIP {vip} is left out: IPv6 is disabled in the pod (net.ipv6.conf.lo.disable_ipv6)" for vip in vips]


def _ours(state: PodState, had: PodTunnels) -> frozenset[str]:
    """The VIPs that we put into this pod earlier.

    The table's set knows them; where a stranger took it away our rules, our devices and the record do.
    """
    in_set = {unpack(key) for name in ("vips4", "vips6") for key, _ in state.elements.get(name, ())}
    devices = {link.index for link in state.links}
    on_devices = {found.address for found in state.addresses if found.link in devices and version(found.address) == 4}
    by_rules = {rule.source.partition("/")[0] for rule in state.our_rules}
    by_record = {vip for tunnel in had.tunnels for vip in tunnel.vips}
    return frozenset(in_set | on_devices | by_rules | by_record)


def _withdraw_addresses(target: Target, state: PodState, ours: frozenset[str]) -> Iterable[Operation]:
    names = {link.index: link.name for link in state.links}
    for found in state.addresses:
        on_loopback = found.link == state.loopback and found.address in ours - target.vips
        device = names.get(found.link)
        on_device = device is not None and found.address in ours and (device, found.address) not in target.device_vips
        if on_loopback or (on_device and device in target.devices):
            name = device or "lo"
            yield Operation(
                "netlink",
                f"take {found.address} off {name}",
                rtnl.delete_address(found.address, found.link, name),
                f"{found.address} is on {name}, but is no VIP of the pod",
            )


def _add_addresses(target: Target, state: PodState) -> Iterable[Operation]:
    present = {(found.link, found.address) for found in state.addresses}
    indices = {link.name: link.index for link in state.links}
    for device, vip in sorted(target.device_vips):
        if (indices.get(device), vip) not in present:
            yield Operation("device_address", f"put {vip} on {device}", (device, vip), f"VIP {vip} is not on {device}")
    # IPv6 first: what the kernel does for these by and by, it does while the others are put.
    missing = sorted((vip for vip in target.vips if (state.loopback, vip) not in present), key=version, reverse=True)
    missing6 = [vip for vip in missing if version(vip) == 6]
    if not state.ipv6:  # `left_out` tells of it
        missing, missing6 = [vip for vip in missing if version(vip) == 4], []
    if missing6 and awaited(state.addresses, state.interface.index):
        # While the pod's own address is tentative the kernel would take the VIP as source of its
        # connections, deprecated or not.
        yield Operation("await_dad", f"wait for the addresses of {state.interface.name}", state.interface.index)
    for vip in missing:
        message = rtnl.add_address(vip, state.loopback, "lo", deprecated=version(vip) == 6)
        yield Operation("netlink", f"put {vip} on lo", message, f"VIP {vip} is not on lo")
    if missing6:
        yield Operation("await_delivery", "wait until packets to the IPv6 VIPs are delivered", missing6)


def awaited(addresses: Iterable[rtnl.Address], interface: int) -> bool:
    """Whether an address of the pod's interface is still looked for on others (duplicate address detection)."""
    return any(
        found.link == interface
        and found.flags & rtnl.ADDRESS_TENTATIVE
        and not found.flags & rtnl.ADDRESS_DAD_FAILED
        and found.scope == rtnl.SCOPE_GLOBAL
        for found in addresses
    )


def _devices(target: Target, state: PodState, add: bool) -> Iterable[Operation]:
    present = {link.name: link for link in state.links}
    if not add:
        for link in state.links:
            if link.name not in target.devices:
                message = rtnl.delete_link(link.index, link.name)
                difference = f"device {link.name} is there, but no tunnel of the pod needs it"
                yield Operation("netlink", f"delete device {link.name}", message, difference)
        return
    for device, mode in sorted(target.devices.items()):
        if device not in present:
            message = rtnl.add_tunnel_device(device, mode, target.outer_version)
            yield Operation("netlink", f"add device {device}", message, f"device {device} is missing")
        elif not present[device].up:
            message = rtnl.set_up(present[device].index, device)
            yield Operation("netlink", f"set {device} up", message, f"device {device} is down")
        yield from loose(state, device)


def _label(target: Target, state: PodState, add: bool) -> Iterable[Operation]:
    # Without a label, but with what was to be remembered: somebody was interrupted before or after it.
    present = (
        state.label_routed or state.label_guard is not None or any(state.elements.get(name) for name in ruleset.BEFORE)
    )
    if target.label if add else present and not target.label:
        from cni_plugin.pod import labels

        yield from labels.add(state) if add else labels.remove(state)


def set_sysctl(state: PodState, name: str, value: str) -> Iterable[Operation]:
    found, shown = state.sysctls.get(name), f"net.{name.replace('/', '.')}"
    if found != value:
        # One of a device that is to be made is not amiss by itself.
        difference = "" if found is None else f"{shown} is {found}, not {value}"
        yield Operation("sysctl", f"set {shown} to {value}", (name, value), difference)


def loose(state: PodState, device: str) -> Iterable[Operation]:
    """Loose reverse-path filtering on one device; one whose owner filters nowhere has it looser than that."""
    name = f"ipv4/conf/{device}/rp_filter"
    filters_nothing = state.sysctls.get(name) == "0" and state.sysctls.get("ipv4/conf/all/rp_filter") != "1"
    for operation in set_sysctl(state, name, "2"):
        yield operation.replace(follows=filters_nothing and state.ruleset is not None)


def _reply_routes(target: Target, state: PodState) -> Iterable[Operation]:
    present = {route.version: route for route in state.our_routes}
    for ip_version, route in sorted(target.routes.items()):
        if present.get(ip_version) != route:
            what = f"default route for IPv{ip_version} replies with advmss {route.advmss}"
            # Ours is there, but the pod's own is another now; or it has only now got one.
            follows = ip_version in present or _had_no_default(state, ip_version)
            message = rtnl.put_route(route) if ip_version in present else rtnl.add_route(route)
            lacks = f"the IPv{ip_version} default route for replies is missing in table {TABLE}"
            yield Operation("netlink", what, message, lacks, follows)


def _refuse_foreign_replies(target: Target, state: PodState) -> None:
    """Ours would take the place of it, or be used by its owner's rules."""
    ours = {route.version for route in state.our_routes}
    for route in state.foreign_replies:
        if route.version in target.routes and route.version not in ours:
            raise Unsupported(
                f"the pod's routing table {TABLE} has an IPv{route.version} default route of somebody else's (protocol "
                f"{route.protocol}): service-tunnel needs that table for replies, so whoever put the route has to use "
                "another one"
            )


def _had_no_default(state: PodState, ip_version: int) -> bool:
    """Whether the pod is configured, and for replies of this IP version has nothing: there was no need."""
    ruled = any(rule.version == ip_version for rule in state.our_rules)
    return state.ruleset is not None and not (ruled or any(route.version == ip_version for route in state.our_routes))


def _rules(target: Target, state: PodState, add: bool) -> Iterable[Operation]:
    present = set(state.our_rules)
    if add:
        for rule in sorted(target.rules - present, key=repr):
            what = f"replies from {rule.source} take table {TABLE}"
            lacks = f"the rule by which replies from {rule.source} take table {TABLE} is missing"
            yield Operation("netlink", what, rtnl.add_rule(rule), lacks, _had_no_default(state, rule.version))
        return
    for rule in sorted(present - target.rules, key=repr):
        what = f"replies from {rule.source} no longer take table {TABLE}"
        follows = rule.source.partition("/")[0] in target.vips  # the pod has no default route any more
        more = f"a rule sends replies from {rule.source} to table {TABLE}, but that is no VIP of the pod"
        yield Operation("netlink", what, rtnl.delete_rule(rule), more, follows)
    for route in state.our_routes:
        if route.version not in target.routes:
            what = f"delete the IPv{route.version} reply route"
            follows = any(version(vip) == route.version for vip in target.vips)
            more = f"table {TABLE} has an IPv{route.version} default route for replies, which no VIP of the pod needs"
            yield Operation("netlink", what, rtnl.delete_route(route), more, follows)


def _ruleset(target: Target, state: PodState) -> Iterable[Operation]:
    """The table first and all elements at once: the rules do nothing for packets that are not to a VIP."""
    if not target.vips:
        return
    if state.ruleset != ruleset.FINGERPRINT:
        # One transaction: a packet that finds no port remap would reset its connection.
        older = state.ruleset is not None
        what = "replace another version's nf_tables rules" if older else "install the nf_tables rules"
        difference = "the nf_tables rules (table inet svctun) are " + ("another version's" if older else "missing")
        yield Operation("install_ruleset", what, (older, target.elements), difference)
        return
    have = state.elements
    added = {name: wanted - have.get(name, frozenset()) for name, wanted in target.elements.items()}
    # A port that now maps elsewhere has to be taken out before it can be put in again.
    stale = {
        name: frozenset(element for element in have.get(name, ()) if element not in wanted)
        for name, wanted in target.elements.items()
        if not name.startswith("vips")
    }
    if any(stale.values()) or any(added.values()):
        difference = ruleset.in_words(added, stale)
        yield Operation("change_elements", "change the elements of nf_tables sets", (stale, added), difference)


def _forget_elements(target: Target, state: PodState) -> Iterable[Operation]:
    """VIPs leave the set last: while an address is still there, the set must say that it is ours.

    With them goes what the pod remembers of UDP clients, who might be answered from a VIP that is no more.
    """
    if not target.vips:
        if state.ruleset is not None:
            more = "the nf_tables rules (table inet svctun) are there, but the pod has no VIPs"
            yield Operation("remove_ruleset", "remove the nf_tables rules", None, more)
        return
    if state.ruleset != ruleset.FINGERPRINT:
        return  # the table is new and has what it is to have
    gone = {name: state.elements.get(name, frozenset()) - target.elements[name] for name in ("vips4", "vips6")}
    if any(gone.values()):
        yield Operation("forget_vips", "forget VIPs in nf_tables sets", gone, ruleset.in_words({}, gone))
