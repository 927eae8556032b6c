"""nf_tables by netlink: tables, sets, chains, rules as expressions, in one transaction.

Starting the `nft` program would cost a pod's ADD more than everything else it does, and needs a program
that a node may not have. Only the expressions that this project uses are here. Formats:
`include/uapi/linux/netfilter/nf_tables.h`; type numbers in sets are nft's own (they only make
`nft list ruleset` readable).
"""

from __future__ import annotations

from _struct import pack

from cni_plugin.netlink import (
    CREATE,
    NETLINK_NETFILTER,
    Message,
    NetlinkError,
    Socket,
    attribute,
    attribute_list,
    attributes,
    be32,
    be64,
    nested,
    text,
)
from cni_plugin.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INET = 1
"""The table family of IPv4 and IPv6 together; all functions mean it where they are not told another."""
NETDEV = 5
"""The family of what a device receives, whatever the protocol, before anything else sees it."""
BRIDGE = 7
"""The family of frames that ports of bridges receive, whether they go to another port or to the host itself."""
IPV4, IPV6 = 2, 10
"""What `nfproto` yields."""
ICMP, TCP, UDP, FRAGMENT, GRE, ICMPV6 = 1, 6, 17, 44, 47, 58

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
INGRESS = 0
"""The hook of family NETDEV."""

_SUBSYSTEM = 10 << 8
_NEW_TABLE, _GET_TABLE, _DEL_TABLE = 0, 1, 2
_NEW_CHAIN, _NEW_RULE, _GET_RULE, _NEW_SET = 3, 6, 7, 9
_NEW_ELEMENT, _GET_ELEMENT, _DEL_ELEMENT = 12, 13, 14
_BATCH_BEGIN, _BATCH_END = 16, 17
_APPEND = 0x800

_SET_MAP, _SET_TIMEOUT, _SET_EVAL = 0x8, 0x10, 0x20

_PORTION = 1000
"""Elements of one message: an attribute, and so a list of elements, holds 64 KiB; one element takes up to 48 bytes."""
_DUMP_ATTEMPTS = 16
"""The hash table doubles a dozen times at most, in milliseconds each, until it suits any number of elements."""

# Registers of four bytes each; concatenated keys lie in consecutive ones.
REGISTER = 8
DATA = 16
"""The first register of data, behind the longest key."""
_VERDICT_REGISTER = 0


class Type(Record):
    """A datatype of set keys: nft's number and the bytes it takes."""

    number: int
    size: int

    @property
    def padded(self) -> int:
        return (self.size + 3) & ~3


NF_PROTOCOL = Type(2, 1)
IPV4_ADDRESS, IPV6_ADDRESS = Type(7, 4), Type(8, 16)
ETHER_ADDRESS = Type(9, 6)
ETHERTYPE = Type(10, 2)
INET_PROTOCOL, INET_SERVICE, MARK = Type(12, 1), Type(13, 2), Type(19, 4)


def _general(family: int) -> bytes:
    return pack(">BBH", family, 0, 0)


def _message(kind: int, flags: int, body: bytes, what: str, family: int = INET) -> Message:
    return Message(_SUBSYSTEM | kind, flags, _general(family) + body, what)


def open_socket() -> Socket:
    return Socket(NETLINK_NETFILTER)


def commit(socket: Socket, messages: Sequence[Message]) -> None:
    """Applies all messages or none; raises NetlinkError for the first refused one."""
    edge = pack(">BBH", 0, 0, 10)
    begin = pack("=IHHII", 20, _BATCH_BEGIN, 1, 0, 0) + edge
    end = pack("=IHHII", 20, _BATCH_END, 1, 0, 0) + edge
    socket.transaction(messages, begin, end)


# --- tables, chains, sets -------------------------------------------------------------------------------


def add_table(name: str, userdata: bytes, family: int = INET) -> Message:
    """`userdata`: up to 256 bytes that come back with `table_userdata`."""
    body = text(1, name) + attribute(6, userdata)
    return _message(_NEW_TABLE, CREATE, body, f"adding nf_tables table {name}", family)


def delete_table(name: str, family: int = INET) -> Message:
    return _message(_DEL_TABLE, 0, text(1, name), f"deleting nf_tables table {name}", family)


def table_userdata(socket: Socket, name: str, family: int = INET) -> bytes | None:
    """The userdata of a table, or None where there is no such table."""
    try:
        body = _general(family) + text(1, name)
        answer = socket.get(_SUBSYSTEM | _GET_TABLE, body, f"reading nf_tables table {name}")
    except NetlinkError as error:
        if error.errno == 2:  # ENOENT
            return None
        raise
    return attributes(answer, 4).get(6, b"")


