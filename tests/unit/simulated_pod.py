"""A pod's netns in memory: holds links, addresses, routes, rules, labels, sysctls and one nf_tables table.

It stands in for the two netlink sockets and for /proc/sys/net, so that the project's own reading, planning and
applying run unchanged. It is as strict as the kernel where that matters: what is not there cannot be deleted, what is
there cannot be added, a transaction is done whole or not at all.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from struct import pack, pack_into, unpack_from
from typing import Any
from unittest import mock

from cni_plugin import pod
from cni_plugin.netlink import EXCL, Message, NetlinkError, attribute, nested, nftables, rtnl, text, u32
from cni_plugin.netlink.address import unpack, version
from cni_plugin.netlink.rtnl import neighbours
from cni_plugin.netlink.tcp_sockets import Connection
from cni_plugin.pod.apply import OperationFailed, apply
from cni_plugin.pod.plan import Operation
from cni_plugin.pod.state import read
from cni_plugin.pod.target import PodState
from cni_plugin.tunnel import MPLS, NOTHING, PodTunnels
from tests.unit.netlink_bytes import items

NEW_TABLE, GET_TABLE, DEL_TABLE, NEW_CHAIN, NEW_RULE, NEW_SET, NEW_ELEMENT, GET_ELEMENT, DEL_ELEMENT = (
    0x0A00 | number for number in (0, 1, 2, 3, 6, 9, 12, 13, 14)
)
AF_MPLS = 28
LO, ETH0 = 1, 2
NETDEV = "netdev "
FAMILIES = {nftables.INET: "", nftables.NETDEV: NETDEV, nftables.IPV4: "ip ", nftables.IPV6: "ip6 "}
"""What the names of tables of a family begin with here, and of sets those of the families that only hand on."""
GATEWAY = bytes.fromhex("020000000001")
FOREIGN = "203.0.113.200"


class Failed(OSError):
    """The fault that a test asked for."""


def link_body(index: int, name: str, kind: str = "", mtu: int = 1500) -> bytes:
    info = nested(18, text(1, kind)) if kind else b""
    return pack("=BxHiII", 0, 0, index, 1, 0) + text(3, name) + u32(4, mtu) + info


def _label(route: bytes) -> int:
    return int.from_bytes(dict(items(route[12:]))[1], "big") >> 12


class SimulatedPod:
    """`route` and `netfilter` of the project's functions are both this object."""

    def __init__(
        self,
        addresses: Sequence[str] = ("10.0.0.2", "fd00::2"),
        gateways: Sequence[str] = ("10.0.0.1", "fd00::1"),
        mtu: int = 1500,
        rp_filter: str = "1",
        mpls: bool = True,
    ) -> None:
        self.links = {LO: link_body(LO, "lo", mtu=65536), ETH0: link_body(ETH0, "eth0", "veth", mtu)}
        self.addresses: dict[tuple[int, str], bytes] = {}
        self.routes: dict[tuple[Any, ...], bytes] = {}
        self.rules: set[bytes] = set()
        self.neighbour = GATEWAY
        """The link-layer address that every gateway has; empty when none answers."""
        self.connections: list[Connection] = []
        self.tables: dict[str, bytes] = {}
        self.elements: dict[str, dict[bytes, bytes]] = {}
        self._owner: dict[str, str] = {}
        """The table of each set that there ever was."""
        self.sysctls = {f"ipv4/conf/{name}/rp_filter": rp_filter for name in ("default", "lo", "eth0")}
        self.sysctls["ipv6/conf/lo/disable_ipv6"] = "0"
        if mpls:
            self.sysctls |= {"mpls/platform_labels": "0", "mpls/conf/eth0/input": "0"}
        for address in addresses:
            self.run(rtnl.add_address(address, ETH0, "eth0", prefix=24 if version(address) == 4 else 64))
        for gateway in gateways:
            self.run(rtnl.put_route(rtnl.route(version(gateway), "default", link=ETH0, gateway=gateway)))

    def contents(self) -> dict[str, Any]:
        """All of it, comparable; devices by name, since a device that comes again has another number."""
        names = {index: self.name(index) for index in self.links}
        return {
            "links": sorted(names.values()),
            "addresses": sorted((names[index], address, raw[:4]) for (index, address), raw in self.addresses.items()),
            "routes": sorted(map(self._with_names, self.routes.values())),
            "rules": sorted(self.rules),
            "tables": self.tables,
            "elements": {
                name: {key: self._device(data) if name.endswith(" devices") else data for key, data in found.items()}
                for name, found in self.elements.items()
            },
            "sysctls": dict(self.sysctls),
        }

    def _with_names(self, route: bytes) -> bytes:
        """A route that encapsulates with its device's name in the place of the index."""
        found = dict(items(route[12:])) if route[0] != AF_MPLS else {}
        return route.replace(u32(4, unpack_from("=I", found[4])[0]), self._device(found[4])) if 21 in found else route

    def _device(self, index: bytes) -> bytes:
        return self.name(*unpack_from("=i", index)).encode()

    def name(self, index: int) -> str:
        return dict(items(self.links[index][16:]))[3].rstrip(b"\0").decode()

    def vips_on(self, device: str) -> set[str]:
        return {address for index, address in self.addresses if self.name(index) == device}

    # --- what the project does with it --------------------------------------------------------------------

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The project's functions find this pod instead of a kernel."""
        with ExitStack() as stack:
            for target, substitute in {
                "cni_plugin.pod.entered": lambda *_: nullcontext(),
                "cni_plugin.pod.Socket": lambda: nullcontext(self),
                "cni_plugin.netlink.nftables.open_socket": lambda: nullcontext(self),
                "cni_plugin.pod.state.read_sysctl": self.sysctls.get,
                "cni_plugin.pod.apply.write_sysctl": self.write_sysctl,
                "cni_plugin.netlink.tcp_sockets.open_socket": lambda: nullcontext(None),
                "cni_plugin.netlink.tcp_sockets.connections": lambda _: self.connections,
            }.items():
                stack.enter_context(mock.patch(target, substitute))
            yield

    def state(self, labels: bool = False, hands_on: bool = False) -> PodState:
        with self.entered():
            return read(self, self, "eth0", labels, hands_on)  # type: ignore[arg-type]

    def plan(self, wanted: PodTunnels) -> list[Operation]:
        labels = any(tunnel.mode == MPLS for tunnel in wanted.tunnels)
        hands_on = any(tunnel.hand_ons or tunnel.peers for tunnel in wanted.tunnels)
        return pod.plan(wanted, self.state(labels, hands_on))

    def configure(
        self, wanted: PodTunnels, watch: Callable[[int], None] = lambda _: None, had: PodTunnels = NOTHING
    ) -> list[str]:
        """`pod.configure`; `watch` is called with a number before each operation and may raise Failed."""
        counter = iter(range(1_000_000))

        def watched(operations: list[Operation], route: Any, netfilter: Any) -> None:
            for operation in operations:
                number = next(counter)
                try:
                    watch(number)
                except Failed as error:
                    raise OperationFailed(error.errno, f"cannot {operation.what}: {error.strerror}") from error
                apply([operation], route, netfilter)

        with self.entered(), mock.patch("cni_plugin.pod.apply", watched):
            return pod.configure("/run/netns/simulated", "eth0", wanted, had)

    def write_sysctl(self, name: str, value: str) -> None:
        if name not in self.sysctls:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self.sysctls[name] = value
        if name == "mpls/platform_labels":
            self.routes = {k: raw for k, raw in self.routes.items() if raw[0] != AF_MPLS or _label(raw) < int(value)}

    # --- rtnetlink ----------------------------------------------------------------------------------------

    def run(self, *messages: Message) -> None:
        for message in messages:
            _ROUTE[message.type](self, message)

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        if kind == GET_ELEMENT:
            return self._dump_elements(body, what)
        found: dict[int, Callable[[], list[bytes]]] = {
            rtnl.GET_LINK: lambda: list(self.links.values()),
            rtnl.GET_ADDRESS: lambda: list(self.addresses.values()),
            rtnl.GET_ROUTE: lambda: [raw for raw in self.routes.values() if body[0] in (0, raw[0])],
            rtnl.GET_RULE: lambda: [raw for raw in self.rules if body[0] in (0, raw[0])],
        }
        return found[kind]()

    def _new_link(self, message: Message) -> None:
        index, flags = unpack_from("=iI", message.body, 4)
        if index:
            self._have(index in self.links, errno.ENODEV, message)
            body = bytearray(self.links[index])
            pack_into("=I", body, 8, flags)
            self.links[index] = bytes(body)
            return
        name = dict(items(message.body[16:]))[3].rstrip(b"\0").decode()
        self._have(name not in map(self.name, self.links), errno.EEXIST, message)
        index = max(self.links) + 1
        self.links[index] = message.body[:4] + pack("=i", index) + message.body[8:]
        self.sysctls[f"ipv4/conf/{name}/rp_filter"] = self.sysctls["ipv4/conf/default/rp_filter"]

    def _del_link(self, message: Message) -> None:
        (index,) = unpack_from("=i", message.body, 4)
        self._have(index in self.links, errno.ENODEV, message)
        del self.sysctls[f"ipv4/conf/{self.name(index)}/rp_filter"]
        del self.links[index]
        self.addresses = {key: raw for key, raw in self.addresses.items() if key[0] != index}

    def _new_address(self, message: Message) -> None:
        key = self._address_key(message)
        self._have(key[0] in self.links, errno.ENODEV, message)
        self.addresses[key] = message.body

    def _del_address(self, message: Message) -> None:
        key = self._address_key(message)
        self._have(key in self.addresses, errno.EADDRNOTAVAIL, message)
        del self.addresses[key]

    @staticmethod
    def _address_key(message: Message) -> tuple[int, str]:
        (index,) = unpack_from("=i", message.body, 4)
        return index, unpack(dict(items(message.body[8:]))[2])

    @staticmethod
    def _route_key(message: Message) -> tuple[Any, ...]:
        found = dict(items(message.body[12:]))
        return message.body[0], message.body[1], found.get(1), found.get(15, message.body[4:5])

    def _new_route(self, message: Message) -> None:
        if message.body[0] == AF_MPLS:
            self._have(_label(message.body) < int(self.sysctls["mpls/platform_labels"]), errno.EINVAL, message)
        key = self._route_key(message)
        self._have(not (message.flags & EXCL and key in self.routes), errno.EEXIST, message)
        self.routes[key] = message.body

    def _del_route(self, message: Message) -> None:
        key = self._route_key(message)
        self._have(key in self.routes and self.routes[key][5] == message.body[5], errno.ESRCH, message)
        del self.routes[key]

    def _new_rule(self, message: Message) -> None:
        self._have(message.body not in self.rules, errno.EEXIST, message)
        self.rules.add(message.body)

    def _del_rule(self, message: Message) -> None:
        self._have(message.body in self.rules, errno.ENOENT, message)
        self.rules.remove(message.body)

    @staticmethod
    def _have(good: bool, code: int, message: Message) -> None:
        if not good:
            raise NetlinkError(code, message.what, "says the simulated kernel")

    # --- nf_tables ----------------------------------------------------------------------------------------

    def get(self, kind: int, body: bytes, what: str) -> bytes:
        return {
            rtnl.GET_LINK: self._get_link,
            rtnl.GET_ROUTE: self._get_route,
            neighbours.GET_NEIGHBOUR: self._get_neighbour,
            GET_TABLE: self._get_table,
        }[kind](body, what)

    def _get_neighbour(self, body: bytes, what: str) -> bytes:
        return body[:12] + (attribute(2, self.neighbour) if self.neighbour else b"")

    def _get_link(self, body: bytes, what: str) -> bytes:
        name = dict(items(body[16:]))[3].rstrip(b"\0").decode()
        found = [link for index, link in self.links.items() if self.name(index) == name]
        if not found:
            raise NetlinkError(errno.ENODEV, what)
        return found[0]

    def _get_route(self, body: bytes, what: str) -> bytes:
        """Only as much as tells whether an address is the pod's own."""
        address = unpack(dict(items(body[12:]))[1])
        if not any(own == address for _, own in self.addresses):
            raise NetlinkError(errno.ENETUNREACH, what)
        return body[:7] + bytes([rtnl.LOCAL]) + body[8:]

    def _get_table(self, body: bytes, what: str) -> bytes:
        name = self._table(body)
        if name not in self.tables:
            raise NetlinkError(errno.ENOENT, what)
        return bytes(4) + attribute(6, self.tables[name])

    @staticmethod
    def _table(body: bytes) -> str:
        """A table's name, which may be used in each family."""
        return FAMILIES[body[0]] + dict(items(body[4:]))[1].rstrip(b"\0").decode()

    @staticmethod
    def _set(body: bytes) -> str:
        prefix = FAMILIES[body[0]].removesuffix(NETDEV).strip()
        return (prefix and f"{prefix} ") + dict(items(body[4:]))[2].rstrip(b"\0").decode()

    def transaction(self, messages: Sequence[Message], _: bytes, __: bytes) -> None:
        assert messages, "the kernel would not answer"
        before = dict(self.tables), {name: dict(found) for name, found in self.elements.items()}
        try:
            for message in messages:
                self._nf(message)
        except NetlinkError:
            self.tables, self.elements = before
            raise

    def _nf(self, message: Message) -> None:
        found = dict(items(message.body[4:]))
        table = self._table(message.body)
        if message.type == NEW_TABLE:
            self.tables.setdefault(table, found[6])
            return
        self._have(table in self.tables, errno.ENOENT, message)
        if message.type == DEL_TABLE:
            del self.tables[table]
            self.elements = {name: members for name, members in self.elements.items() if self._owner[name] != table}
        elif message.type == NEW_SET:
            self.elements.setdefault(self._set(message.body), {})
            self._owner[self._set(message.body)] = table
        elif message.type in (NEW_ELEMENT, DEL_ELEMENT):
            self._change_elements(message, found)
        else:
            assert message.type in (NEW_CHAIN, NEW_RULE)

    def _change_elements(self, message: Message, found: dict[int, bytes]) -> None:
        name = self._set(message.body)
        self._have(name in self.elements, errno.ENOENT, message)
        present = self.elements[name]
        if message.type == DEL_ELEMENT and 3 not in found:
            present.clear()
        for _, item in items(found.get(3, b"")):
            element = dict(items(item))
            key = dict(items(element[1]))[1]
            data = dict(items(element[2]))[1] if 2 in element else b""
            if message.type == NEW_ELEMENT:
                self._have(present.get(key, data) == data, errno.EEXIST, message)
                present[key] = data
            else:
                self._have(present.pop(key, None) == data, errno.ENOENT, message)

    def _dump_elements(self, body: bytes, what: str) -> list[bytes]:
        name = self._set(body)
        if name not in self.elements:
            raise NetlinkError(errno.ENOENT, what)
        members = [
            nested(1, nested(1, attribute(1, key)), *([nested(2, attribute(1, data))] if data else []))
            for key, data in self.elements[name].items()
        ]
        return [bytes(4) + nested(3, *members)]


