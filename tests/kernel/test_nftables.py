"""Our nf_tables code and the real kernel: whole transactions, any number of elements, rules that `nft` reads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from struct import pack

import pytest

from cni_plugin.netlink import NETLINK_NETFILTER, NetlinkError, Socket, nftables
from cni_plugin.netns import entered
from cni_plugin.pod import ruleset
from tests.kernel.private_netns import private_netns, run

IP_PKTINFO = 8
"""Not in the module `socket`."""


@pytest.fixture
def netns() -> Iterator[str]:
    with private_netns() as path:
        yield path


def addresses(count: int) -> list[tuple[bytes, bytes]]:
    return [((0x64400000 + i).to_bytes(4, "big"), b"") for i in range(count)]


def test_a_transaction_is_done_whole_or_not_at_all(netns: str) -> None:
    with entered(netns), nftables.open_socket() as netfilter:
        good = [nftables.add_table("one", b"note"), nftables.add_set("one", "set", 1, (nftables.IPV4_ADDRESS,))]
        bad = nftables.add_elements("one", "other", [(b"\1\2\3\4", b"")])
        with pytest.raises(NetlinkError, match=r"^ENOENT adding elements to nf_tables set other"):
            nftables.commit(netfilter, [*good, *bad, nftables.add_table("two", b"")])
        assert run(netns, "nft", "list", "tables") == ""
        nftables.commit(netfilter, good)
        assert nftables.table_userdata(netfilter, "one") == b"note"
        assert nftables.table_userdata(netfilter, "two") is None


def test_a_transaction_of_nothing_is_no_transaction(netns: str) -> None:
    with entered(netns), nftables.open_socket() as netfilter:
        nftables.commit(netfilter, [])


def test_of_many_refused_messages_of_a_transaction_the_first_is_told(netns: str) -> None:
    with entered(netns), nftables.open_socket() as netfilter:
        messages = [m for i in range(4_000) for m in nftables.add_elements("gone", f"set{i}", [(b"\1\2\3\4", b"")])]
        with pytest.raises(NetlinkError, match=r"^ENOENT adding elements to nf_tables set set0"):
            nftables.commit(netfilter, messages)
        assert nftables.table_userdata(netfilter, "gone") is None, "the socket is as good as before"


@pytest.mark.parametrize("count", [1, 1_000, 20_000])
def test_a_set_takes_any_number_of_elements_in_one_transaction(netns: str, count: int) -> None:
    with entered(netns), nftables.open_socket() as netfilter:
        nftables.commit(netfilter, ruleset.install())
        elements = addresses(count)
        nftables.commit(netfilter, nftables.add_elements(ruleset.TABLE, "vips4", elements))
        for _ in range(5):  # the kernel makes its hash table larger meanwhile, which changes the order of a dump
            assert sorted(nftables.dump_elements(netfilter, ruleset.TABLE, "vips4")) == elements
        nftables.commit(netfilter, nftables.delete_elements(ruleset.TABLE, "vips4", elements))
        assert nftables.dump_elements(netfilter, ruleset.TABLE, "vips4") == []


def test_a_set_is_emptied_whatever_is_in_it(netns: str) -> None:
    with entered(netns), nftables.open_socket() as netfilter:
        nftables.commit(netfilter, ruleset.install())
        for count in (0, 1_000):
            nftables.commit(netfilter, nftables.add_elements(ruleset.TABLE, "vips4", addresses(count)))
            nftables.commit(netfilter, [nftables.delete_all_elements(ruleset.TABLE, "vips4")])
            assert nftables.dump_elements(netfilter, ruleset.TABLE, "vips4") == []


def test_an_element_of_a_map_moves_to_another_value_in_one_transaction(netns: str) -> None:
    key = nftables.key_bytes(ruleset.key_type("remap", 4), (bytes((198, 51, 100, 7)), b"\x06", pack(">H", 80)))
    old, new = [(key, pack(">H", 8080))], [(key, pack(">H", 9090))]
    with entered(netns), nftables.open_socket() as netfilter:
        nftables.commit(netfilter, ruleset.install())
        nftables.commit(netfilter, nftables.add_elements(ruleset.TABLE, "remap4", old))
        changes = nftables.delete_elements(ruleset.TABLE, "remap4", old)
        nftables.commit(netfilter, changes + nftables.add_elements(ruleset.TABLE, "remap4", new))
        assert nftables.dump_elements(netfilter, ruleset.TABLE, "remap4") == new
        with pytest.raises(NetlinkError, match=r"^ENOENT reading nf_tables set nothing"):
            nftables.dump_elements(netfilter, ruleset.TABLE, "nothing")


def test_as_many_udp_clients_are_remembered_as_come(netns: str) -> None:
    """The maps are made without a size, so that a pod's do not take a mebibyte each; they grow."""
    run(netns, "ip", "link", "set", "lo", "up")
    with entered(netns), nftables.open_socket() as netfilter:
        nftables.commit(
            netfilter, ruleset.install() + nftables.add_elements(ruleset.TABLE, "vips4", [(bytes((127, 0, 0, 1)), b"")])
        )
        clients = range(1, 5_001)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for client in clients:  # 127.0.0.0/8 is all ours
                source = pack("=i4s4s", 0, pack(">I", 0x7F010000 + client), bytes(4))
                datagrams.sendmsg([b""], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, ("127.0.0.1", 9))
        assert len(nftables.dump_elements(netfilter, ruleset.TABLE, "reply4")) == len(clients)


