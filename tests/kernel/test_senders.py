"""The tables that keep pods from sending what only nodes send, frame by frame on a bridge of two ports."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cni_plugin.netlink import nftables
from cni_plugin.netns import entered
from cni_plugin.tunnel import GRE, VXLAN_GPE
from node_helper.kernel import senders
from node_helper.kernel.host import Host
from node_helper.plan.state import HostWanted, Senders
from tests.kernel.private_netns import batch, private_netns, run, wait_until_up
from tests.kernel.test_forged_senders import filter_bridges
from tests.kernel.test_label_filter import OTHER_PRIORITY_TAG, PRIORITY_TAG, frame
from tests.kernel.test_tunnel_filter import encapsulated
from tests.testbed import packets

NODES = {4: "10.1.0.1", 6: "fd01::1"}
PODS = {4: ("10.9.0.2", "10.9.0.3"), 6: ("fd09::2", "fd09::3")}
WANTED = Senders(frozenset(NODES.values()), labels=True)
BRIDGE, POD, OTHER = (bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 3))
"""Link-layer addresses."""
TAGS = (b"", PRIORITY_TAG, PRIORITY_TAG * 2, OTHER_PRIORITY_TAG + PRIORITY_TAG, PRIORITY_TAG * 3)
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
LAST = b"\x88\xb5the last frame"
"""Of an ethertype for experiments, which nothing holds back."""


@pytest.fixture
def bridge() -> Iterator[str]:
    """A namespace with the bridge `cni0` and two pods' ends, `pod` and `other`, of its ports."""
    with private_netns() as path:
        batch(
            path,
            f"link add cni0 address {BRIDGE.hex(':')} type bridge forward_delay 0",
            f"link add pod address {POD.hex(':')} type veth peer name port-pod",
            f"link add other address {OTHER.hex(':')} type veth peer name port-other",
            *(f"link set port-{name} master cni0" for name in ("pod", "other")),
            *(f"link set {name} addrgenmode none up" for name in ("cni0", "pod", "port-pod", "other", "port-other")),
        )
        wait_until_up(path, "pod", "other", "cni0")
        with entered(path):
            filter_bridges(False)  # it would cut off what follows a packet, by which frames are told apart
        yield path


def passed(frames: Sequence[bytes], sender: str = "other") -> set[int]:
    """Which of these frames, by index, come out at `pod` when `sender` sends them; the caller is in the namespace."""
    taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(packets.ETH_P_ALL))
    sending = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with taken, sending:
        taken.bind(("pod", packets.ETH_P_ALL))
        taken.settimeout(5)
        sending.bind((sender, 0))
        for content in (*frames, POD + OTHER + LAST):
            sending.send(content)
        found: list[bytes] = []
        while not found or not found[-1].endswith(LAST):
            found.append(taken.recv(1000))
    # What is received has lost its first tag, and the socket tells of it elsewhere.
    return {i for i, content in enumerate(frames) if any(seen[-40:] == content[-40:] for seen in found)}


def outer(tunnel: str, version: int, source: str, number: int) -> bytes:
    """A frame's content from the ethertype on; `number` makes it unlike others."""
    packet = encapsulated(tunnel, version, source, PODS[version][0], client_port=25000 + number)
    return ETHERTYPES[version] + packet + struct.pack("!I", number).rjust(40, b"\xaa")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tunnel", [VXLAN_GPE, GRE])
def test_no_port_sends_encapsulated_packets_with_a_nodes_address(bridge: str, tunnel: str, version: int) -> None:
    """However the frame is tagged: a receiver takes off all tags of VLAN 0."""
    forged = [POD + OTHER + tag + outer(tunnel, version, NODES[version], i) for i, tag in enumerate(TAGS)]
    honest = POD + OTHER + outer(tunnel, version, PODS[version][1], 100)
    with entered(bridge):
        assert passed([*forged, honest]) == set(range(len(TAGS) + 1))
        assert senders.ensure(WANTED)[1] == []
        assert passed([*forged, honest]) == {len(TAGS)}
        assert passed([POD + BRIDGE + outer(tunnel, version, NODES[version], 101)], sender="cni0") == {0}
        senders.remove()
        assert passed([*forged, honest]) == set(range(len(TAGS) + 1))


def test_no_port_sends_labels_where_pods_take_them(bridge: str) -> None:
    """Not even as if from the gateway, which is the bridge itself; only the host sends them."""
    forged = [
        frame(source, struct.pack("!I", number).rjust(40, b"\xbb"), POD, tag)
        for number, (source, tag) in enumerate((source, tag) for source in (OTHER, BRIDGE) for tag in TAGS)
    ]
    hidden = {i for i in range(len(forged)) if len(TAGS[i % len(TAGS)]) > len(PRIORITY_TAG)}
    with entered(bridge):
        assert senders.ensure(Senders())[1] == []
        assert passed(forged) == set(range(len(forged))) - hidden, (
            "a cluster without mode mpls may use labels for itself"
        )
        assert senders.ensure(WANTED)[1] == []
        assert passed(forged) == set()
        assert passed([frame(BRIDGE, bytes(40), POD)], sender="cni0") == {0}


TAMPERING = (
    "flush chain bridge svctun ports",
    "delete table bridge svctun",
    "flush ruleset",
    "insert rule bridge svctun ports accept",
    "delete element bridge svctun nodes6 { fd01::1 }",
    "add element inet svctun nodes4 { 10.9.0.2 }",
    "delete chain inet svctun routed",
)


def listed(handles: bool = True) -> str:
    return "".join(
        run("/proc/thread-self/ns/net", "nft", *(["-a"] if handles else []), "list", "table", family, "svctun")
        for family in ("bridge", "inet")
    )


def test_what_is_in_place_is_left_alone(bridge: str) -> None:
    with entered(bridge):
        senders.ensure(WANTED)
        before = listed()
        senders.ensure(WANTED)
        assert listed() == before  # with the kernel's numbers, which anything new would have others of


@pytest.mark.parametrize("command", TAMPERING)
def test_what_somebody_changed_is_put_right(bridge: str, command: str) -> None:
    with entered(bridge):
        senders.ensure(WANTED)
        before = listed(handles=False)
        run("/proc/thread-self/ns/net", "nft", command)
        senders.ensure(WANTED)
        assert listed(handles=False) == before


def test_tables_of_others_stay(bridge: str) -> None:
    with entered(bridge):
        for family in ("bridge", "inet"):
            run("/proc/thread-self/ns/net", "nft", f"add table {family} theirs")
        before = run("/proc/thread-self/ns/net", "nft", "list", "ruleset")
        senders.ensure(WANTED)
        senders.remove()
        senders.remove()
        assert run("/proc/thread-self/ns/net", "nft", "list", "ruleset") == before


def test_what_the_kernel_lacks_is_told_and_the_rest_is_done(
    bridge: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(senders, "_CHAIN", {99: "ports", nftables.INET: "routed"})  # no kernel has such a family
    with entered(bridge):
        host = Host(tmp_path)
        try:
            for full in (True, False, True):
                (refused,) = host.refuse_forgeries(HostWanted(senders=WANTED), full)
                assert "nf_tables table svctun" in str(refused)
            assert "nodes4" in run("/proc/thread-self/ns/net", "nft", "list", "table", "inet", "svctun")
        finally:
            host.close()
