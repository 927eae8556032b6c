"""Our rtnetlink encoder against what `ip` (iproute2 6.1) sends for the same object.

The bytes were read once with `strace -e trace=sendmsg,sendto -e write=all` in a network namespace with these
links: 1 lo, 2 d1, 3 d0, 4 g0. Compared are message type, header and attributes by number, not their order, and
not what the kernel does not read: sequence numbers, padding, the NESTED bit.
"""

from __future__ import annotations

from typing import Any

import pytest

from cni_plugin.netlink import ACK, REQUEST, Message, rtnl
from cni_plugin.tunnel import GRE, MPLS, VXLAN_GPE
from tests.unit.netlink_bytes import items, split

LO, D1, D0, G0 = 1, 2, 3, 4
V4, V6 = "198.51.100.7", "2001:db8::7"
Nests = dict[int, Any]
"""Attribute -> (bytes in front of the attributes inside of it, nests among these)."""
ENCAP: Nests = {8: (0, {})}
METRICS: Nests = {8: (0, {})}
LINK_INFO: Nests = {18: (0, {2: (0, {1: (16, {})})})}
DEVICE_INFO: Nests = {18: (0, {2: (0, {})})}
NOTHING: Nests = {}

HEADS = {
    rtnl.NEW_LINK: 16, rtnl.DEL_LINK: 16, rtnl.NEW_ADDRESS: 8, rtnl.DEL_ADDRESS: 8, rtnl.NEW_ROUTE: 12,
    rtnl.DEL_ROUTE: 12, rtnl.NEW_RULE: 12, rtnl.DEL_RULE: 12, rtnl.NEW_NEXTHOP: 8, rtnl.DEL_NEXTHOP: 8,
}  # fmt: skip
"""Bytes in front of the attributes, by message type."""


def nexthop(identifier: int, version: int, link: int, **fields: Any) -> Message:
    known: dict[str, Any] = {"gateway": "", "outer": "", "outer_source": "", "label": 0, "tunnel_id": 100} | fields
    return rtnl.put_nexthop(rtnl.Nexthop(identifier, version, link, protocol=116, **known))


