"""A bucket moves from pod to pod: connections go on where they began, whatever the pods' programs listen on."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from cni_plugin import pod as pods
from cni_plugin.tunnel import GRE, TUNNEL_ID, VXLAN_GPE, HandOn, PodTunnels, Remap, Tunnel
from tests.kernel.test_tunnel_filter import encapsulated
from tests.testbed import packets, traffic
from tests.testbed.cluster import CLIENT, Cluster, NodeSpec
from tests.testbed.cni import Pod

VIPS = {4: "198.51.100.1", 6: "2001:db8::1"}
REMAPS = (Remap("tcp", 80, 8080),)
ACK = 0x10
PORTS = (80, 9090)
"""One that is remapped and one that is not."""
both_versions = pytest.mark.parametrize("version", [4, 6])
pytestmark = pytest.mark.parametrize("mode", [VXLAN_GPE, GRE], scope="module")


def number(chain: Sequence[Pod]) -> int:
    """A tunnel id for earlier owners."""
    return sum(ord(pod.name) << 8 * place for place, pod in enumerate(chain)) if chain else TUNNEL_ID


class Moves:
    """An ingress node without helper, whose one bucket a test gives to one pod after the other."""

    def __init__(self, cluster: Cluster, mode: str) -> None:
        self.cluster = cluster
        self.mode = mode
        self.client = cluster.client
        self.node = cluster.nodes["ingress1"]
        self.pods = {pod.name: pod for pod in cluster.pods}
        kind = "vxlan external gpe dstport 4790" if mode == VXLAN_GPE else "gre external"
        self.node.host.batch([f"link add tunnel type {kind}", "link set tunnel up mtu 1464"])
        for version, vip in VIPS.items():
            cluster.announce(vip)
            self.node.host.run("ip", f"-{version}", "route", "add", "unreachable", vip)
        for pod in cluster.pods:
            self.configure(pod)

    def configure(self, pod: Pod, chains: Sequence[Sequence[Pod]] = (), peers: Sequence[Pod] = ()) -> list[str]:
        """`chains`: whom packets for this pod may name as earlier owners."""
        steps = tuple(HandOn(number(chain), chain[0].ipv4, number(chain[1:])) for chain in chains)
        tunnel = Tunnel(tuple(VIPS.values()), self.mode, REMAPS, steps, tuple(peer.ipv4 for peer in peers))
        return pods.configure(pod.place.netns(), "eth0", PodTunnels((tunnel,), (self.node.addresses[4],)))

    def give(self, *owners: Pod) -> None:
        """The bucket to the first of these, who learn of it at once; the others had it before."""
        for place, pod in enumerate(owners):
            rest = owners[place + 1 :]
            self.configure(pod, [rest] if rest else [], owners[:place][-1:])
        self.send(*owners)

    def send(self, *owners: Pod) -> None:
        """Only the ingress node knows."""
        rest = owners[1:]
        key = "key" if rest and self.mode == GRE else ""
        source = self.node.addresses[4]
        encap = f"encap ip id {number(rest)} src {source} dst {owners[0].ipv4} {key} dev tunnel"
        for version, vip in VIPS.items():
            self.node.host.run(*f"ip -{version} route replace {vip} {encap}".split())

    @contextmanager
    def connection(self, version: int, port: int, source_port: int = 0) -> Iterator[socket.socket]:
        """Open from the client's namespace, usable from here."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with packets.open_socket(self.client, family, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if source_port:
                stream.bind((CLIENT[version], source_port))
            stream.connect((VIPS[version], port))
            yield stream


@pytest.fixture(scope="module")
def moves(mode: str) -> Iterator[Moves]:
    nodes = [NodeSpec("ingress1", ingress=True), NodeSpec("worker1")]
    with Cluster(nodes, pod_rp_filter=1) as cluster:
        cluster.add_pods([("worker1", "a"), ("worker1", "b"), ("ingress1", "c")])
        for pod in cluster.pods:
            traffic.serve(pod, 8080, 9090)
        yield Moves(cluster, mode)


@pytest.fixture
def three(moves: Moves) -> Iterator[tuple[Moves, Pod, Pod, Pod]]:
    yield moves, moves.pods["a"], moves.pods["b"], moves.pods["c"]
    for pod in moves.pods.values():
        moves.configure(pod)


Three = tuple[Moves, Pod, Pod, Pod]


def who(stream: socket.socket) -> str:
    return traffic.ask_over(stream).name


@both_versions
@pytest.mark.parametrize("port", PORTS)
def test_connections_go_on_where_they_began_when_their_bucket_moves(three: Three, version: int, port: int) -> None:
    moves, a, b, _ = three
    moves.give(a)
    with moves.connection(version, port) as old:
        assert who(old) == "a"
        moves.give(b, a)
        assert who(old) == "a"
        with moves.connection(version, port) as new:
            assert [who(new), who(old), who(new)] == ["b", "a", "b"]


