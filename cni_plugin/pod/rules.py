"""The nf_tables rules in a pod's netns: what makes "everything just works" true for programs in the pod.

One table of fixed rules; which VIPs, ports and sources there are lives in its sets, so a change of a
Service changes elements only, and the table's set of VIPs says which addresses of the pod are ours.

It is never loaded on a node: `python -m cni_plugin.pod.rules` writes what comes of it to `frozen_rules`, and a
test sees to it that this was not forgotten.

- Fragments are put together first: ports can only be read, and remapped, in whole packets.
- Encapsulated packets are taken from the cluster's nodes only, and only to VIPs that the pod has.
- A Service port that differs from the program's is rewritten, also in the packet that an ICMP error
  quotes (without that, path MTU discovery fails for remapped ports). No connection tracking is involved.
- A tunnel's id other than the usual names earlier owners of the packet's bucket; it becomes a mark. Until the
  helper has said who they are (`hand_on`), packets of connections that the pod does not know are dropped: a
  reset would end what an earlier owner still has, a packet lost is sent again.
- A UDP server bound to 0.0.0.0 or :: answers from the pod's own address; its answers get the VIP to
  which the question came.
"""

from __future__ import annotations

import zlib

from cni_plugin.netlink import Message
from cni_plugin.netlink import nft_steering as steer
from cni_plugin.netlink import nftables as nft
from cni_plugin.netlink.nftables import DATA, INET_SERVICE, NETWORK_HEADER, REGISTER, TCP, TRANSPORT_HEADER, UDP
from cni_plugin.pod.hand_on.rules import TAG, gre_header
from cni_plugin.pod.ruleset import BEFORE, REPLIES, SETS, TABLE, key_type
from cni_plugin.tunnel import TUNNEL_ID, VXLAN_GPE_PORT

RAW, MANGLE = -300, -150
_REPLY_TIMEOUT = 60_000
"""Milliseconds for which the VIP that a client used is kept after its last UDP packet.

Whoever waits for longer keeps the way open himself, for the sake of firewalls and NAT. A map holds 65,535 clients:
the longer each is kept, the fewer new ones can ask in a second.
"""

_ADDRESS = {4: nft.IPV4_ADDRESS, 6: nft.IPV6_ADDRESS}
_FAMILY = {4: nft.IPV4, 6: nft.IPV6}
_SOURCE_AT = {4: 12, 6: 8}
_DESTINATION_AT = {4: 16, 6: 24}
_BYTES = {4: 4, 6: 16}
_CHECKSUM_AT = {TCP: 16, UDP: 6}
_MARK = nft.bitwise(b"\xff\xff\xff\0", bytes([0, 0, 0, TAG])) + steer.set_mark()
"""Of a tunnel's id, which is in the register."""
_GPE_PORT = nft.load(TRANSPORT_HEADER, 2, 2) + nft.compare(VXLAN_GPE_PORT.to_bytes(2, "big"))


def _sets() -> list[Message]:
    messages = [nft.add_set(TABLE, name, number, (nft.MARK,)) for number, name in enumerate(BEFORE, 1)]
    identifier = len(BEFORE)
    for ip_version in (4, 6):
        address = _ADDRESS[ip_version]
        for name in SETS:
            identifier += 1
            data = INET_SERVICE if name in ("remap", "unmap") else None
            messages.append(nft.add_set(TABLE, f"{name}{ip_version}", identifier, key_type(name, ip_version), data))
        for name in REPLIES:
            identifier += 1
            key = (address, INET_SERVICE, INET_SERVICE)
            messages.append(nft.add_set(TABLE, f"{name}{ip_version}", identifier, key, address, timeout=_REPLY_TIMEOUT))
    return messages


def _chains() -> list[Message]:
    return [
        nft.add_chain(TABLE, "arriving", "filter", nft.PREROUTING, RAW),
        nft.add_chain(TABLE, "remember", "filter", nft.PREROUTING, MANGLE),
        nft.add_chain(TABLE, "answer", "route", nft.OUTPUT, RAW),
        nft.add_chain(TABLE, "leaving", "filter", nft.POSTROUTING, RAW),
        # `tproxy` makes the kernel put fragments together before every chain; the rule itself never matches.
        nft.add_rule(
            TABLE,
            "arriving",
            nft.ip_version(nft.IPV4),
            nft.load(NETWORK_HEADER, 12, 4),
            nft.compare(b"\xff\xff\xff\xff"),
            nft.transport(TCP),
            nft.transparent_proxy(1),
        ),
    ]


