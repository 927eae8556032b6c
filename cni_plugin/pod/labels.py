"""What mode mpls needs in a pod: a label that is taken from the pod's gateway, room for it, loose filters.

A labelled packet says nothing of who made it. On a veth of its own only the node reaches the pod, but on a
bridge every pod of the node does; so labels are taken from frames whose source is the gateway's link-layer
address, by a chain of family netdev, which sees every frame (family inet sees IP only). Somebody who may
forge frames can forge that address, too; what pods send over a bridge with labels the node's helper keeps
back. An interface without a gateway is taken for one that leads to the node alone.

Loaded only where the mode is used.
"""

from __future__ import annotations

from cni_plugin.netlink import nftables as nft
from cni_plugin.netlink import rtnl
from cni_plugin.pod import ruleset
from cni_plugin.pod.plan import Operation, loose, set_sysctl
from cni_plugin.pod.target import LABEL_INPUT, PLATFORM_LABELS, PROTOCOL
from cni_plugin.tunnel import POD_LABEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_plugin.netlink import Message
    from cni_plugin.pod.target import PodState

GATEWAYS, _CHAIN = "gateways", "labelled"


def remembered(state: PodState) -> dict[str, frozenset[tuple[bytes, bytes]]]:
    """What the mode changes, as it was before: what is remembered of it already, else what is there now."""
    present = {name: state.sysctls.get(sysctl, "0") for name, sysctl in ruleset.BEFORE.items()}
    if state.label_routed:
        # Where a stranger took the table away, and the memory with it: devices start with the default's
        # value, and labels with no room for them.
        present["lo_rp_filter"] = state.sysctls.get("ipv4/conf/default/rp_filter", "0")
        if present["platform_labels"] == str(PLATFORM_LABELS):
            present["platform_labels"] = "0"
    return {
        name: state.elements.get(name) or frozenset({(int(value).to_bytes(4, "big"), b"")})
        for name, value in present.items()
    }


def guard(interface: str, gateways: frozenset[bytes], anew: bool) -> list[Message]:
    """One transaction that has labelled packets dropped that are not from a gateway; `anew`: there is one."""
    table, family = ruleset.TABLE, nft.NETDEV
    from_stranger = nft.load(nft.LINK_HEADER, 6, 6) + nft.lookup(GATEWAYS, invert=True) + nft.drop()
    labelled = (nft.meta(1) + nft.compare(nft.MPLS_ETHERTYPE), *map(nft.hidden_by, nft.VLAN_ETHERTYPES))
    return [
        *([nft.delete_table(table, family)] if anew else []),
        nft.add_table(table, b"", family),
        nft.add_set(table, GATEWAYS, 1, (nft.ETHER_ADDRESS,), family=family),
        nft.add_chain(table, _CHAIN, "filter", nft.INGRESS, 0, interface, family),
        *(nft.add_rule(table, _CHAIN, frames, from_stranger, family=family) for frames in labelled),
        *nft.add_elements(table, GATEWAYS, [(address, b"") for address in sorted(gateways)], family),
    ]


def unguard() -> list[Message]:
    return [nft.delete_table(ruleset.TABLE, nft.NETDEV)]


def add(state: PodState) -> Iterable[Operation]:
    """The operations that make the pod take labels from now on."""
    guarded = state.label_guard is not None
    # One that does not answer now is who it was.
    gateways = state.gateways or state.label_guard or frozenset()
    if state.gateways is not None and state.label_guard != gateways:
        what = f"take MPLS labels from the gateway of {state.interface.name} only"
        messages = guard(state.interface.name, gateways, guarded)
        lacks = "labelled packets are taken from others than the gateway (table netdev svctun is missing)"
        yield Operation("nftables", what, messages, lacks, follows=guarded)
    if int(state.sysctls["mpls/platform_labels"]) <= POD_LABEL:
        yield from set_sysctl(state, "mpls/platform_labels", str(PLATFORM_LABELS))
    if not state.label_routed:
        message = rtnl.put_label(rtnl.Label(POD_LABEL, PROTOCOL, state.loopback, "", 0))
        lacks = f"MPLS label {POD_LABEL} is not delivered"
        yield Operation("netlink", f"deliver MPLS label {POD_LABEL}", message, lacks)
    yield from loose(state, "lo")
    yield from set_sysctl(state, LABEL_INPUT.format(state.interface.name), "1")


def remove(state: PodState) -> Iterable[Operation]:
    """The operations that put everything back, also where somebody was interrupted."""
    before = {name: int.from_bytes(min(found)[0], "big") for name, found in remembered(state).items()}
    if state.label_routed or state.label_guard is not None:  # a stranger may have taken one of them
        yield from set_sysctl(state, LABEL_INPUT.format(state.interface.name), "0")
    yield from set_sysctl(state, "ipv4/conf/lo/rp_filter", str(before["lo_rp_filter"]))
    # The label goes last: by it a later call knows that the rest is ours, whatever became of the table.
    raised = state.sysctls.get("mpls/platform_labels") == str(PLATFORM_LABELS)
    if raised and before["platform_labels"] <= POD_LABEL:
        # The kernel drops the label with its room.
        yield from set_sysctl(state, "mpls/platform_labels", str(before["platform_labels"]))
    elif state.label_routed:
        message = rtnl.delete_label(POD_LABEL, PROTOCOL)
        more = f"MPLS label {POD_LABEL} is delivered, but no tunnel of the pod needs it"
        yield Operation("netlink", f"no longer deliver MPLS label {POD_LABEL}", message, more)
    if state.label_guard is not None:
        more = "table netdev svctun is there, but no tunnel of the pod needs it"
        yield Operation("nftables", "no longer ask where MPLS labels come from", unguard(), more)
