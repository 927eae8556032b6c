"""The nf_tables rules that hand on packets of connections which an earlier owner of their bucket has.

Tables of families `ip` and `ip6` (inet cannot copy packets), there only while buckets have moved lately. They come
before the pod's fixed rules, so that a port is handed on as the client wrote it, and after fragments are put together.

By then a packet whose tunnel named earlier owners has a mark that says the same (`pod.rules`). Such a packet is the
pod's own when it opens a connection, or belongs to one that was opened here; everything else goes on. Errors of ICMP go
both ways: whoever has no such connection takes no notice of them. Connections of buckets that did not move are noted,
too: theirs may move away, and come back before this pod's helper knows.

What is noted here may be over, and the client have begun anew from the same port elsewhere. Nothing tells of that until
the pod resets what it does not know: that reset is dropped, the note goes with it, and what the client sends again goes
on to who has the connection.
"""

from __future__ import annotations

import zlib

from cni_plugin.netlink import Message
from cni_plugin.netlink import nft_steering as steer
from cni_plugin.netlink import nftables as nft
from cni_plugin.netlink.nftables import DATA, INET_SERVICE, MARK, NETWORK_HEADER, REGISTER, TRANSPORT_HEADER
from cni_plugin.tunnel import VXLAN_GPE_PORT

TABLE = "svctun-moved"
TAG = 0x74
"""The last byte of a mark that names earlier owners; the first three are the tunnel's id."""

_PRIORITY = -310
_LEAVING_PRIORITY = 110
"""Ports are the client's again by then, and addresses, also where something in the pod has translated them."""
_KEPT = 3_600_000
"""Milliseconds for which a connection that was opened here is known after its last packet."""
_CLOSED = 60_000
"""Milliseconds for one that is closing."""
_CLAIMED = 2_000
"""Milliseconds for which a packet of a moved bucket that was taken may be answered by a reset: that is sent at once."""
_MOST = 1 << 18
"""Connections that can be known at one time."""
_ADDRESS = {4: nft.IPV4_ADDRESS, 6: nft.IPV6_ADDRESS}
_BYTES = {4: 4, 6: 16}
_SOURCE_AT = {4: 12, 6: 8}
_DESTINATION_AT = {4: 16, 6: 24}
_NEXT_PROTOCOL = {4: b"\1", 6: b"\2"}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
FAMILY = {4: nft.IPV4, 6: nft.IPV6}
_ICMP_ERROR = {4: nft.transport(nft.ICMP) + nft.load(TRANSPORT_HEADER, 0, 1) + nft.compare(b"\x03"),
               6: nft.transport(nft.ICMPV6) + nft.load(TRANSPORT_HEADER, 0, 1) + nft.below(b"\x80")}  # fmt: skip


def mine_key(ip_version: int) -> tuple[nft.Type, ...]:
    """Type of the key by which a connection is known: client, its port, VIP, the port that the client sees."""
    return (_ADDRESS[ip_version], INET_SERVICE, _ADDRESS[ip_version], INET_SERVICE)


def mark_of(tunnel_id: int) -> bytes:
    """The mark that packets of this tunnel id get, as the kernel has it in a register."""
    return tunnel_id.to_bytes(3, "big") + bytes([TAG])


def gre_header(ip_version: int) -> tuple[bytes, int]:
    """Only GRE packets without options or extensions, and where their GRE header begins in the packet.

    Our own have none. From the transport header on, `nft list` of Debian 12 cannot print GRE, and crashes.
    """
    if ip_version == 4:
        return nft.transport(nft.GRE) + nft.load(NETWORK_HEADER, 0, 1) + nft.compare(b"\x45"), 20
    return nft.load(NETWORK_HEADER, 6, 1) + nft.compare(bytes([nft.GRE])), 40


def install(ip_version: int) -> list[Message]:
    """The table of one IP version, without elements."""
    family = FAMILY[ip_version]
    address = _ADDRESS[ip_version]
    return [
        nft.add_table(TABLE, fingerprint(ip_version), family),
        nft.add_set(TABLE, "mine", 1, mine_key(ip_version), family=family, timeout=_KEPT, size=_MOST),
        nft.add_set(TABLE, "gateways", 2, (MARK,), address, family=family),
        nft.add_set(TABLE, "devices", 3, (MARK,), steer.INTERFACE_INDEX, family=family),
        nft.add_set(TABLE, "peers", 4, (address,), family=family),
        nft.add_set(TABLE, "vips4", 5, (address, nft.IPV4_ADDRESS), family=family),
        nft.add_set(TABLE, "vips6", 6, (address, nft.IPV6_ADDRESS), family=family),
        nft.add_set(TABLE, "own", 7, (address,), family=family),
        nft.add_set(TABLE, "claimed", 8, mine_key(ip_version), family=family, timeout=_CLAIMED, size=_MOST),
        nft.add_chain(TABLE, "arriving", "filter", nft.PREROUTING, _PRIORITY, family=family),
        nft.add_chain(TABLE, "leaving", "filter", nft.POSTROUTING, _LEAVING_PRIORITY, family=family),
        nft.add_own_chain(TABLE, "from_peer", family),
        nft.add_own_chain(TABLE, "moved", family),
        *[nft.add_rule(TABLE, chain, expressions, family=family) for chain, expressions in _rules(ip_version)],
    ]


