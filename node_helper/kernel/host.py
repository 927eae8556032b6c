"""What is ours in the host's own namespace: VIP routes, the sets and chains for them, labels, loose devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

from cni_plugin.netlink import Message, NetlinkError, Socket, rtnl
from cni_plugin.netlink.address import pack
from cni_plugin.pod.state import read_sysctl, write_sysctl
from cni_plugin.tunnel import POD_LABEL
from node_helper.kernel import bulk, ipsets, senders, xtables
from node_helper.kernel.base_chains import BaseChains
from node_helper.kernel.commands import CommandFailed
from node_helper.kernel.notices import News
from node_helper.kernel.places import LINK_PREFIX, MAIN, PLACES, Place, has_link
from node_helper.kernel.sysctl import BorrowedSysctls, loosen, loosened
from node_helper.plan.cover import Covers, covered, covers
from node_helper.plan.state import ANNOUNCED, FORWARDED, FORWARDED_METRIC, HostFacts, HostWanted, Senders

_OURS = (ANNOUNCED, FORWARDED)
_PLATFORM_LABELS = 100_000


class Host:
    """Reads and changes the host's namespace: that of the thread which made this object."""

    def __init__(self, run_dir: Path, news: News | None = None) -> None:
        """`news`, where it is given, is told what to listen for."""
        self._news = news
        self.route = Socket()
        self._sysctls = BorrowedSysctls(run_dir)
        self._base_chains = BaseChains(run_dir)
        self._covers: Covers | None = None
        """The VIPs that our chains heed, which were seen whole; None until then."""
        self.chain_trouble = ""
        """Why they could not be looked at, or made whole, the last time."""
        self._vips: frozenset[str] | None = None
        """Members of our sets, as far as known: what a change is compared with between full comparisons."""
        self._guarded: frozenset[str] | None = None
        """Members of the set of loosened devices, likewise."""
        self._senders: tuple[Senders, list[NetlinkError]] | None = None
        """What pods must not send, likewise, and what of it the kernel refused."""
        self._routes: dict[str, list[rtnl.Route]] | None = None
        """VIP routes, likewise."""
        self._place = MAIN
        """Of the router to which VIP routes lead."""
        self._link: int | None = None
        """Index of our end of the link to it, likewise."""

    def close(self) -> None:
        self.route.close()

    def try_notes_again(self) -> str:
        """Writes what could not be noted in the run folder; returns why it still cannot be, empty where it is."""
        files = self._sysctls.file, self._base_chains.file
        for file in files:
            file.try_again()
        return "; ".join(file.trouble for file in files if file.trouble)

    def forget(self) -> None:
        """The link to the router is another one: what was known of it and of routes over it holds no more."""
        self._link = self._routes = None

    def lead_to(self, place: Place) -> None:
        """From the next `serve` on VIP routes lead to the router there."""
        self._place = place
        self.forget()

    def leads_to(self, place: Place) -> bool:
        """Any VIP route does."""
        link = self._device(place.host_device)
        present = self._vip_routes(full=True)
        return link is not None and any(route.link == link.index for routes in present.values() for route in routes)

    # --- in steps, so that a VIP's route comes last and goes first -----------------------------------------

    def prepare(self, wanted: HostWanted, facts: HostFacts, full: bool) -> None:
        """Everything but VIP routes that has to be there before packets flow.

        With `full` sets and chains are compared with the kernel, else with what was last known of them.
        """
        full = full or self._vips is None
        if full or not wanted.vips <= (self._vips or frozenset()):
            ipsets.add(wanted.vips)
            self._vips = (self._vips or frozenset()) | wanted.vips
        heeded = covers(wanted.vips)
        if full or self.chain_trouble or heeded != self._covers:
            self._ensure_chains(heeded)
        if full:
            self._guarded = None
        loosen(self._sysctls, wanted.loose, self._guard)
        if full:
            self._link = None
        if wanted.router and self._link is None:
            self._ensure_link(facts)
        elif wanted.router:
            self._ensure_link_sysctls()
        if wanted.labels:
            self._ensure_mpls()
        self._put_labels(wanted.labels, facts)

    def refuse_forgeries(self, wanted: HostWanted, full: bool) -> list[NetlinkError]:
        """Keeps pods from sending what only nodes send; returns what the kernel does not let us do about it."""
        if full or self._senders is None or self._senders[0] != wanted.senders:
            changed, refused = senders.ensure(wanted.senders)
            self._senders = wanted.senders, refused
            if changed and self._news is not None:
                self._news.pass_over_chains()
        return self._senders[1]

    def serve(self, wanted: HostWanted, facts: HostFacts) -> list[NetlinkError]:
        """Puts the VIP routes: from here on packets flow. Returns the refused ones."""
        if self._link is None or self._covers is None:
            return []
        present = self._vip_routes(full=False)
        put: dict[str, rtnl.Route] = {}
        for vip, (protocol, mtu) in wanted.served.items():
            if self.chain_trouble and not covered(vip, self._covers):
                continue
            source = facts.address(6 if ":" in vip else 4)
            if not self._is_as_wanted(present.get(vip, []), protocol, mtu, source):
                put[vip] = self._vip_route(vip, protocol, mtu, self._link, source)
        alike: dict[tuple[int, int, int], list[str]] = {}
        for vip, route in put.items():
            alike.setdefault((route.version, route.protocol, route.mtu), []).append(vip)
        refused = []
        for vips in alike.values():
            like = put[vips[0]]
            places = [(pack(vip), rtnl.TABLE_MAIN) for vip in vips]
            metric = FORWARDED_METRIC[like.version] if like.protocol == FORWARDED else 0
            refused += bulk.put_alike(self.route, like, places, metric)
        # After a refusal nobody knows; the next cycle reads.
        self._routes = None if refused else present | {vip: [route] for vip, route in put.items()}
        if refused:
            present = self._vip_routes(full=True)
        else:
            present = {vip: [*present.get(vip, ()), route] for vip, route in put.items()}
        self.route.run_all(
            [rtnl.delete_route(route) for vip in put for route in _superseded(present.get(vip, []), put[vip])]
        )
        return refused

    def withdraw(self, wanted: HostWanted, full: bool = True) -> None:
        """Takes VIP routes away that are not wanted; before anything else of these VIPs goes.

        With `full` the routes are read from the kernel, else they are what we know of them.
        """
        present = self._vip_routes(full)
        gone = [vip for vip in present if vip not in wanted.served]
        self.route.run_all([rtnl.delete_route(route) for vip in gone for route in present[vip]])
        self._routes = {vip: routes for vip, routes in present.items() if vip in wanted.served}

    def tidy(self, wanted: HostWanted, full: bool) -> None:
        """Removes labels and set entries that nothing needs any more."""
        self.tidy_sets(wanted, full)
        messages = [
            rtnl.delete_label(label.label, label.protocol)
            for label in self._labels()
            if label.label not in wanted.labels
        ]
        self.route.run_all(messages)
        if not wanted.labels:
            for name in self._sysctls.borrowed():
                if name.startswith("mpls/"):
                    self._sysctls.give_back(name)

    def tidy_sets(self, wanted: HostWanted, full: bool) -> None:
        """Removes set entries that nothing needs any more."""
        if full or self._vips != wanted.vips:
            ipsets.keep_only(wanted.vips)
            self._vips = wanted.vips

    def removals(self) -> tuple[tuple[str, Callable[[], None]], ...]:
        """What takes away everything of ours here except the link to the router: names and steps, in their order.

        Each is worth doing although one before it failed. Sysctls come before the chains, which guard the loosened
        devices; sets after them, since they name the sets.
        """
        nothing = HostWanted()
        return (
            ("the host's VIP routes", lambda: self.withdraw(nothing)),
            ("the host's borrowed sysctls", self._give_all_back),
            ("the host's iptables chains", lambda: xtables.remove_host_chains(4)),
            ("the host's ip6tables chains", lambda: xtables.remove_host_chains(6)),
            ("the host's nf_tables", senders.remove),
            ("the host's empty iptables tables", self._base_chains.remove),
            ("the host's labels and the sets' members", lambda: self.tidy(nothing, full=True)),
            ("the host's sets", ipsets.remove),
        )

    def _give_all_back(self) -> None:
        for name in self._sysctls.borrowed():
            self._sysctls.give_back(name)

    def loosen_towards(self, address: str) -> None:
        """Lets replies of a local pod in, before the pod begins: see `sysctl.loosen`."""
        try:
            found = rtnl.lookup_route(self.route, address)
        except NetlinkError:
            return
        name = next((link.name for link in rtnl.dump_links(self.route) if link.index == found.link), None)
        if name is not None:
            loosen(self._sysctls, loosened(self._sysctls) | {name}, self._guard)

    def _ensure_chains(self, heeded: Covers) -> None:
        """A tool that fails, or waits in vain for another's lock, keeps the rest from nothing.

        Only VIPs that they do not heed yet have to wait: their packets would be dropped by others' rules.
        """
        try:
            links = [place.host_device for place in PLACES if place is MAIN or has_link(place)]
            changed = xtables.ensure_host_chains(heeded, self._base_chains.before, links)
        except CommandFailed as error:
            self.chain_trouble = str(error)
        else:
            self.chain_trouble, self._covers = "", heeded
            if changed and self._news is not None:
                self._news.pass_over_chains()

    # --- parts --------------------------------------------------------------------------------------------

    def _guard(self, devices: frozenset[str]) -> None:
        """Has the chains check the sources that come by these devices, but for VIPs, as strictly as before."""
        if devices != self._guarded:
            ipsets.keep_devices(devices)
            self._guarded = devices

    def _device(self, name: str) -> rtnl.Link | None:
        return next((link for link in rtnl.dump_links(self.route) if link.name == name), None)

    def _ensure_link(self, facts: HostFacts) -> None:
        link = self._device(self._place.host_device)
        if link is None:
            return
        self._ensure_link_sysctls()
        present = {found.address for found in rtnl.dump_addresses(self.route) if found.link == link.index}
        messages = [] if link.up else [rtnl.set_up(link.index, link.name)]
        messages += [
            rtnl.add_address(address, link.index, link.name, prefix=LINK_PREFIX[v], scope=rtnl.SCOPE_LINK)
            for v, address in self._place.host_link.items()
            if facts.address(v) and address not in present
        ]
        self.route.run(*messages)
        self._link = link.index
        if self._news is not None:
            self._news.host_link = link.index

    def _ensure_link_sysctls(self) -> None:
        for name, value in (("accept_local", "1"), ("rp_filter", "2")):
            key = f"ipv4/conf/{self._place.host_device}/{name}"
            if read_sysctl(key) not in (value, None):
                write_sysctl(key, value)

    def _vip_routes(self, full: bool) -> dict[str, list[rtnl.Route]]:
        if not full and self._routes is not None:
            return self._routes
        found: dict[str, list[rtnl.Route]] = {}
        for version in (4, 6):
            for route in rtnl.dump_routes(self.route, version, _OURS):
                if route.table == rtnl.TABLE_MAIN:
                    found.setdefault(route.destination.partition("/")[0], []).append(route)
        return found

    def _vip_route(self, vip: str, protocol: int, mtu: int, link: int, source: str) -> rtnl.Route:
        address = ip_address(vip)
        return rtnl.route(
            address.version,
            f"{vip}/{address.max_prefixlen}",
            protocol=protocol,
            link=link,
            gateway=self._place.router_link[address.version],
            mtu=mtu,
            source=source,
        )

    def _is_as_wanted(self, present: list[rtnl.Route], protocol: int, mtu: int, source: str) -> bool:
        """Where a VIP has one route, only these can differ from what we put: its destination goes with the VIP."""
        if len(present) != 1:
            return False
        route = present[0]
        ours = protocol, mtu, self._link, source, self._place.router_link[route.version]
        return (route.protocol, route.mtu, route.link, route.source, route.gateway) == ours

    def _ensure_mpls(self) -> None:
        """Labels of ours are accepted from the router only; the label space is raised where it is too small."""
        if int(read_sysctl("mpls/platform_labels") or "0") < _PLATFORM_LABELS:
            self._sysctls.borrow("mpls/platform_labels", str(_PLATFORM_LABELS))
        if self._place is MAIN:
            self._sysctls.borrow(f"mpls/conf/{MAIN.host_device}/input", "1")
        else:  # which goes with its device
            write_sysctl(f"mpls/conf/{self._place.host_device}/input", "1")

    def _labels(self) -> list[rtnl.Label]:
        if read_sysctl("mpls/platform_labels") is None:
            return []
        return [label for label in rtnl.dump_labels(self.route) if label.protocol in _OURS]

    def _put_labels(self, wanted: Mapping[int, str], facts: HostFacts) -> None:
        present = {found.label: found for found in self._labels()}
        messages: list[Message] = []
        for label, endpoint in wanted.items():
            path = facts.paths[endpoint]
            put = rtnl.Label(label, ANNOUNCED, path.device_index, endpoint, POD_LABEL)
            if present.get(label) != put:
                messages.append(rtnl.put_label(put))
        self.route.run(*messages)


def _superseded(present: list[rtnl.Route], put: rtnl.Route) -> list[rtnl.Route]:
    """What is to go when a VIP's route has come, since its metric keeps it beside the new one."""
    others = [route for route in present if route.protocol != put.protocol]
    return others if len(others) < len(present) else []