# (command, nests, what it sends, ours).
GOLDEN: list[tuple[str, Nests, str, Message]] = [
    (
        "ip nexthop replace id 1 encap ip id 100 dst 10.0.0.9 src 10.0.0.1 ttl 64 dev g0 proto 116",
        ENCAP,
        "58000000680005056c85046b0000000002007400000000000800010001000000280008800c0001000000000000000064080002000a00"
        "0009080003000a0000010500040040b6851106000700020000000800050004000000",
        nexthop(1, 4, G0, outer="10.0.0.9", outer_source="10.0.0.1"),
    ),
    (
        "ip -6 nexthop replace id 3 encap ip id 100 dst 10.0.0.9 src 10.0.0.1 ttl 64 dev g0 proto 116",
        ENCAP,
        "58000000680005056c85046b000000000a007400000000000800010003000000280008800c0001000000000000000064080002000a00"
        "0009080003000a0000010500040040d6f44406000700020000000800050004000000",
        nexthop(3, 6, G0, outer="10.0.0.9", outer_source="10.0.0.1"),
    ),
    (
        "ip nexthop replace id 2 encap ip6 id 100 dst fd00::9 src fd00::1 hoplimit 64 dev g0 proto 116",
        ENCAP,
        "70000000680005056c85046b0000000002007400000000000800010002000000400008800c000100000000000000006414000200fd00"
        "000000000000000000000000000914000300fd0000000000000000000000000000010500040040000000060007000400d92608000500"
        "04000000",
        nexthop(2, 4, G0, outer="fd00::9", outer_source="fd00::1"),
    ),
    (
        "ip nexthop replace id 1 encap ip id 70000 dst 10.0.0.9 src 10.0.0.1 ttl 64 key dev g0 proto 116",
        ENCAP,
        "6000000068000505a755066b0000000002007400000000000800010001000000300008800c0001000000000000011170080002000a00"
        "0009080003000a0000010500040040f6942c060006000004000006000700020000000800050004000000",
        nexthop(1, 4, G0, outer="10.0.0.9", outer_source="10.0.0.1", tunnel_id=70_000, keyed=True),
    ),
    (
        "ip nexthop replace id 2 encap ip6 id 70000 dst fd00::9 src fd00::1 hoplimit 64 key dev g0 proto 116",
        ENCAP,
        "7800000068000505a755066b0000000002007400000000000800010002000000480008800c000100000000000001117014000200fd00"
        "000000000000000000000000000914000300fd000000000000000000000000000001050004004000000006000600000465f2060007"
        "0004009d040800050004000000",
        nexthop(2, 4, G0, outer="fd00::9", outer_source="fd00::1", tunnel_id=70_000, keyed=True),
    ),
    (
        "ip nexthop replace id 4 encap mpls 16000 via 10.0.0.9 dev d0 proto 116",
        ENCAP,
        "44000000680005056d85046b00000000020074000000000008000100040000000c0008800800010003e8010006000700010000000800"
        "06000a0000090800050003000000",
        nexthop(4, 4, D0, gateway="10.0.0.9", label=16000),
    ),
    (
        "ip nexthop del id 9",
        NOTHING,
        "20000000690005006d85046b0000000000000000000000000800010009000000",
        rtnl.delete_nexthop(9),
    ),
    (
        "ip route replace 198.51.100.7/32 nhid 9 table 1007 proto 116 mtu 1464",
        METRICS,
        "40000000180005056d85046b0000000002200000007400010000000008000100c633640708001e000900000008000f00ef0300000c00"
        "080008000200b8050000",
        rtnl.put_route(rtnl.route(4, f"{V4}/32", 1007, 116, nexthop_id=9, mtu=1464)),
    ),
    (
        "ip -6 route replace 2001:db8::7/128 nhid 10 table 1007 proto 116 mtu 1444",
        METRICS,
        "4c000000180005056e85046b000000000a80000000740001000000001400010020010db800000000000000000000000708001e000a00"
        "000008000f00ef0300000c00080008000200a4050000",
        rtnl.put_route(rtnl.route(6, f"{V6}/128", 1007, 116, nexthop_id=10, mtu=1444)),
    ),
    (
        "ip route replace default via 10.0.0.254 dev d0 table 116 proto 116 advmss 1424",
        METRICS,
        "38000000180005056e85046b00000000020000007474000100000000080005000a0000fe08000400030000000c000800080008009005"
        "0000",
        rtnl.put_route(rtnl.route(4, "default", 116, 116, link=D0, gateway="10.0.0.254", advmss=1424)),
    ),
    (
        "ip route replace 198.51.100.7 via inet6 fe80::1 dev d0 proto 116 src 10.0.0.1",
        METRICS,
        "4c000000180005056f85046b0000000002200000fe7400010000000008000100c6336407160012000a00fe8000000000000000000000"
        "000000010000080007000a0000010800040003000000",
        rtnl.put_route(rtnl.route(4, V4, protocol=116, link=D0, gateway="fe80::1", source="10.0.0.1")),
    ),
    (
        "ip route replace default via 10.9.9.9 dev d0 onlink",
        METRICS,
        "2c000000180005056f85046b0000000002000000fe03000104000000080005000a0909090800040003000000",
        rtnl.put_route(rtnl.route(4, "default", protocol=3, link=D0, gateway="10.9.9.9", onlink=True)),
    ),
    (
        "ip route del unicast 198.51.100.7/32 table 1007 proto 116 scope global",
        METRICS,
        "2c000000190005005186046b0000000002200000007400010000000008000100c633640708000f00ef030000",
        rtnl.delete_route(rtnl.route(4, f"{V4}/32", 1007, 116)),
    ),
    (
        "ip -6 route del unicast 2001:db8::7/128 table 1007 proto 116",
        METRICS,
        "38000000190005005186046b000000000a80000000740001000000001400010020010db800000000000000000000000708000f00ef03"
        "0000",
        rtnl.delete_route(rtnl.route(6, f"{V6}/128", 1007, 116)),
    ),
    (
        "ip rule add pref 1000 fwmark 0/0x10000 goto 2000 protocol 116",
        NOTHING,
        "44000000200005067085046b0000000002000000000000020000000008000600e803000008000a000000000008001000000001000800"
        "0400d00700000500150074000000",
        rtnl.add_rule(rtnl.rule(4, 1000, mask=0x10000, action=rtnl.GOTO, goto=2000, protocol=116)),
    ),
    (
        "ip rule add pref 1001 fwmark 0x80/0x80 goto 2000 protocol 116",
        NOTHING,
        "44000000200005067085046b0000000002000000000000020000000008000600e903000008000a008000000008001000800000000800"
        "0400d00700000500150074000000",
        rtnl.add_rule(rtnl.rule(4, 1001, mark=0x80, mask=0x80, action=rtnl.GOTO, goto=2000, protocol=116)),
    ),
    (
        "ip rule del pref 1001 fwmark 0x80/0x80 goto 2000 protocol 116",
        NOTHING,
        "44000000210005005286046b0000000002000000000000020000000008000600e903000008000a008000000008001000800000000800"
        "0400d00700000500150074000000",
        rtnl.delete_rule(rtnl.rule(4, 1001, mark=0x80, mask=0x80, action=rtnl.GOTO, goto=2000, protocol=116)),
    ),
    (
        "ip rule add pref 1002 table 1007 protocol 116",
        NOTHING,
        "34000000200005067085046b0000000002000000000000010000000008000600ea03000008000f00ef0300000500150074000000",
        rtnl.add_rule(rtnl.rule(4, 1002, table=1007, protocol=116)),
    ),
    (
        "ip rule add pref 30000 nop protocol 116",
        NOTHING,
        "2c000000200005067185046b0000000002000000000000030000000008000600307500000500150074000000",
        rtnl.add_rule(rtnl.rule(4, 30000, action=rtnl.NOP, protocol=116)),
    ),
    (
        "ip -6 rule add from 2001:db8::7/128 pref 1160 table 116 protocol 116",
        NOTHING,
        "40000000200005067285046b000000000a00800074000001000000001400020020010db8000000000000000000000007080006008804"
        "00000500150074000000",
        rtnl.add_rule(rtnl.rule(6, 1160, 116, source=f"{V6}/128", protocol=116)),
    ),
    (
        "ip rule add pref 1160 from 198.51.100.7 table 116 protocol 116",
        NOTHING,
        "34000000200005069c85046b00000000020020007400000100000000080006008804000008000200c63364070500150074000000",
        rtnl.add_rule(rtnl.rule(4, 1160, 116, source=f"{V4}/32", protocol=116)),
    ),
    (
        "ip link add svctun-gpe up type vxlan external gpe dstport 4790 udp6zerocsumrx srcport 61000 61256",
        DEVICE_INFO,
        "70000000100005064364066b00000000000000000000000001000000010000000f00030073766374756e2d6770650000400012000900"
        "010076786c616e00000030000200050019000100000004001b00050014000100000008000a00ee48ef48050007000000000006000f00"
        "12b60000",
        rtnl.add_tunnel_device("svctun-gpe", VXLAN_GPE),
    ),
    (
        "ip link add svctun-gre up mtu 1400 type gre external",
        DEVICE_INFO,
        "4c000000100005067285046b000000000000000000000000010000000100000008000400780500000f00030073766374756e2d677265"
        "00001400120007000100677265000800020004001200",
        rtnl.add_tunnel_device("svctun-gre", GRE, mtu=1400),
    ),
    (
        "ip link add svctun-gre6 up type ip6gre external",
        DEVICE_INFO,
        "48000000100005067385046b00000000000000000000000001000000010000001000030073766374756e2d6772653600180012000a00"
        "010069703667726500000800020004001200",
        rtnl.add_tunnel_device("svctun-gre6", GRE, 6),
    ),
    (
        "ip link add svctun mtu 65535 type veth peer name host0 mtu 65535 netns x  (x opened as descriptor 4)",
        LINK_INFO,
        "74000000100005069b85046b000000000000000000000000000000000000000008000400ffff00000b00030073766374756e00004000"
        "1200080001007665746834000200300001000000000000000000000000000000000008000400ffff000008001c00040000000a000300"
        "686f737430000000",
        rtnl.add_veth("svctun", "host0", 4, 65535),
    ),
    (
        "ip link set d1 up",
        NOTHING,
        "20000000100005007385046b0000000000000000020000000100000001000000",
        rtnl.set_up(D1, "d1"),
    ),
    (
        "ip link del d1",
        NOTHING,
        "20000000110005007385046b0000000000000000020000000000000000000000",
        rtnl.delete_link(D1, "d1"),
    ),
    (
        "ip addr replace 198.51.100.7/32 dev lo",
        NOTHING,
        "28000000140005057485046b00000000022000000100000008000200c633640708000100c6336407",
        rtnl.add_address(V4, LO, "lo"),
    ),
    (
        "ip addr replace 198.51.100.7/32 dev lo scope host",
        NOTHING,
        "28000000140005057485046b00000000022000fe0100000008000200c633640708000100c6336407",
        rtnl.add_address(V4, LO, "lo", scope=rtnl.SCOPE_HOST),
    ),
    (
        "ip addr replace 2001:db8::7/128 dev lo nodad preferred_lft 0",
        NOTHING,
        "54000000140005057485046b000000000a800200010000001400020020010db80000000000000000000000071400010020010db80000"
        "000000000000000000071400060000000000ffffffff0000000000000000",
        rtnl.add_address(V6, LO, "lo", deprecated=True),
    ),
    (
        "ip addr replace fe80::74:2/64 dev lo nodad",
        NOTHING,
        "40000000140005057585046b000000000a4002000100000014000200fe80000000000000000000000074000214000100fe8000000000"
        "00000000000000740002",
        rtnl.add_address("fe80::74:2", LO, "lo", prefix=64),
    ),
    (
        "ip addr del 198.51.100.7/32 dev lo",
        NOTHING,
        "28000000150005007585046b00000000022000000100000008000200c633640708000100c6336407",
        rtnl.delete_address(V4, LO, "lo"),
    ),
    (
        "ip addr del 2001:db8::7/128 dev lo",
        NOTHING,
        "40000000150005007585046b000000000a800000010000001400020020010db80000000000000000000000071400010020010db80000"
        "00000000000000000007",
        rtnl.delete_address(V6, LO, "lo"),
    ),
    (
        "ip -f mpls route replace 100 dev lo proto 116",
        NOTHING,
        "2c000000180005057585046b000000001c140000fe7400010000000008000100000641000800040001000000",
        rtnl.put_label(rtnl.Label(100, 116, LO, "", 0)),
    ),
    (
        "ip -f mpls route replace 16000 as 100 via inet 10.0.0.9 dev d0 proto 116",
        NOTHING,
        "40000000180005057685046b000000001c140000fe740001000000000800010003e8010008001300000641000a00120002000a000009"
        "00000800040003000000",
        rtnl.put_label(rtnl.Label(16000, 116, D0, "10.0.0.9", 100)),
    ),
    (
        "ip -f mpls route replace 16001 as 100 via inet6 fd00::9 dev d0 proto 116",
        NOTHING,
        "4c000000180005057685046b000000001c140000fe740001000000000800010003e811000800130000064100160012000a00fd00000000"
        "000000000000000000000900000800040003000000",
        rtnl.put_label(rtnl.Label(16001, 116, D0, "fd00::9", 100)),
    ),
    (
        "ip -f mpls route del 100 proto 116",
        NOTHING,
        "24000000190005007685046b000000001c140000fe740001000000000800010000064100",
        rtnl.delete_label(100, 116),
    ),
]  # fmt: skip


