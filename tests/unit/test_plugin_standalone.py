"""Tunnels by chain entry and by the pod's own annotations."""

from __future__ import annotations

from typing import Any

import pytest

from cni_plugin.config import NetConf
from cni_plugin.errors import ConfigInvalid
from cni_plugin.standalone import tunnels_of
from cni_plugin.tunnel import PodTunnels, Tunnel


def conf(*tunnels: dict[str, Any], **annotations: str) -> NetConf:
    keys = {"tunnel": "cmd.nu/tunnel", "mode": "cmd.nu/tunnel-mode", "other": "example.com/other"}
    return NetConf("1.0.0", tunnels=tunnels, pod_annotations={keys[key]: text for key, text in annotations.items()})


def test_without_entry_and_annotation_there_are_none() -> None:
    assert tunnels_of(conf(other="198.51.100.7")) is None


def test_the_chain_entrys_tunnels_are_taken_in_canonical_form() -> None:
    found = tunnels_of(conf({"vips": ["198.51.100.7", "2001:DB8:0:0::0007"], "mode": "gre"}, {"vips": ["203.0.113.1"]}))
    assert found == PodTunnels((Tunnel(("198.51.100.7", "2001:db8::7"), "gre"), Tunnel(("203.0.113.1",), "vxlan-gpe")))


def test_the_annotations_list_and_mode_are_taken() -> None:
    found = tunnels_of(conf(tunnel=" 198.51.100.7, 2001:db8::7 ", mode="mpls"))
    assert found == PodTunnels((Tunnel(("198.51.100.7", "2001:db8::7"), "mpls"),))


def test_chain_entry_and_annotation_both_count() -> None:
    found = tunnels_of(conf({"vips": ["198.51.100.7"]}, tunnel="198.51.100.8"))
    assert found is not None
    assert [tunnel.vips for tunnel in found.tunnels] == [("198.51.100.7",), ("198.51.100.8",)]


def test_an_address_repeated_in_one_list_counts_once() -> None:
    assert tunnels_of(conf(tunnel="2001:db8::7,2001:db8:0::7")) == PodTunnels((Tunnel(("2001:db8::7",)),))


def test_an_address_in_two_tunnels_is_refused_by_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"198\.51\.100\.7"):
        tunnels_of(conf({"vips": ["198.51.100.7"], "mode": "gre"}, tunnel="198.51.100.7"))


@pytest.mark.parametrize(
    ("vip", "why"),
    [
        ("", "no IP address"),
        ("web.example", "no IP address"),
        ("198.51.100", "no IP address"),
        ("198.51.100.7/32", "no IP address"),
        ("198.51.100.7\0", "no IP address"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("febf::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("239.1.1.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "reserved"),
        ("::ffff:198.51.100.7", "IPv4 address in IPv6 form"),
    ],
)
def test_what_cannot_be_a_vip_is_refused_by_name(vip: str, why: str) -> None:
    with pytest.raises(ConfigInvalid, match=why) as from_annotation:
        tunnels_of(conf(tunnel=f"198.51.100.9,{vip}"))
    assert "cmd.nu/tunnel" in from_annotation.value.msg
    with pytest.raises(ConfigInvalid, match=why) as from_entry:
        tunnels_of(conf({"vips": ["198.51.100.9"]}, {"vips": [vip]}))
    assert "tunnels[1]" in from_entry.value.msg


@pytest.mark.parametrize("entry", [{}, {"vips": []}, {"vips": "198.51.100.7"}, {"vips": [5]}, {"vips": None}])
def test_an_entry_without_a_list_of_addresses_is_refused_by_its_place(entry: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=r"tunnels\[0\]"):
        tunnels_of(conf(entry))


@pytest.mark.parametrize("mode", ["ipip", "GRE", 5, None, ["gre"]])
def test_an_unknown_mode_names_the_known_ones(mode: object) -> None:
    with pytest.raises(ConfigInvalid, match="vxlan-gpe, gre, mpls"):
        tunnels_of(conf({"vips": ["198.51.100.7"], "mode": mode}))
