"""Carries out the operations of `plan` in the netns in which the calling thread is."""

from __future__ import annotations

import time

from cni_plugin.netlink import Message, NetlinkError, Socket, nftables, rtnl
from cni_plugin.netlink.address import version
from cni_plugin.pod import ruleset
from cni_plugin.pod.plan import awaited
from cni_plugin.pod.state import write_sysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_plugin.pod.plan import Operation

_DAD_PATIENCE = 5.0
"""Seconds to wait for duplicate address detection (about 1 to 2 s by default)."""
_DAD_POLL = 0.02
_DELIVERY_PATIENCE = 1.0
"""Seconds; it takes less than a thousandth unless the machine is very busy."""
_DELIVERY_POLL = 0.0002

_GONE = (2, 3, 19, 99)
"""ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL: what a deletion wanted is so already."""
_DELETIONS = (rtnl.DEL_LINK, rtnl.DEL_ADDRESS, rtnl.DEL_ROUTE, rtnl.DEL_RULE)


class OperationFailed(OSError):
    """An operation failed; the text says which, on what, and why."""


def apply(operations: list[Operation], route: Socket, netfilter: Socket) -> None:
    """Raises OperationFailed at the first operation that fails."""
    for operation in operations:
        try:
            _KINDS[operation.kind](operation.argument, route, netfilter)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OperationFailed(error.errno, f"cannot {operation.what}: {reason}") from error


def _netlink(message: Any, route: Socket, _: Socket) -> None:
    try:
        route.run(message)
    except NetlinkError as error:
        if not (error.errno in _GONE and message.type in _DELETIONS):
            raise


def _device_address(argument: Any, route: Socket, _: Socket) -> None:
    device, vip = argument
    index = rtnl.link_named(route, device).index
    scope = rtnl.SCOPE_HOST if version(vip) == 4 else rtnl.SCOPE_GLOBAL
    route.run(rtnl.add_address(vip, index, device, scope=scope))


def _await_dad(interface: Any, route: Socket, _: Socket) -> None:
    """A deadline, not a failure: an address that stays tentative is the pod's network's own trouble."""
    deadline = time.monotonic() + _DAD_PATIENCE
    while time.monotonic() < deadline:
        if not awaited(rtnl.dump_addresses(route), interface):
            return
        time.sleep(_DAD_POLL)


def _await_delivery(vips: Any, route: Socket, _: Socket) -> None:
    """An IPv6 address gets its local route from a kernel thread, a moment later: no packet is to come before."""
    deadline = time.monotonic() + _DELIVERY_PATIENCE
    for vip in vips:
        while not _delivers(route, vip) and time.monotonic() < deadline:
            time.sleep(_DELIVERY_POLL)


def _delivers(route: Socket, vip: str) -> bool:
    try:
        return rtnl.lookup_route(route, vip).kind == rtnl.LOCAL
    except NetlinkError:
        return False  # no route at all, as yet


def _sysctl(argument: Any, _: Socket, __: Socket) -> None:
    name, value = argument
    write_sysctl(name, value)


def _install_ruleset(argument: Any, _: Socket, netfilter: Socket) -> None:
    older, elements = argument
    messages = [nftables.delete_table(ruleset.TABLE)] if older else []
    messages += ruleset.install()
    for name, members in elements.items():
        messages += nftables.add_elements(ruleset.TABLE, name, sorted(members))
    nftables.commit(netfilter, messages)


def _remove_ruleset(_: Any, __: Socket, netfilter: Socket) -> None:
    try:
        nftables.commit(netfilter, [nftables.delete_table(ruleset.TABLE)])
    except NetlinkError as error:
        if error.errno not in _GONE:
            raise


def _nftables(messages: Any, _: Socket, netfilter: Socket) -> None:
    nftables.commit(netfilter, messages)


def _change_elements(argument: Any, _: Socket, netfilter: Socket) -> None:
    removed, added = argument
    messages: list[Message] = []
    for name, gone in removed.items():
        messages += nftables.delete_elements(ruleset.TABLE, name, sorted(gone))
    for name, new in added.items():
        messages += nftables.add_elements(ruleset.TABLE, name, sorted(new))
    nftables.commit(netfilter, messages)


def _forget_vips(gone: Any, _: Socket, netfilter: Socket) -> None:
    messages = []
    for name, members in gone.items():
        messages += nftables.delete_elements(ruleset.TABLE, name, sorted(members))
    replies = [f"{name}{ip_version}" for name in ruleset.REPLIES for ip_version in (4, 6)]
    nftables.commit(netfilter, messages + [nftables.delete_all_elements(ruleset.TABLE, name) for name in replies])


def _hand_on(change: Any, route: Socket, netfilter: Socket) -> None:
    from cni_plugin.pod.hand_on import kernel  # only while buckets have moved lately

    kernel.carry_out(change, route, netfilter)


_KINDS: dict[str, Callable[[Any, Socket, Socket], None]] = {
    "netlink": _netlink,
    "device_address": _device_address,
    "await_dad": _await_dad,
    "await_delivery": _await_delivery,
    "sysctl": _sysctl,
    "install_ruleset": _install_ruleset,
    "remove_ruleset": _remove_ruleset,
    "change_elements": _change_elements,
    "forget_vips": _forget_vips,
    "nftables": _nftables,
    "hand_on": _hand_on,
}
