"""What planning has to know of the host: its addresses, how it reaches endpoints, whether it has MPLS."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from cni_plugin.netlink import NetlinkError, Socket, rtnl
from cni_plugin.netlink.address import FAMILY, pack
from cni_plugin.pod.state import read_sysctl
from node_helper.kernel.fingerprints import Fingerprints, exceptions, routes, rules
from node_helper.kernel.notices import Notice, destination_of, is_about_address, is_about_link, link_of
from node_helper.kernel.places import PLACES
from node_helper.model import Node
from node_helper.plan.state import ANNOUNCED, FORWARDED, HostFacts, Path

_LOOPBACK = 1
_ROUTERS = frozenset(place.host_device for place in PLACES)


class FactsReader:
    """Facts of the host to whose namespace the socket belongs.

    Asking the kernel for the way to each of thousands of endpoints takes longer than all the rest of a cycle, so
    ways are asked for when an endpoint is new, when the kernel told of a change on that way, and at a full comparison.
    """

    def __init__(self, route: Socket) -> None:
        self._route = route
        self._links: dict[int, rtnl.Link] = {}
        self._own: set[str] = set()
        self._sources: dict[int, str] = {}
        """By IP version: what this host sends from by default."""
        self._ways: dict[str, Path | None] = {}
        """By endpoint; None: none."""
        self._paths: dict[str, Path] | None = None
        """The ways that there are, as the last facts have them; the same object while nothing changed."""
        self._fingerprints = Fingerprints()
        self._seen: object = None
        """What ways hang on, at the last full comparison."""
        self._mpls = False
        self._labels: Mapping[str, int] = {}
        self._fresh = False

    def read(self, node: Node | None, endpoints: frozenset[str], news: list[Notice] | None, full: bool) -> HostFacts:
        """The facts now; `news` is what the kernel told since the last time, None: perhaps anything."""
        if full or news is None or not self._fresh:
            self._fresh = False
            self._look_around()
            seen = self._ground()
            if seen != self._seen or news is None:
                self._ways, self._paths, news = {}, None, []
            self._seen = seen
            self._mpls = read_sysctl("mpls/platform_labels") is not None
            self._fresh = True
        if news:
            self._doubt(news)
        # Ways to endpoints that are gone stay until the next full comparison: they cost nothing.
        if unknown := endpoints - self._ways.keys():
            self._ways.update((endpoint, self._path(endpoint)) for endpoint in unknown)
            self._paths = None
        if self._mpls:
            self._labels = {
                label.gateway: label.label
                for label in rtnl.dump_labels(self._route)
                if label.protocol in (ANNOUNCED, FORWARDED) and label.gateway
            }
        if self._paths is None:
            self._paths = {endpoint: path for endpoint, path in self._ways.items() if path is not None}
        return HostFacts(self._node_addresses(node), self._paths, self._mpls, self._labels)

    def _ground(self) -> object:
        """All that decides about ways, so that they need not be asked for again where it is the same."""
        families = FAMILY.values()
        lists = [question(family) for question in (routes, exceptions, rules) for family in families]
        links = {index: (link.name, link.mtu, link.up) for index, link in self._links.items()}
        return self._fingerprints.take(lists), links, self._own

    def close(self) -> None:
        self._fingerprints.close()

    def _look_around(self) -> None:
        self._links = {link.index: link for link in rtnl.dump_links(self._route)}
        self._own = {found.address for found in rtnl.dump_addresses(self._route) if found.scope == rtnl.SCOPE_GLOBAL}
        self._sources = {version: self._default_source(version) for version in (4, 6)}

    def _doubt(self, news: Iterable[Notice]) -> None:
        """Forgets the ways on which something changed.

        A route concerns the endpoints that it covers, a link or an address those that are reached by it: routes
        that come with a link are told of themselves. A policy rule concerns all.
        """
        around = False
        links: set[int] = set()
        prefixes: set[tuple[int, bytes, int]] = set()
        for kind, body in news:
            destination = destination_of(kind, body)
            if destination is not None:
                prefixes.add(destination)
                # Which of its addresses the host sends from hangs on its default route.
                around = around or destination[2] == 0
            elif is_about_link(kind) or is_about_address(kind):
                links.add(link_of(body))
                around = True
            elif body[0] in (2, 10):  # a rule of IPv4 or IPv6
                self._ways = {}
                around = True
        if around:
            self._look_around()
        if prefixes:
            self._forget(prefixes)
        if links:
            self._ways = {e: path for e, path in self._ways.items() if path is None or path.device_index not in links}

    def _forget(self, prefixes: Iterable[tuple[int, bytes, int]]) -> None:
        packed = {endpoint: pack(endpoint) for endpoint in self._ways}
        for version, size in ((4, 4), (6, 16)):
            known = sorted((raw, endpoint) for endpoint, raw in packed.items() if len(raw) == size)
            for prefix_version, address, length in prefixes:
                if prefix_version != version:
                    continue
                host_bits = 8 * size - length
                first = int.from_bytes(address, "big") >> host_bits << host_bits
                start = bisect_left(known, (first.to_bytes(size, "big"), ""))
                for raw, endpoint in known[start:]:
                    if int.from_bytes(raw, "big") >> host_bits != first >> host_bits:
                        break
                    self._ways.pop(endpoint, None)

    def _path(self, endpoint: str) -> Path | None:
        try:
            found = rtnl.lookup_route(self._route, endpoint)
        except NetlinkError:
            return None
        if found.link not in self._links:
            self._links = {link.index: link for link in rtnl.dump_links(self._route)}
        link = self._links.get(found.link)
        if link is None or found.kind != rtnl.UNICAST or link.name in _ROUTERS or link.index == _LOOPBACK:
            return None
        return Path(link.name, link.index, min(found.mtu or link.mtu, link.mtu), found.source, found.gateway)

    def _node_addresses(self, node: Node | None) -> tuple[str, ...]:
        """The Node object's addresses that this host really has, else those it sends from by default."""
        chosen: dict[int, str] = {}
        for address in node.addresses if node else ():
            if str(address) in self._own:
                chosen.setdefault(address.version, str(address))
        for version, source in self._sources.items():
            if source:
                chosen.setdefault(version, source)
        return tuple(chosen[v] for v in (4, 6) if v in chosen)

    def _default_source(self, ip_version: int) -> str:
        # An address of documentation ranges (RFC 5737, RFC 3849): nobody has a more specific route to it.
        try:
            return rtnl.lookup_route(self._route, "192.0.2.255" if ip_version == 4 else "2001:db8:ffff::1").source
        except NetlinkError:
            return ""