def add_chain(
    table: str, name: str, kind: str, hook: int, priority: int, device: str = "", family: int = INET
) -> Message:
    """A base chain; `kind` is `filter` or `route` (which routes again after an address was changed).

    `device`: the one whose frames meet a chain of family NETDEV.
    """
    body = text(1, table) + text(3, name)
    place = [be32(1, hook), attribute(2, pack(">i", priority))] + ([text(3, device)] if device else [])
    body += nested(4, *place) + text(7, kind)
    return _message(_NEW_CHAIN, CREATE, body, f"adding nf_tables chain {name}", family)


def add_own_chain(table: str, name: str, family: int = INET) -> Message:
    """A chain that packets come to only from rules of others."""
    return _message(_NEW_CHAIN, CREATE, text(1, table) + text(3, name), f"adding nf_tables chain {name}", family)


def add_set(
    table: str,
    name: str,
    identifier: int,
    key: Sequence[Type],
    data: Type | None = None,
    family: int = INET,
    timeout: int = 0,
    size: int = 0,
) -> Message:
    """A set, or a map where `data` is given.

    `timeout` (milliseconds) makes it one that packets fill, with at most `size` elements. The kernel makes room for
    as many at once, 16 bytes for each; where none is given it begins small and stops at 65,535.
    """
    flags = (_SET_MAP if data else 0) | (_SET_TIMEOUT | _SET_EVAL if timeout else 0)
    number = 0
    for part in key:
        number = number << 6 | part.number
    key_size = sum(part.padded for part in key) if len(key) > 1 else key[0].size
    body = text(1, table) + text(2, name) + be32(3, flags) + be32(4, number) + be32(5, key_size)
    if data:
        body += be32(6, data.number) + be32(7, data.size)
    body += be32(10, identifier)
    if timeout:
        body += be64(11, timeout)
    if size:
        body += nested(9, be32(1, size))
    return _message(_NEW_SET, CREATE, body, f"adding nf_tables set {name}", family)


def key_bytes(key: Sequence[Type], values: Sequence[bytes]) -> bytes:
    """The bytes of a concatenated key: each part padded to four bytes."""
    if len(key) == 1:
        return values[0]
    return b"".join([value.ljust(part.padded, b"\0") for part, value in zip(key, values)])


def add_elements(table: str, name: str, elements: Sequence[tuple[bytes, bytes]], family: int = INET) -> list[Message]:
    """Elements as (key, data); data is empty in plain sets. As many messages as it takes."""
    what = f"adding elements to nf_tables set {name}"
    return [_message(_NEW_ELEMENT, CREATE, body, what, family) for body in _elements(table, name, elements)]


def delete_elements(
    table: str, name: str, elements: Sequence[tuple[bytes, bytes]], family: int = INET
) -> list[Message]:
    what = f"deleting elements of nf_tables set {name}"
    return [_message(_DEL_ELEMENT, 0, body, what, family) for body in _elements(table, name, elements)]


def delete_all_elements(table: str, name: str) -> Message:
    return _message(_DEL_ELEMENT, 0, text(1, table) + text(2, name), f"emptying nf_tables set {name}")