def _earlier_owners() -> list[Message]:
    """From the outer packet's tunnel id to a mark, and from that to a verdict; of both IP versions alike."""
    tunnel_id = nft.load(TRANSPORT_HEADER, 12, 3)
    usual = TUNNEL_ID.to_bytes(3, "big")
    tagged = steer.mark() + nft.bitwise(b"\0\0\0\xff", bytes(4)) + nft.compare(bytes([0, 0, 0, TAG]))
    untag = nft.constant(bytes(4)) + steer.set_mark()
    tcp = nft.transport(TCP)

    def rule(chain: str, *expressions: bytes) -> Message:
        return nft.add_rule(TABLE, chain, *expressions)

    return [
        nft.add_own_chain(TABLE, "unknown"),
        rule("arriving", nft.transport(UDP), _GPE_PORT, tunnel_id, nft.compare(usual, equal=False), _MARK),
        # Ports are the program's by now, so that its sockets are found.
        rule("remember", nft.meta(6), nft.compare(b"svctun-"), tagged, steer.jump("unknown")),
        rule("unknown", steer.opening(), untag, nft.accept()),
        rule("unknown", tcp, steer.socket_is(steer.WILDCARD), nft.compare(b"\1"), nft.drop()),
        # Also half-open ones and those in TIME_WAIT, of which it cannot be said what they listen on.
        rule("unknown", tcp, steer.socket_is(steer.TRANSPARENT), untag, nft.accept()),
        rule("unknown", tcp, nft.drop()),
        rule("unknown", untag),
    ]


def _rules(ip_version: int) -> list[Message]:
    family = nft.ip_version(_FAMILY[ip_version])
    size = _BYTES[ip_version]
    source_at, destination_at = _SOURCE_AT[ip_version], _DESTINATION_AT[ip_version]
    vips, odd, sources, remap, unmap = (f"{name}{ip_version}" for name in ("vips", "odd", "sources", "remap", "unmap"))
    reply, reply_odd = (f"{name}{ip_version}" for name in REPLIES)

    def rule(chain: str, *expressions: bytes) -> Message:
        return nft.add_rule(TABLE, chain, family, *expressions)

    # The address takes one or four registers, protocol and port one each.
    second = REGISTER + size // 4
    third = second + 1
    to_vip = nft.load(NETWORK_HEADER, destination_at, size) + nft.lookup(vips)
    not_to_vip = nft.load(NETWORK_HEADER, destination_at, size) + nft.lookup(vips, invert=True)
    messages = []

    # Only the nodes may send encapsulated packets, where these are known.
    from_stranger = (
        nft.meta(15)
        + nft.lookup(f"guarded{ip_version}")
        + nft.load(NETWORK_HEADER, source_at, size)
        + nft.lookup(sources, invert=True)
        + nft.lookup(f"peers{ip_version}", invert=True)
        + nft.drop()
    )
    messages.append(rule("arriving", nft.transport(UDP), _GPE_PORT, from_stranger))
    messages.append(rule("arriving", nft.transport(nft.GRE), from_stranger))
    gre, after = gre_header(ip_version)
    # GRE has an id only where a flag says so.
    keyed = nft.load(NETWORK_HEADER, after, 2) + nft.compare(b"\x20\0")
    messages.append(rule("arriving", gre, keyed, nft.load(NETWORK_HEADER, after + 5, 3), _MARK))

    # What a tunnel brings is for a VIP, or it is not ours to bring.
    messages.append(rule("arriving", nft.meta(6), nft.compare(b"svctun-"), not_to_vip, nft.drop()))

    def port_of(direction: str, table: str, address_at: int, port_at: int, protocol: int, checksum: bool) -> Message:
        expressions = [nft.transport(protocol)]
        if protocol == UDP:
            # A UDP checksum of zero means none (RFC 768) and must stay so.
            expressions.append(nft.load(TRANSPORT_HEADER, 6, 2) + nft.compare(b"\0\0", equal=not checksum))
        expressions += [
            nft.load(NETWORK_HEADER, address_at, size),
            nft.meta(16, second),
            nft.load(TRANSPORT_HEADER, port_at, 2, third),
            nft.lookup(table, data=DATA),
            nft.store(TRANSPORT_HEADER, port_at, 2, DATA, _CHECKSUM_AT[protocol] if checksum else None),
        ]
        return rule(direction, *expressions)

    for protocol, checksum in ((TCP, True), (UDP, False), (UDP, True)):
        messages.append(port_of("arriving", remap, destination_at, 2, protocol, checksum))
        messages.append(port_of("leaving", unmap, source_at, 0, protocol, checksum))
    messages.append(rule("arriving", *_quoted_port(ip_version, remap, second, third)))
    if ip_version == 6:
        messages.append(rule("arriving", *_quoted_port(ip_version, remap, second, third, fragment=True)))

    # Which VIP a UDP client talks to, by its address and port and our port. An update leaves the VIP that an element
    # has, so a client that turns to another one from the same port is remembered in the other map, and forgotten in
    # the first. To forget and update one element for every packet would not do: the kernel keeps what a packet took
    # out for up to a second, and refuses more than sixteen of one key.
    client = (
        nft.load(NETWORK_HEADER, source_at, size),
        nft.load(TRANSPORT_HEADER, 0, 2, second),
        nft.load(TRANSPORT_HEADER, 2, 2, third),
    )
    vip = nft.load(NETWORK_HEADER, destination_at, size, DATA)

    def remember(which: tuple[bytes, ...], own: str, other: str) -> Message:
        return rule(
            "remember", nft.transport(UDP), *which, vip, *client, nft.forget(other, DATA), nft.update_map(own, DATA)
        )

    messages += [
        remember((to_vip, nft.lookup(odd, invert=True)), reply, reply_odd),
        remember((nft.load(NETWORK_HEADER, destination_at, size), nft.lookup(odd)), reply_odd, reply),
        # A client that turns to the pod's own address is answered from there again.
        rule(
            "remember",
            nft.transport(UDP),
            not_to_vip,
            vip,
            *client,
            nft.forget(reply, DATA),
            nft.forget(reply_odd, DATA),
        ),
    ]
    for known in (reply, reply_odd):
        messages.append(
            rule(
                "answer",
                nft.transport(UDP),
                nft.load(NETWORK_HEADER, source_at, size),
                nft.lookup(vips, invert=True),
                nft.load(NETWORK_HEADER, destination_at, size),
                nft.load(TRANSPORT_HEADER, 2, 2, second),
                nft.load(TRANSPORT_HEADER, 0, 2, third),
                nft.lookup(known, data=DATA),
                nft.store(
                    NETWORK_HEADER,
                    source_at,
                    size,
                    DATA,
                    checksum_at=10 if ip_version == 4 else None,
                    pseudo_header=True,
                ),
            )
        )
    return messages