KEYED = "0x2000 meta mark"
"""GRE with a key, told apart by the outer packet's version."""
LISTING = """\
table inet svctun {
	set lo_rp_filter {
		type mark
	}

	set platform_labels {
		type mark
	}

	set vips4 {
		type ipv4_addr
		elements = { 198.51.100.7 }
	}

	set odd4 {
		type ipv4_addr
	}

	set guarded4 {
		type nf_proto
		elements = { ipv4 }
	}

	set sources4 {
		type ipv4_addr
		elements = { 10.0.0.1 }
	}

	set peers4 {
		type ipv4_addr
	}

	map remap4 {
		type ipv4_addr . inet_proto . inet_service : inet_service
		elements = { 198.51.100.7 . tcp . 80 : 8080 }
	}

	map unmap4 {
		type ipv4_addr . inet_proto . inet_service : inet_service
	}

	map reply4 {
		type ipv4_addr . inet_service . inet_service : ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout 1m
	}
"""
SPELLINGS = {
    "& 0x74ffffff | 0x74000000": "& 0xffffff74 | 0x74",
    "meta mark & 0xff000000 == 0x74000000": "meta mark 0x74000000/8",
    "tcp flags & (fin | syn | rst | ack) == syn": "tcp flags syn / fin,syn,rst,ack",
}
"""How nft 1.1 says what nft 1.0 says otherwise."""
RULES = {
    "arriving": (
        "type filter hook prerouting priority raw; policy accept;",
        "ip saddr 255.255.255.255 meta l4proto tcp tproxy to :1",
        "udp dport 4790 @th,96,24 != 0x64 meta mark set @th,96,24 & 0xffffff74 | 0x74",
        "udp dport 4790 meta nfproto @guarded{v} {ip} saddr != @sources{v} {ip} saddr != @peers{v} drop",
        "meta l4proto gre meta nfproto @guarded{v} {ip} saddr != @sources{v} {ip} saddr != @peers{v} drop",
        'iifname "svctun-*" {ip} daddr != @vips{v} drop',
        "tcp dport set {ip} daddr . meta l4proto . tcp dport map @remap{v}",
        "udp checksum 0 udp dport set {ip} daddr . meta l4proto . udp dport map @remap{v}",
        "udp checksum != 0 udp dport set {ip} daddr . meta l4proto . udp dport map @remap{v}",
    ),
    "remember": (
        "type filter hook prerouting priority mangle; policy accept;",
        'iifname "svctun-*" meta mark 0x74000000/8 jump unknown',
        "{ip} daddr @vips{v} {ip} daddr != @odd{v} delete @reply_odd{v} {{ {client} }} update @reply{v} {{ {client} }}",
        "{ip} daddr @odd{v} delete @reply{v} {{ {client} }} update @reply_odd{v} {{ {client} }}",
        "{ip} daddr != @vips{v} delete @reply{v} {{ {client} }} delete @reply_odd{v} {{ {client} }}",
    ),
    "answer": (
        "type route hook output priority raw; policy accept;",
        "{ip} saddr != @vips{v} {ip} saddr set {ip} daddr . udp dport . udp sport map @reply{v}",
        "{ip} saddr != @vips{v} {ip} saddr set {ip} daddr . udp dport . udp sport map @reply_odd{v}",
    ),
    "unknown": (
        "tcp flags syn / fin,syn,rst,ack meta mark set 0x00000000 accept",
        "meta l4proto tcp socket wildcard 1 drop",
        # The second `socket` compares nothing, so nft shows no trace of it.
        "meta l4proto tcp meta mark set 0x00000000 accept",
        "meta l4proto tcp drop",
        "meta mark set 0x00000000",
    ),
    "leaving": (
        "type filter hook postrouting priority raw; policy accept;",
        "tcp sport set {ip} saddr . meta l4proto . tcp sport map @unmap{v}",
        "udp checksum 0 udp sport set {ip} saddr . meta l4proto . udp sport map @unmap{v}",
        "udp checksum != 0 udp sport set {ip} saddr . meta l4proto . udp sport map @unmap{v}",
    ),
}
"""What `nft` reads in our rules, by chain, for IPv4 and IPv6; rewriting what ICMP quotes has no words of its own."""


