"""A router of another layout is built anew without losing a packet: a second one takes the traffic meanwhile.

An older or newer helper has left a router behind that this one cannot change in place without breaking what passes it.
So another is built beside it, whole, with its own namespace and link; then the VIPs' routes lead there, each by one
replacement. All routers hash alike, so flows notice nothing. The first place is emptied, built anew, and gets the
routes back, since everybody knows it by its name; then the second goes.

What ended in the middle goes on from what is there: the second router has routes once it was whole, and the first one
has this layout's mark from the moment it was begun anew, which is when nothing leads there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from errno import EBUSY
from socket import AF_INET, AF_INET6, SOCK_STREAM, if_nametoindex, socket

import structlog

from node_helper.kernel.commands import CommandFailed
from node_helper.kernel.host import Host
from node_helper.kernel.places import SECOND, Place, has_link
from node_helper.kernel.router import Router
from node_helper.plan.changes import router_changes
from node_helper.plan.state import HostFacts, HostWanted, RouterWanted

ON_THEIR_WAY = 0.1
"""Seconds for packets that are in the other router when the routes have left it."""

SILENCE = 3.0
"""Seconds at most until a new router answers."""
DISCARD = 9
"""A port on which nobody listens there: that it refuses connections is the answer."""

_log = structlog.get_logger()


def is_due(main: Router, host: Host) -> bool:
    """The router that stands is of another layout, or the last renewal did not come to its end."""
    return has_link(SECOND) or (main.stands() and not main.is_of_this_layout(host.route))


def renew(main: Router, second: Router, host: Host, router: RouterWanted, wanted: HostWanted, facts: HostFacts) -> None:
    """Builds the router in the first place anew, and leaves none in the second.

    Raises OSError (NetlinkError, CommandFailed); then traffic goes on by the router that it passes, and the next call
    goes on from there.
    """
    if not main.is_of_this_layout(host.route):
        _log.info("the router is laid out as another version does it: traffic moves to a second one meanwhile")
        if not host.leads_to(SECOND):
            second.remove(host.route)
        if main.stands() or has_link(SECOND):
            _build(second, host, router, wanted, facts)
        main.remove(host.route)
    _build(main, host, router, wanted, facts)
    second.remove(host.route)
    host.forget()
    _log.info("the router is built anew, and traffic passes it again")


def _build(built: Router, host: Host, router: RouterWanted, wanted: HostWanted, facts: HostFacts) -> None:
    """A whole router, and then the routes to it.

    What the kernel refuses of it is told by the comparison that follows, and was no better in the router before.
    """
    built.ensure(host.route, router)
    host.lead_to(built.place)
    host.prepare(wanted, facts, full=True)
    if trouble := built.chain_trouble or host.chain_trouble:
        raise CommandFailed(EBUSY, trouble)
    built.apply(router_changes(router, built.read(router.buckets)))
    _await(built.place, router.ip_versions)
    host.serve(wanted, facts)
    time.sleep(ON_THEIR_WAY)


def _await(place: Place, versions: Iterable[int]) -> None:
    """Until packets pass to the router and back, or `SILENCE` is over: a host's own filters may keep its answers out.

    A link that has just come up drops what it is given at first, and the neighbour is asked for again a second later.
    """
    deadline = time.monotonic() + SILENCE
    for version in versions:
        family, link = (AF_INET6, if_nametoindex(place.host_device)) if version == 6 else (AF_INET, 0)
        address = (place.router_link[version], DISCARD, *((0, link) if link else ()))
        answered = False
        while not answered and time.monotonic() < deadline:
            with socket(family, SOCK_STREAM) as probe:
                probe.settimeout(0.05)
                try:
                    probe.connect(address)
                except ConnectionRefusedError:
                    answered = True
                except OSError:
                    continue