def _quoted_port(ip_version: int, remap: str, second: int, third: int, fragment: bool = False) -> tuple[bytes, ...]:
    """An ICMP error quotes our packet with the port that the client sees: source and port of the quote.

    `fragment`: the quoted IPv6 packet is the first fragment of one, with a header in between that says so. (Later ones
    have no ports, and the kernel makes nothing of errors about them. In IPv4 it is all one header.)
    """
    header = 8
    if ip_version == 4:
        kind = nft.load(TRANSPORT_HEADER, 0, 1) + nft.compare(b"\x03")
        shape = nft.load(TRANSPORT_HEADER, header, 1) + nft.compare(b"\x45")  # no options
        protocol_at, source_at, port_at, icmp = header + 9, header + 12, header + 20, nft.ICMP
    else:
        kind = nft.load(TRANSPORT_HEADER, 0, 1) + nft.below(b"\x80")
        shape = b""
        protocol_at, source_at, port_at, icmp = header + 6, header + 8, header + 40, nft.ICMPV6
    if fragment:
        shape = nft.load(TRANSPORT_HEADER, protocol_at, 1) + nft.compare(bytes([nft.FRAGMENT]))
        shape += (
            nft.load(TRANSPORT_HEADER, port_at + 2, 2) + nft.bitwise(b"\xff\xf8", b"\0\0") + nft.compare(b"\0\0")
        )  # offset
        protocol_at, port_at = port_at, port_at + 8
    return (
        nft.transport(icmp),
        kind,
        shape,
        nft.load(TRANSPORT_HEADER, source_at, _BYTES[ip_version]),
        nft.load(TRANSPORT_HEADER, protocol_at, 1, second),
        nft.load(TRANSPORT_HEADER, port_at, 2, third),
        nft.lookup(remap, data=DATA),
        nft.store(TRANSPORT_HEADER, port_at, 2, DATA, checksum_at=2),
    )


def messages() -> list[Message]:
    """Sets, chains and rules, in the order in which the kernel wants them."""
    return _sets() + _chains() + _earlier_owners() + _rules(4) + _rules(6)


def frozen() -> str:
    """The text of `frozen_rules`. The fingerprint tells one version of the rules from others."""
    checksum = 0
    for message in messages():
        checksum = zlib.crc32(message.body, checksum)
    lines = [f"    ({m.type}, {m.flags}, {m.body!r}, {m.what!r})," for m in messages()]
    return "\n".join(
        [
            '"""What `rules` describes, as messages: written by `python -m cni_plugin.pod.rules`, never by hand."""',
            "",
            "# ruff: noqa: E501",
            "# fmt: off",
            "",
            "from __future__ import annotations",
            "",
            f'FINGERPRINT = b"svctun1:{checksum:08x}"',
            '"""Tells this version of the rules from others, so that an upgrade replaces them."""',
            "MESSAGES: tuple[tuple[int, int, bytes, str], ...] = (",
            *lines,
            ")",
            '"""Type, flags, body, and what it does in words."""',
            "",
        ]
    )


if __name__ == "__main__":
    with open(f"{__file__.rpartition('/')[0]}/frozen_rules.py", "w") as file:
        file.write(frozen())