def test_nft_reads_our_table_as_it_is_meant(netns: str) -> None:
    seen = nftables.key_bytes(ruleset.key_type("remap", 4), (bytes((198, 51, 100, 7)), b"\x06", pack(">H", 80)))
    elements = {
        "vips4": (bytes((198, 51, 100, 7)), b""),
        "guarded4": (bytes((nftables.IPV4,)), b""),
        "sources4": (bytes((10, 0, 0, 1)), b""),
        "remap4": (seen, pack(">H", 8080)),
    }
    with entered(netns), nftables.open_socket() as netfilter:
        messages = [m for name, element in elements.items() for m in nftables.add_elements("svctun", name, [element])]
        nftables.commit(netfilter, ruleset.install() + messages)
    listing = run(netns, "nft", "list", "ruleset")
    for newer, older in SPELLINGS.items():
        listing = listing.replace(newer, older)
    assert listing.startswith(LISTING)
    chains = {part.split(" ", 1)[0]: part for part in listing.split("\tchain ")[1:]}
    for name, rules in RULES.items():
        lines = [line.strip() for line in chains[name].splitlines()[1:] if line.startswith("\t\t")]
        plain = [line for line in lines if not line.startswith("icmp") and KEYED not in line]
        first, rest = [rule for rule in rules if "{v}" not in rule], [rule for rule in rules if "{v}" in rule]
        client = "{ip} saddr . udp sport . udp dport : {ip} daddr"
        expected = first + [
            rule.format(ip=ip, v=v, client=client.format(ip=ip)) for ip, v in (("ip", 4), ("ip6", 6)) for rule in rest
        ]
        assert plain == expected
    keyed = [line.strip() for line in chains["arriving"].splitlines() if KEYED in line]
    assert keyed == [
        f"meta l4proto gre ip version 4 ip hdrlength 5 @nh,160,16 {KEYED} set @nh,200,24 & 0xffffff74 | 0x74",
        f"ip6 nexthdr gre @nh,320,16 {KEYED} set @nh,360,24 & 0xffffff74 | 0x74",
    ]
    assert "icmp type destination-unreachable" in chains["arriving"]
    assert "icmpv6 type < echo-request" in chains["arriving"]


def test_a_netlink_socket_belongs_to_the_namespace_in_which_it_was_made(netns: str) -> None:
    with private_netns() as other:
        with entered(other):
            there = Socket(NETLINK_NETFILTER)
        with there:
            nftables.commit(there, [nftables.add_table("there", b"")])
        assert run(netns, "nft", "list", "tables") == ""
        assert run(other, "nft", "list", "tables") == "table inet there\n"