def _elements(table: str, name: str, elements: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for start in range(0, len(elements), _PORTION):
        items = [
            nested(1, nested(1, attribute(1, key)), *([nested(2, attribute(1, data))] if data else []))
            for key, data in elements[start : start + _PORTION]
        ]
        yield text(1, table) + text(2, name) + nested(3, *items)


def dump_elements(socket: Socket, table: str, name: str, family: int = INET) -> list[tuple[bytes, bytes]]:
    """(key, data) of all elements, each once; raises NetlinkError ENOENT where there is no such set.

    The kernel makes a set's hash table larger in the background, and a dump of several answers goes on by the number
    of elements that it has told: when their order changes in between, some are told twice and as many not at all,
    without a sign of interruption. A repeated element gives it away, and all are read again.
    """
    what = f"reading nf_tables set {name}"
    body = _general(family) + text(1, table) + text(2, name)
    for _ in range(_DUMP_ATTEMPTS):
        found = list(_elements_of(socket.dump(_SUBSYSTEM | _GET_ELEMENT, body, what)))
        if len({key for key, _ in found}) == len(found):
            return found
    raise NetlinkError(4, what, f"its order changed at every one of {_DUMP_ATTEMPTS} attempts to read it")


def _elements_of(answers: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for answer in answers:
        for _, raw in attribute_list(attributes(answer, 4).get(3, b"")):
            element = attributes(raw)
            key = attributes(element.get(1, b"")).get(1, b"")
            yield key, attributes(element.get(2, b"")).get(1, b"")


def count_rules(socket: Socket, table: str, family: int = INET) -> int:
    """Of all chains of a table; none where there is no such table."""
    body = _general(family) + text(1, table)
    return len(list(socket.dump(_SUBSYSTEM | _GET_RULE, body, f"reading rules of nf_tables table {table}")))


# --- rules ----------------------------------------------------------------------------------------------


def add_rule(table: str, chain: str, *expressions: bytes, family: int = INET) -> Message:
    return _message(
        _NEW_RULE,
        CREATE | _APPEND,
        text(1, table) + text(2, chain) + nested(4, *expressions),
        f"adding a rule to nf_tables chain {chain}",
        family,
    )


def expression(name: str, *attributes_: bytes) -> bytes:
    """One expression of a rule by its name in the kernel."""
    return nested(1, text(1, name), nested(2, *attributes_))


def meta(key: int, register: int = REGISTER) -> bytes:
    return expression("meta", be32(1, register), be32(2, key))


def compare(value: bytes, register: int = REGISTER, equal: bool = True) -> bytes:
    return expression("cmp", be32(1, register), be32(2, 0 if equal else 1), nested(3, attribute(1, value)))


def below(value: bytes, register: int = REGISTER) -> bytes:
    return expression("cmp", be32(1, register), be32(2, 2), nested(3, attribute(1, value)))


def ip_version(protocol: int) -> bytes:
    """Only packets of IPv4 or IPv6."""
    return meta(15) + compare(bytes([protocol]))


def bitwise(mask: bytes, xor: bytes, register: int = REGISTER) -> bytes:
    """Keeps the bits of `mask` and turns those of `xor`."""
    parts = be32(1, register), be32(2, register), be32(3, len(mask))
    return expression("bitwise", *parts, nested(4, attribute(1, mask)), nested(5, attribute(1, xor)))


def transport(protocol: int) -> bytes:
    """Only packets of this transport protocol."""
    return meta(16) + compare(bytes([protocol]))


LINK_HEADER, NETWORK_HEADER, TRANSPORT_HEADER = 0, 1, 2
MPLS_ETHERTYPE = b"\x88\x47"
VLAN_ETHERTYPES = (b"\x81\x00", b"\x88\xa8")
"""802.1Q and 802.1ad."""


def load(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    return expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def hidden_by(vlan: bytes) -> bytes:
    """Only frames with a tag of this ethertype and VLAN 0 behind the tag that the kernel has taken off already.

    They are not what they will be: the kernel takes off any number of tags of VLAN 0, all but the first after chains of
    families NETDEV and BRIDGE have seen the frame. (The tag that is off counts in offsets from the link header.)
    """
    return meta(1) + compare(vlan) + load(LINK_HEADER, 18, 2) + bitwise(b"\x0f\xff", b"\0\0") + compare(b"\0\0")


def store(
    base: int, offset: int, length: int, register: int, checksum_at: int | None = None, pseudo_header: bool = False
) -> bytes:
    """Writes a register into the packet; the Internet checksum at `checksum_at` (of the same header) follows.

    `pseudo_header`: the transport checksum follows too (an address was changed).
    """
    parts = [be32(5, register), be32(2, base), be32(3, offset), be32(4, length)]
    if checksum_at is not None:
        parts += [be32(6, 1), be32(7, checksum_at)]
    else:
        parts += [be32(6, 0)]
    if pseudo_header:
        parts.append(be32(8, 1))
    return expression("payload", *parts)


def lookup(name: str, register: int = REGISTER, data: int | None = None, invert: bool = False) -> bytes:
    """Goes on only when the key in `register` is in the set; `data`: the register that gets a map's value."""
    parts = [text(1, name), be32(2, register)]
    if data is not None:
        parts.append(be32(3, data))
    if invert:
        parts.append(be32(5, 1))
    return expression("lookup", *parts)


_ADD_TO_SET, _UPDATE_SET, _DELETE_FROM_SET = 0, 1, 2


def update_map(name: str, data: int, register: int = REGISTER) -> bytes:
    """Puts key and data of a packet into a map; where the key is there its timeout begins again, with the old data."""
    return expression("dynset", text(1, name), be32(3, 1), be32(4, register), be32(5, data))


def forget(name: str, data: int, register: int = REGISTER) -> bytes:
    """Takes a packet's key out of a map; the kernel wants a register of data even here."""
    return expression("dynset", text(1, name), be32(3, 2), be32(4, register), be32(5, data))


def constant(value: bytes, register: int = REGISTER) -> bytes:
    return expression("immediate", be32(1, register), nested(2, attribute(1, value)))


_BY_SOURCE, _BY_DEVICE, _WHETHER = 1, 8, 32


def not_routed_back() -> bytes:
    """Only packets whose source this host would not reach by the device that they come from, its own included."""
    parts = be32(1, REGISTER), be32(2, 1), be32(3, _BY_SOURCE | _BY_DEVICE | _WHETHER)
    return expression("fib", *parts) + compare(bytes(4))


def drop() -> bytes:
    return expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, nested(2, be32(1, 0))))


def accept() -> bytes:
    return expression("immediate", be32(1, _VERDICT_REGISTER), nested(2, nested(2, be32(1, 1))))


def transparent_proxy(port: int) -> bytes:
    """`tproxy to :port`. Here only for its side effect: fragments are put together before any chain."""
    return constant(port.to_bytes(2, "big")) + expression("tproxy", be32(1, 0), be32(3, REGISTER))