@both_versions
@pytest.mark.parametrize("port", PORTS)
def test_a_chain_of_moves_loses_nothing_nor_does_the_way_back(three: Three, version: int, port: int) -> None:
    moves, a, b, c = three
    moves.give(a)
    with moves.connection(version, port) as first:
        assert who(first) == "a"
        moves.give(b, a)
        with moves.connection(version, port) as second:
            assert who(second) == "b"
            moves.give(c, b, a)
            with moves.connection(version, port) as third:
                assert [who(first), who(second), who(third)] == ["a", "b", "c"]
                moves.give(a, c, b)
                with moves.connection(version, port) as fourth:
                    assert [who(each) for each in (first, second, third, fourth)] == ["a", "b", "c", "a"]


@both_versions
def test_a_bucket_that_comes_back_at_once_finds_its_connections(three: Three, version: int) -> None:
    """They began when nobody had had the bucket before, and the pod knows already to whom it would hand on."""
    moves, a, b, _ = three
    for pod, other in ((a, b), (b, a)):
        moves.configure(pod, [(other,)], [other])
    moves.send(a)
    with moves.connection(version, 80) as first:
        assert who(first) == "a"
        moves.send(b, a)
        assert who(first) == "a"
        moves.send(a, b)
        with moves.connection(version, 80) as second:
            assert [who(first), who(second), who(first)] == ["a", "a", "a"]


@both_versions
@pytest.mark.parametrize("port", PORTS)
def test_who_had_a_connection_from_the_same_port_before_does_not_take_the_new_one_for_it(
    three: Three, version: int, port: int
) -> None:
    """Clients use a port again after a while; what there was meanwhile is another pod's."""
    moves, a, b, _ = three
    for pod, other in ((a, b), (b, a)):
        moves.configure(pod, [(other,)], [other])
    moves.send(a)
    with moves.connection(version, port, 24200) as first:
        assert who(first) == "a"
    moves.send(b, a)
    with moves.connection(version, port, 24200) as second:
        assert who(second) == "b"
        moves.send(a, b)
        assert who(second) == "b"


@both_versions
def test_a_client_is_told_of_a_connection_that_its_pod_has_ended(three: Three, version: int) -> None:
    """Not by the first answer, which is what somebody else's connection would be reset by; it asks again."""
    moves, a, b, _ = three
    moves.give(b, a)
    program = traffic.serve(b, 7171)
    with moves.connection(version, 7171) as ended:
        assert who(ended) == "b"
        program.kill()
        program.wait(10)
        assert ended.recv(100) == b""
        ended.sendall(b"hello\n")
        heard = select.poll()
        heard.register(ended, select.POLLHUP)
        assert heard.poll(10_000)
        assert ended.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) in (errno.ECONNRESET, errno.EPIPE)


@both_versions
def test_nothing_is_reset_before_the_new_owner_knows_of_the_move(three: Three, version: int) -> None:
    """Its helper may learn of it later than the ingress node; what is dropped meanwhile is sent again."""
    moves, a, b, _ = three
    moves.give(a)
    with moves.connection(version, 80) as old:
        assert who(old) == "a"
        moves.send(b, a)
        with moves.connection(version, 80) as new:
            assert who(new) == "b"
            old.sendall(b"hello\n")
            old.settimeout(0.3)
            with pytest.raises(TimeoutError):
                old.recv(100)
            assert who(new) == "b"
            moves.give(b, a)
            old.settimeout(10)
            assert old.recv(100).startswith(b"a ")
            assert who(new) == "b"


@both_versions
@pytest.mark.parametrize("cookies", [0, 2])
def test_new_connections_belong_to_the_new_owner_also_with_syn_cookies(
    three: Three, version: int, cookies: int
) -> None:
    moves, a, b, _ = three
    b.place.set_sysctls({"net.ipv4.tcp_syncookies": cookies})
    try:
        moves.give(a)
        with moves.connection(version, 80) as old:
            assert who(old) == "a"
            moves.give(b, a)
            for _ in range(5):
                with moves.connection(version, 80) as new:
                    assert [who(new), who(old)] == ["b", "a"]
    finally:
        b.place.set_sysctls({"net.ipv4.tcp_syncookies": 1})


@both_versions
def test_a_program_that_listens_on_the_vip_itself_keeps_nobody_from_his_connection(three: Three, version: int) -> None:
    moves, a, b, _ = three
    for pod in (a, b):
        traffic.serve(pod, 7070, bind=[VIPS[version]], name=f"{pod.name}-on-vip")
    moves.give(a)
    with moves.connection(version, 7070) as old:
        assert who(old) == "a-on-vip"
        moves.give(b, a)
        with moves.connection(version, 7070) as new:
            assert [who(old), who(new), who(old)] == ["a-on-vip", "b-on-vip", "a-on-vip"]


