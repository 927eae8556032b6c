"""The router: a network namespace of our own in which packets for VIPs are hashed and encapsulated.

In a namespace of its own there is nothing to collide with and nothing to clean up but the namespace; and
the host's other traffic never meets our rules (docs/decisions/). It outlives the helper: a restart finds it
and goes on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cni_plugin.netlink import Message, NetlinkError, Socket, rtnl
from cni_plugin.netlink.address import FAMILY
from cni_plugin.netns import entered, identity
from cni_plugin.pod.state import read_sysctl, write_sysctl
from cni_plugin.pod.target import DEVICE, DEVICE_FOR_IPV6_UNDERLAY
from cni_plugin.tunnel import GRE, MPLS, TUNNEL_ID, VXLAN_GPE
from node_helper.kernel import bulk, ipsets, quotes, xtables
from node_helper.kernel.commands import CommandFailed, run
from node_helper.kernel.fingerprints import Fingerprints, Question, nexthops, routes
from node_helper.kernel.notices import News
from node_helper.kernel.places import LINK_PREFIX, MAIN, Place, has_link
from node_helper.plan.changes import RouterChanges
from node_helper.plan.rule_tree import rule_tree
from node_helper.plan.state import ANNOUNCED, FIRST_TABLE, Hop, RouterPresent, RouterWanted

LAYOUT = 1
"""Of what is in the namespace, but for nexthops and bucket tables, which are compared one by one. To be raised with any
change that cannot be made in place without losing packets: the next helper then builds anew (`renewal`)."""
ROUTER_DEVICE = "host0"
LINK_MTU = 65_535
"""The veth's: what limits a packet is its route (towards the client) or the host's uplink, not this link."""
_ANYWHERE = {4: "203.0.113.255", 6: "2001:db8:ffff::1"}
"""Addresses of documentation ranges (RFC 5737, RFC 3849): no host has them."""
_MAIN_PRIORITY = 32_766
_NETNS_FOLDER = Path("/run/netns")

_SYSCTLS = {
    "ipv4/ip_forward": "1",
    # A route that is listed names its nexthop object and does not repeat all that is in it, 256,000 times.
    "ipv4/nexthop_compat_mode": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    # The host's own connections to a VIP come with the node's address, which is local here too.
    "ipv4/conf/all/accept_local": "1",
    # In mode mpls packets leave by the link on which they came; nobody is to be told a better way.
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
}
_MARK = "service-tunnel router, layout "
"""Alias of the host's end of the link, before the number."""
_ROUTES = tuple(routes(family, ANNOUNCED) for family in FAMILY.values())
_MODULE = {VXLAN_GPE: "vxlan", GRE: "ip_gre"}
_DEVICE_SYSCTLS = {"rp_filter": "0", "send_redirects": "0", "accept_local": "1"}