def fingerprint(ip_version: int) -> bytes:
    """Tells this version of the rules from others."""
    checksum = 0
    for chain, expressions in _rules(ip_version):
        checksum = zlib.crc32(chain.encode() + expressions, checksum)
    return b"svctun-moved1:%08x" % checksum


def _rules(ip_version: int) -> list[tuple[str, bytes]]:
    """Each rule's chain and expressions, in order."""
    size = _BYTES[ip_version]
    second = REGISTER + size // 4
    source = nft.load(NETWORK_HEADER, _SOURCE_AT[ip_version], size)
    gpe = nft.transport(nft.UDP) + nft.load(TRANSPORT_HEADER, 2, 2) + nft.compare(VXLAN_GPE_PORT.to_bytes(2, "big"))
    gre, after = gre_header(ip_version)
    from_peer = source + nft.lookup("peers") + steer.jump("from_peer")
    rules = [("arriving", gpe + from_peer), ("arriving", gre + from_peer)]

    # A peer hands on packets for the VIPs that it shares with this pod, and for no other.
    for inner in (4, 6):
        for brings, base, start in (
            (gpe + nft.load(TRANSPORT_HEADER, 11, 1) + nft.compare(_NEXT_PROTOCOL[inner]), TRANSPORT_HEADER, 16),
            (
                gre + nft.load(NETWORK_HEADER, after, 4) + nft.compare(b"\0\0" + _ETHERTYPE[inner]),
                NETWORK_HEADER,
                after + 4,
            ),
            (
                gre + nft.load(NETWORK_HEADER, after, 4) + nft.compare(b"\x20\0" + _ETHERTYPE[inner]),
                NETWORK_HEADER,
                after + 8,
            ),
        ):
            to = nft.load(base, start + _DESTINATION_AT[inner], _BYTES[inner], second)
            rules.append(("from_peer", brings + source + to + nft.lookup(f"vips{inner}") + nft.accept()))
    rules.append(("from_peer", nft.drop()))

    tagged = steer.mark() + nft.bitwise(b"\0\0\0\xff", bytes(4)) + nft.compare(bytes([0, 0, 0, TAG]))
    arrived = nft.meta(6) + nft.compare(b"svctun-")
    rules.append(("arriving", arrived + tagged + steer.jump("moved")))

    untag = nft.constant(bytes(4)) + steer.set_mark()
    connection = (
        source
        + nft.load(TRANSPORT_HEADER, 0, 2, second)
        + nft.load(NETWORK_HEADER, _DESTINATION_AT[ip_version], size, second + 1)
        + nft.load(TRANSPORT_HEADER, 2, 2, second + 1 + size // 4)
    )
    known = nft.transport(nft.TCP) + connection + nft.lookup("mine")
    hand_on = (
        steer.mark()
        + nft.lookup("gateways", data=DATA)
        + nft.lookup("devices", data=DATA + 4)
        + steer.copy_to(DATA, DATA + 4)
    )
    rules += [
        ("moved", _ICMP_ERROR[ip_version] + hand_on),
        # Where no more connections can be known, not even their first packet is taken: it goes on as what follows it.
        ("moved", steer.opening() + connection + steer.note("mine") + untag + nft.accept()),
        ("moved", known + steer.note("claimed")),
        ("moved", known + steer.closing() + connection + steer.note("mine", _CLOSED) + untag + nft.accept()),
        ("moved", known + steer.note("mine") + untag + nft.accept()),
        ("moved", nft.transport(nft.TCP) + hand_on + nft.drop()),
    ]
    # Not by device: labelled packets come by another.
    own = nft.load(NETWORK_HEADER, _DESTINATION_AT[ip_version], size) + nft.lookup("own")
    rules += [
        ("arriving", own + steer.opening() + connection + steer.note("mine")),
        ("arriving", own + known + steer.closing() + connection + steer.note("mine", _CLOSED) + nft.accept()),
        ("arriving", own + known + steer.note("mine")),
    ]
    answered = (
        nft.load(NETWORK_HEADER, _DESTINATION_AT[ip_version], size)
        + nft.load(TRANSPORT_HEADER, 2, 2, second)
        + nft.load(NETWORK_HEADER, _SOURCE_AT[ip_version], size, second + 1)
        + nft.load(TRANSPORT_HEADER, 0, 2, second + 1 + size // 4)
    )
    unfounded = steer.refusing() + answered + nft.lookup("claimed")
    rules.append(("leaving", unfounded + steer.strike("claimed") + steer.strike("mine") + nft.drop()))
    return rules
