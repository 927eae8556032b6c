"""The nf_tables table in a pod's netns: its name, its sets and what is in them, and how it is put.

What its rules do is written in `rules`, and frozen as bytes in `frozen_rules`: building them is most of what
an ADD would compute, and they are the same every time.
"""

from __future__ import annotations

from cni_plugin.netlink import Message
from cni_plugin.netlink import nftables as nft
from cni_plugin.netlink.address import unpack
from cni_plugin.netlink.nftables import INET_PROTOCOL, INET_SERVICE, IPV4_ADDRESS, IPV6_ADDRESS, NF_PROTOCOL
from cni_plugin.pod.frozen_rules import FINGERPRINT, MESSAGES

TABLE = "svctun"

_ADDRESS = {4: IPV4_ADDRESS, 6: IPV6_ADDRESS}

SETS = ("vips", "odd", "guarded", "sources", "peers", "remap", "unmap")
"""The sets whose elements are configuration, each as `vips4` and `vips6`.

vips: the addresses that are ours in this pod. odd: every other one of them. guarded: the IP version, when
only `sources` may send encapsulated packets, and `peers`, who hand on what belongs to connections of this pod.
remap: (VIP, protocol, Service port) -> the program's port; unmap: the way back.
"""
REPLIES = ("reply", "reply_odd")
"""Maps that packets fill, each for both versions too: UDP client and port -> the VIP that it asked last.

reply_odd is for the VIPs in `odd`: a client that turns from one VIP to the next, its port the same, is in the other
map then. Where a pod has three VIPs or more of one version, those of one map can be mistaken for each other by a
client that uses one port for both.
"""


BEFORE = {"lo_rp_filter": "ipv4/conf/lo/rp_filter", "platform_labels": "mpls/platform_labels"}
"""Sets that no rule reads, by the sysctl that mode mpls changes: the one element is the value from before.

They come with the table and so before the change: whoever is killed in between leaves what tells the next.
"""


def set_names() -> list[str]:
    """All sets whose elements are ours to say."""
    return [*BEFORE, *(f"{name}{ip_version}" for name in SETS for ip_version in (4, 6))]


def key_type(name: str, ip_version: int) -> tuple[nft.Type, ...]:
    """Types of the key of a set of `SETS`."""
    address = _ADDRESS[ip_version]
    if name == "guarded":
        return (NF_PROTOCOL,)
    return (address,) if name in ("vips", "odd", "sources", "peers") else (address, INET_PROTOCOL, INET_SERVICE)


def in_words(absent: dict[str, frozenset[tuple[bytes, bytes]]], odd: dict[str, frozenset[tuple[bytes, bytes]]]) -> str:
    """What sets lack and what they have that they should not, by the names of the sets."""
    told = [f"nf_tables set {name} lacks {_listed(name, found)}" for name, found in absent.items() if found]
    told += [f"nf_tables set {name} has {_listed(name, found)} too much" for name, found in odd.items() if found]
    return ", ".join(told)


def _listed(name: str, elements: frozenset[tuple[bytes, bytes]]) -> str:
    return " and ".join([_element(name, key, value) for key, value in sorted(elements)])


def _element(name: str, key: bytes, value: bytes) -> str:
    size = 4 if name.endswith("4") else 16
    if name[:-1] in ("remap", "unmap"):  # address, protocol and port, each from a multiple of four bytes on
        protocol = {6: "tcp", 17: "udp"}.get(key[size], str(key[size]))
        port = int.from_bytes(key[size + 4 : size + 6], "big")
        return f"{unpack(key[:size])} {protocol} {port} -> {int.from_bytes(value, 'big')}"
    return unpack(key) if len(key) in (4, 16) and name not in BEFORE else str(int.from_bytes(key, "big"))


def install() -> list[Message]:
    """The messages that make the table, without elements."""
    return [nft.add_table(TABLE, FINGERPRINT), *(Message(*message) for message in MESSAGES)]


__all__ = ["BEFORE", "FINGERPRINT", "REPLIES", "SETS", "TABLE", "in_words", "install", "key_type", "set_names"]
