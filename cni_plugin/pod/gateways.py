"""Who the gateways of a pod's interface are, down to their link-layer addresses, and from whom labels are taken.

What `labels` plans with. Loaded only where mode mpls is used.
"""

from __future__ import annotations

import time

from cni_plugin.netlink import NetlinkError, rtnl
from cni_plugin.netlink import nftables as nft
from cni_plugin.netlink.rtnl import neighbours
from cni_plugin.pod import ruleset
from cni_plugin.pod.labels import GATEWAYS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_plugin.netlink import Socket

_PATIENCE = 2.0
"""Seconds in which a gateway has to say its link-layer address.

It takes less than a thousandth, but for IPv6 where duplicate address detection is not over yet.
"""
_POLL = 0.0005


def read_guard(netfilter: Socket) -> frozenset[bytes] | None:
    """Link-layer addresses from which labels are taken; None where nobody asks."""
    if nft.table_userdata(netfilter, ruleset.TABLE, nft.NETDEV) is None:
        return None
    try:
        return frozenset(key for key, _ in nft.dump_elements(netfilter, ruleset.TABLE, GATEWAYS, nft.NETDEV))
    except NetlinkError as error:
        if error.errno != 2:  # ENOENT: a stranger's hand, or a table that is to have something else
            raise
        return frozenset()


def meet_gateways(route: Socket, routes: Iterable[rtnl.Route], interface: int) -> frozenset[bytes] | None:
    """Link-layer addresses of the gateways of an interface; asks for them where the kernel knows none.

    Empty when none answers in time: labels are taken from nobody then, until a later look finds one. None
    where the interface has no gateway.
    """
    wanted = {hop for found in routes for hop in rtnl.gateways_by(found, interface)}
    deadline = time.monotonic() + _PATIENCE
    asked = False
    while wanted:
        known = frozenset(filter(None, (neighbours.link_layer_address(route, interface, hop) for hop in wanted)))
        if known or time.monotonic() > deadline:
            return known
        if not asked:
            route.run_all([neighbours.seek(interface, hop) for hop in sorted(wanted)])
            asked = True
        time.sleep(_POLL)
    return None