def tree(payload: bytes, nests: Nests) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for kind, value in items(payload):
        assert kind not in found, "an attribute is there twice"
        if kind in nests:
            head, inner = nests[kind]
            found[kind] = (value[:head], tree(value[head:], inner))
        else:
            # A name may end with a zero byte or not.
            found[kind] = value.rstrip(b"\0") if kind in (1, 3) and value[:1].isalpha() else value
    return found


def meaning(kind: int, body: bytes, nests: Nests) -> tuple[bytes, dict[int, Any]]:
    head, attributes = bytearray(body[: HEADS[kind]]), tree(body[HEADS[kind] :], nests)
    if kind in (rtnl.NEW_ROUTE, rtnl.DEL_ROUTE, rtnl.NEW_RULE, rtnl.DEL_RULE) and head[4]:
        # A table below 256 may be given by the header, the attribute, or both.
        assert int.from_bytes(attributes.pop(15, bytes((head[4],))), "little") == head[4]
    return bytes(head), attributes


@pytest.mark.parametrize(("command", "nests", "sent", "ours"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_we_send_what_ip_sends(command: str, nests: Nests, sent: str, ours: Message) -> None:
    kind, flags, body = split(bytes.fromhex(sent))
    assert ours.type == kind
    assert ours.flags | REQUEST | ACK == flags
    assert meaning(kind, ours.body, nests) == meaning(kind, body, nests)
    assert len(ours.body) % 4 == 0, "every attribute is padded"


def test_no_device_belongs_to_mode_mpls() -> None:
    with pytest.raises(ValueError, match="mode mpls has no device"):
        rtnl.add_tunnel_device("svctun-mpls", MPLS)