_ROUTE: dict[int, Callable[[SimulatedPod, Message], None]] = {
    rtnl.NEW_LINK: SimulatedPod._new_link,
    rtnl.DEL_LINK: SimulatedPod._del_link,
    rtnl.NEW_ADDRESS: SimulatedPod._new_address,
    rtnl.DEL_ADDRESS: SimulatedPod._del_address,
    rtnl.NEW_ROUTE: SimulatedPod._new_route,
    rtnl.DEL_ROUTE: SimulatedPod._del_route,
    rtnl.NEW_RULE: SimulatedPod._new_rule,
    rtnl.DEL_RULE: SimulatedPod._del_rule,
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of pod."""

    addresses: tuple[str, ...] = ("10.0.0.2", "fd00::2")
    gateways: tuple[str, ...] = ("10.0.0.1", "fd00::1")
    mtu: int = 1500
    rp_filter: str = "1"

    def build(self) -> SimulatedPod:
        pod = SimulatedPod(self.addresses, self.gateways, self.mtu, self.rp_filter)
        put_foreign(pod)
        return pod


def put_foreign(pod: SimulatedPod) -> None:
    """What is not ours, as near to ours as can be."""
    pod.run(rtnl.add_address(FOREIGN, LO, "lo"))
    pod.run(rtnl.put_route(rtnl.route(4, "192.168.0.0/16", 116, rtnl.PROTO_STATIC, link=ETH0)))
    pod.run(rtnl.add_rule(rtnl.rule(4, 1160, 116, source=f"{FOREIGN}/32", protocol=rtnl.PROTO_STATIC)))
    pod.tables["filter"] = b"another's"