@both_versions
def test_large_transfers_of_moved_connections_survive_a_narrow_path(three: Three, version: int) -> None:
    """The message that a packet is too big goes to the bucket's new owner, and has to come to the old one."""
    moves, a, b, _ = three
    moves.give(a)
    with moves.connection(version, 80) as old:
        assert who(old) == "a"
        moves.give(b, a)
        moves.cluster.narrow_client_path(1300)
        try:
            old.sendall(b"big 300000\n")
            got = 0
            while got < 300_000:
                got += len(old.recv(1 << 16))
            assert got == 300_000
            old.sendall(b"sink 300000\n" + bytes(300_000))
            assert old.recv(100).startswith(b"a ")
        finally:
            moves.cluster.narrow_client_path(1500)


@both_versions
def test_a_packet_that_nobody_knows_passes_each_earlier_owner_once(three: Three, version: int) -> None:
    moves, a, b, c = three
    moves.give(a, c, b)
    client, vip = CLIENT[version], VIPS[version]
    segment = packets.tcp_packet(client, 24100, vip, 80, ACK)
    device = "svctun-gpe" if moves.mode == VXLAN_GPE else "svctun-gre"

    def strays(packet: packets.Packet) -> bool:
        return packet.source_port == 24100

    with (
        packets.Capture(a.place, device) as at_a,
        packets.Capture(b.place, device) as at_b,
        packets.Capture(c.place, device) as at_c,
        packets.Capture(moves.client, "eth0") as heard,
    ):
        moves.client.call(packets.send_packet, packets.ip_packet(client, vip, packets.TCP, segment), vip)
        # The last who had the bucket says that there is no such connection.
        heard.wait_for(lambda packet: packet.destination_port == 24100)
        for capture in (at_c, at_b):
            capture.wait_for(strays)
            seen = {name: len([p for p in one.packets(strays) if p.destination_port == 80])
                    for name, one in (("a", at_a), ("b", at_b), ("c", at_c))}  # fmt: skip
    # A pod that hands on sends by the device by which the packet came.
    assert seen == {"a": 2, "c": 2, "b": 1}


@both_versions
def test_peers_hand_on_for_the_vips_that_they_share_only(three: Three, mode: str, version: int) -> None:
    moves, a, b, c = three
    moves.give(b, a)
    device = "svctun-gpe" if mode == VXLAN_GPE else "svctun-gre"
    other = {4: "198.51.100.9", 6: "2001:db8::9"}[version]
    both = (Tunnel(tuple(VIPS.values()), mode, (), (), (b.ipv4,)), Tunnel((other,), mode))
    pods.configure(a.place.netns(), "eth0", PodTunnels(both, (moves.node.addresses[4],)))

    with packets.Capture(a.place, device) as decapsulated:
        for sender, to, port in ((b, other, 24003), (c, VIPS[version], 24004), (b, VIPS[version], 24005)):
            packet = encapsulated(mode, version, sender.ipv4, a.ipv4, to, client_port=port)
            sender.place.call(packets.send_packet, packet, a.ipv4)
        decapsulated.wait_for(lambda packet: packet.source_port == 24005)
        assert {
            packet.source_port for packet in decapsulated.packets(lambda p: p.source_port in range(24003, 24006))
        } == {24005}


def test_all_of_it_goes_when_no_move_is_recent(three: Three, mode: str) -> None:
    moves, a, b, c = three
    before = {pod.name: picture(pod) for pod in (a, b, c)}
    moves.give(c, b, a)
    assert picture(c) != before["c"]
    assert moves.configure(c, [(b, a)]) == []
    for pod in (a, b, c):
        moves.configure(pod)
    assert {pod.name: picture(pod) for pod in (a, b, c)} == before


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table ip svctun-moved",
        "nft flush chain ip6 svctun-moved moved; nft delete table ip6 svctun-moved",
        "ip route flush table 117",
        "ip -6 rule del pref 1161",
        "nft flush map ip svctun-moved gateways",
    ],
)
def test_what_somebody_takes_away_of_it_is_put_back(three: Three, damage: str) -> None:
    moves, a, b, _ = three
    moves.give(b, a)
    whole = picture(b)
    b.place.run("sh", "-c", damage)
    assert moves.configure(b, [(a,)])
    assert picture(b) == whole


def picture(pod: Pod) -> str:
    """Rules, routes and tables, without what packets change."""
    commands = ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all proto 116"]
    tables = pod.place.run("nft", "list", "tables").stdout.splitlines()
    commands += [f"nft -s list {table}" for table in sorted(tables)]
    text = "\n".join(pod.place.run(*command.split()).stdout for command in commands)
    return "\n".join(line for line in text.splitlines() if "expires" not in line and "cache" not in line)