class Router:
    """Handle on a router's namespace; made, found, read, changed, removed by it."""

    def __init__(self, place: Place = MAIN, news: News | None = None, kept: bool = False) -> None:
        """`news`, where it is given, is told to follow what others do in the namespace.

        `kept`: somebody else makes the namespace (`node_helper.keeper`), and it is neither made nor removed here.
        """
        self._news = news
        self._kept = kept
        self.place = place
        self.path = str(_NETNS_FOLDER / place.namespace)
        self._socket: Socket | None = None
        self._fingerprints: Fingerprints | None = None
        self._as_read: tuple[bytes, bytes] | None = None
        """Fingerprints of the nexthops and routes that were read, while we have changed nothing since."""
        self._identity: tuple[int, int] | None = None
        self._links: dict[str, int] = {}
        self.hashes = False
        """The chains of this namespace were seen whole: packets get their bucket."""
        self.chain_trouble = ""
        """Why they could not be looked at, or made whole, the last time."""
        self.quote_trouble = ""
        """Why errors about fragments stay as they are."""

    # --- the namespace and its link to the host -----------------------------------------------------------

    def exists(self) -> bool:
        """The path is a network namespace, not just the file that a lost mount leaves behind."""
        found, parent = identity(self.path), identity(str(_NETNS_FOLDER))
        return found is not None and parent is not None and found[0] != parent[0]

    def stands(self) -> bool:
        """The namespace is there, and the host has a link to it: it is, or was, a router."""
        return self.exists() and has_link(self.place)

    def is_of_this_layout(self, host: Socket) -> bool:
        """The router that stands was built by a helper that lays it out as this one does."""
        return self.stands() and rtnl.link_alias(host, self.place.host_device) == f"{_MARK}{LAYOUT}"

    def remains(self) -> bool:
        """There is something that `remove` would take away."""
        return self.stands() if self._kept else self.exists()

    def make(self) -> bool:
        """Makes the namespace where it is missing; returns whether it was. Raises CommandFailed, OSError."""
        if self.exists():
            return False
        if os.path.lexists(self.path):
            os.unlink(self.path)
        run(["ip", "netns", "add", self.place.namespace])
        return True

    def ensure(self, host: Socket, wanted: RouterWanted, full: bool = True) -> bool:
        """Makes what is missing of namespace, link, devices, sysctls, rules.

        Returns whether routes may be gone with something that had to be made anew. `host`: a socket in the host's
        namespace. With `full` the chains are looked at, too. Raises NetlinkError, CommandFailed, OSError.
        """
        if self._kept and not self.exists():
            raise CommandFailed(2, f"{self.path} is not there: `service-tunnel-helper keep-namespace` has to make it")
        lost = self.make()
        self._reopen_when_replaced()
        lost |= self._ensure_link(host)
        with entered(self.path):
            lost |= self._ensure_devices(wanted)
            self._ensure_sysctls()
            self._ensure_rules(wanted)
            lost |= self._ensure_addresses(wanted)
            ipsets.keep_affinity(wanted.by_address)
            if full or self.chain_trouble or not self.hashes:
                self._ensure_chains(wanted)
                self._ensure_quotes()
        return lost

    def _ensure_chains(self, wanted: RouterWanted) -> None:
        try:
            changed = xtables.ensure_router_chains(wanted)
        except CommandFailed as error:
            self.chain_trouble = str(error)
        else:
            self.chain_trouble, self.hashes = "", True
            if changed and self._news is not None:
                self._news.pass_over_chains()

    def _ensure_quotes(self) -> None:
        """What is lost without is a rare path; a kernel that refuses keeps nothing else from going."""
        try:
            changed = quotes.ensure()
        except NetlinkError as error:
            self.quote_trouble = str(error)
        else:
            self.quote_trouble = ""
            if changed and self._news is not None:
                self._news.pass_over_chains()

    def remove(self, host: Socket) -> None:
        """Deletes the namespace with all in it, and the link; one that is kept is emptied. Quiet without one."""
        self.close()
        if self.exists():
            with entered(self.path), Socket() as route:
                _delete_routes(route)
        for link in rtnl.dump_links(host):
            if link.name == self.place.host_device:
                host.run(rtnl.delete_link(link.index, link.name))
        if self._kept:
            self._empty()
        elif self.exists():
            run(["ip", "netns", "delete", self.place.namespace])
        elif os.path.lexists(self.path):
            os.unlink(self.path)

    def _empty(self) -> None:
        """Takes out of a namespace that stays what any layout may have put there."""
        if not self.exists():
            return
        with entered(self.path), Socket() as route:
            # Kernels with GRE have devices of their own here, which cannot be deleted.
            links = [link for link in rtnl.dump_links(route) if link.name != "lo"]
            route.run_all([rtnl.delete_link(link.index, link.name) for link in links])
            rules = [rule for version in (4, 6) for rule in rtnl.dump_rules(route, version)]
            route.run_all([rtnl.delete_rule(rule) for rule in rules if rule.protocol == ANNOUNCED])
            run(["ip", "nexthop", "flush", "proto", str(ANNOUNCED)])
            for version in (4, 6):
                run(["ip", f"-{version}", "route", "flush", "table", "all", "proto", str(ANNOUNCED)])
            xtables.remove_router_chains()
            quotes.remove()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._fingerprints is not None:
            self._fingerprints.close()
            self._fingerprints = None
        self._as_read = None

    @property
    def _route(self) -> Socket:
        assert self._socket is not None, "ensure() comes first"
        return self._socket

    def _reopen_when_replaced(self) -> None:
        now = identity(self.path)
        if self._socket is None or now != self._identity:
            self.close()
            self._links, self.hashes = {}, False
            with entered(self.path):
                self._socket, self._fingerprints = Socket(), Fingerprints()
                if self._news is not None:
                    up = [link.index for link in rtnl.dump_links(self._socket) if link.up]
                    self._news.follow_router(self._socket, str(_NETNS_FOLDER), up)
            self._identity = now

    def _ensure_link(self, host: Socket) -> bool:
        present = {link.name for link in rtnl.dump_links(self._route)}
        on_host = {link.name: link for link in rtnl.dump_links(host)}
        if ROUTER_DEVICE in present and self.place.host_device in on_host:
            return False
        if self.place.host_device in on_host:
            host.run(rtnl.delete_link(on_host[self.place.host_device].index, self.place.host_device))
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            host.run(rtnl.add_veth(self.place.host_device, ROUTER_DEVICE, descriptor, LINK_MTU))
        finally:
            os.close(descriptor)
        host.run(rtnl.set_alias(socket.if_nametoindex(self.place.host_device), f"{_MARK}{LAYOUT}"))
        return True

    def _ensure_sysctls(self) -> None:
        names = dict(_SYSCTLS)
        devices = {"lo", ROUTER_DEVICE, *DEVICE.values(), *DEVICE_FOR_IPV6_UNDERLAY.values()}
        for device in devices & {link.name for link in rtnl.dump_links(self._route)}:
            names |= {f"ipv4/conf/{device}/{name}": value for name, value in _DEVICE_SYSCTLS.items()}
        for name, value in names.items():
            _set_sysctl(name, value)

    def _ensure_addresses(self, wanted: RouterWanted) -> bool:
        route = self._route
        links = {link.name: link for link in rtnl.dump_links(route)}
        # Kernels with GRE put devices of their own (gre0, gretap0 …) into every namespace: those stay down.
        down = [links[name] for name in ("lo", ROUTER_DEVICE) if not links[name].up]
        messages = [rtnl.set_up(link.index, link.name) for link in down]
        lo, host0 = links["lo"].index, links[ROUTER_DEVICE].index
        present = {(found.link, found.address) for found in rtnl.dump_addresses(route)}
        keep = set(wanted.addresses) | {"127.0.0.1", "::1"}
        for version in wanted.ip_versions:
            if (host0, self.place.router_link[version]) not in present:
                message = rtnl.add_address(
                    self.place.router_link[version], host0, ROUTER_DEVICE, prefix=LINK_PREFIX[version]
                )
                messages.append(message)
        missing = [a for a in wanted.addresses if (lo, a) not in present]
        messages += [rtnl.add_address(a, lo, "lo") for a in missing]
        messages += [rtnl.delete_address(a, lo, "lo") for link, a in present if link == lo and a not in keep]
        route.run(*messages)
        put = []
        for version in wanted.ip_versions:
            source = next((a for a in wanted.addresses if ip_address(a).version == version), "")
            found = self._default(version)
            # An address that was gone took the `src` of IPv6 routes along, which the lookup of a way does not show.
            anew = any(ip_address(a).version == version for a in missing)
            if (
                found is None
                or anew
                or (found.gateway, found.link, found.source) != (self.place.host_link[version], host0, source)
            ):
                put.append(
                    rtnl.put_route(
                        rtnl.route(
                            version,
                            "default",
                            protocol=ANNOUNCED,
                            link=host0,
                            gateway=self.place.host_link[version],
                            source=source,
                        )
                    )
                )
        route.run(*put)
        return bool(down)

    def _default(self, version: int) -> rtnl.Route | None:
        """The way of what has no other. Asked for, not looked for: a dump has all bucket tables in it."""
        try:
            return rtnl.lookup_route(self._route, _ANYWHERE[version])
        except NetlinkError:
            return None

    def _ensure_devices(self, wanted: RouterWanted) -> bool:
        """Returns whether one that was there is gone, or down: routes by it went along."""
        present = {link.name: link for link in rtnl.dump_links(self._route)}
        lost = False
        for mode, outer in sorted(wanted.tunnels | {(VXLAN_GPE, 4)}):
            if mode != MPLS and device_of(mode, outer) not in present:
                message = rtnl.add_tunnel_device(device_of(mode, outer), mode, outer, LINK_MTU - 100)
                try:
                    self._route.run(message)
                except NetlinkError as error:
                    says = f"{error.kernel_says} (does this kernel have {_MODULE[mode]}? modprobe {_MODULE[mode]})"
                    raise NetlinkError(error.errno or 0, message.what, says) from None
                lost |= device_of(mode, outer) in self._links
            elif mode != MPLS and not (link := present[device_of(mode, outer)]).up:
                self._route.run(rtnl.set_up(link.index, link.name))
                lost = True
        self._links = {link.name: link.index for link in rtnl.dump_links(self._route)}
        return lost

    def _ensure_rules(self, wanted: RouterWanted) -> None:
        for version in (4, 6):
            rules = rtnl.dump_rules(self._route, version)
            present = {rule for rule in rules if rule.protocol == ANNOUNCED}
            tree = rule_tree(version, wanted.buckets)
            messages = [rtnl.delete_rule(rule) for rule in present - set(tree)]
            messages += [rtnl.add_rule(rule) for rule in tree if rule not in present]
            if all(rule.table != rtnl.TABLE_MAIN for rule in rules):  # the kernel's own, gone by `ip rule flush`
                main = rtnl.rule(version, _MAIN_PRIORITY, rtnl.TABLE_MAIN, protocol=rtnl.PROTO_KERNEL)
                messages.append(rtnl.add_rule(main))
            self._route.run(*messages)

    # --- nexthops and bucket tables -----------------------------------------------------------------------

    def is_as_read(self, whole: bool = True) -> bool:
        """What is ours is as it was when it was read, and neither anybody changed it since nor we.

        Without `whole` only nexthop objects are looked at, which are few.
        """
        if self._as_read is None or self._as_read[0] != self._fingerprint([nexthops()]):
            return False
        return not whole or self._as_read[1] == self._fingerprint(_ROUTES)

    def _fingerprint(self, questions: Iterable[Question]) -> bytes:
        assert self._fingerprints is not None, "ensure() comes first"
        return self._fingerprints.take(questions)

    def read(self, buckets: int) -> RouterPresent:
        """Nexthop objects and bucket routes that are ours."""
        # Before, not after: what changes meanwhile makes another fingerprint the next time.
        self._as_read = self._fingerprint([nexthops()]), self._fingerprint(_ROUTES)
        names = {link.index: link.name for link in rtnl.dump_links(self._route)}
        modes = {device: mode for table in (DEVICE, DEVICE_FOR_IPV6_UNDERLAY) for mode, device in table.items()}
        hops = {}
        for nexthop in rtnl.dump_nexthops(self._route):
            if nexthop.protocol != ANNOUNCED:
                continue
            mode = modes.get(names.get(nexthop.link, ""), MPLS)
            tunnel_id = nexthop.tunnel_id if nexthop.outer else TUNNEL_ID
            hops[nexthop.id] = Hop(nexthop.version, mode, nexthop.outer, nexthop.outer_source, nexthop.label, tunnel_id)
        found: dict[bytes, tuple[dict[int, int], int]] = {}
        one: dict[int, int] = {}  # of each number: 256,000 routes with an object each would take eight MiB more
        last = FIRST_TABLE + 2 * max(buckets, 4096)
        for version in (4, 6):
            for vip, table, listed, mtu in bulk.dump_bucket_routes(self._route, version):
                if FIRST_TABLE <= table < last:
                    identifier = one.setdefault(listed, listed)
                    known = found.get(vip)
                    if known is None:
                        found[vip] = {table - FIRST_TABLE: identifier}, mtu
                        continue
                    known[0][table - FIRST_TABLE] = identifier
                    if known[1] != mtu:
                        found[vip] = known[0], -1
        vips = {bulk.vip_of(vip): known for vip, known in found.items()}
        return RouterPresent(hops, vips)

    def apply(self, changes: RouterChanges) -> list[NetlinkError]:
        """Makes the changes in their order; refused ones are returned and do not stop the others.

        Only old nexthops stay after a refusal: a route that should have left one may still use it, and would
        be deleted with it.
        """
        if changes:
            self._as_read = None
        failures = self._send([self._put_hop(identifier, hop) for identifier, hop in changes.add_hops.items()])
        for vip, (put, mtu) in changes.put_routes.items():
            failures += bulk.put_routes(self._route, vip, put, mtu)
        for vip, buckets in changes.delete_routes.items():
            failures += bulk.delete_routes(self._route, vip, buckets)
        if not failures:
            failures = self._send([rtnl.delete_nexthop(identifier) for identifier in changes.delete_hops])
        return failures

    def _send(self, messages: list[Message]) -> list[NetlinkError]:
        """The refused ones; that something to be deleted is not there is no refusal."""
        return [
            error
            for index, error in self._route.run_all(messages)
            if not (messages[index].type == rtnl.DEL_NEXTHOP and error.errno in (2, 3))
        ]

    def _put_hop(self, identifier: int, hop: Hop) -> Message:
        if hop.mode == MPLS:
            link, gateway = self._links[ROUTER_DEVICE], self.place.host_link[hop.version]
            nexthop = rtnl.Nexthop(identifier, hop.version, link, gateway, "", "", hop.label, ANNOUNCED)
        else:
            device = device_of(hop.mode, 6 if ":" in hop.endpoint else 4)
            nexthop = rtnl.Nexthop(
                identifier,
                hop.version,
                self._links[device],
                "",
                hop.endpoint,
                hop.source,
                0,
                ANNOUNCED,
                hop.tunnel_id,
                # A key takes four bytes, so it is there only where it says something.
                hop.mode == GRE and hop.tunnel_id != TUNNEL_ID,
            )
        return rtnl.put_nexthop(nexthop)


def device_of(mode: str, outer_version: int) -> str:
    """The router's device for a mode; named as in pods."""
    return (DEVICE_FOR_IPV6_UNDERLAY if outer_version == 6 else DEVICE).get(mode, DEVICE[mode])


def _delete_routes(route: Socket) -> None:
    """To be done before nexthops go, be it with their device or the namespace.

    With each that still has routes the kernel looks through all there are: with 1,000 VIPs for twenty seconds, in which
    nothing on the whole machine could change a link or a route.
    """
    for version in (4, 6):
        bulk.delete_all(route, version)


def _set_sysctl(name: str, value: str) -> None:
    if read_sysctl(name) not in (None, value):
        write_sysctl(name, value)
