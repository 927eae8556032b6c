"""What preflight says of a node's surroundings, for facts that no machine at hand has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_plugin.tunnel import GRE, MODES, MPLS, VXLAN_GPE
from node_helper.kernel.survey import cni_types, forward_chains, networkd_settings
from node_helper.node_survey import CHECKS, Device, ForwardChain, Survey, Verdict
from node_helper.preflight import Finding, as_plain, as_text

UPLINK = Device("eth0", 1500)


def judged(name: str, survey: Survey, modes: tuple[str, ...] = (VXLAN_GPE,)) -> list[Verdict]:
    (check,) = [check for check in CHECKS if check.name == name]
    return list(check.judge(survey, modes))


def test_of_a_plain_node_there_is_nothing_to_say() -> None:
    plain = Survey(
        kernel="6.12.48+deb13-cloud-amd64",
        rp_filter={"all": 0, "default": 0, "eth0": 0},
        devices=(Device("lo", 65536), UPLINK),
        uplink="eth0",
    )
    for check in CHECKS:
        assert list(check.judge(plain, MODES)) == [], check.name


@pytest.mark.parametrize(
    ("kernel", "lacking"),
    [
        ("4.19.0-26-amd64", True),
        ("5.2.21", True),
        ("5.3.0", False),
        ("5.10.0", False),
        ("6.1+x", False),
        ("what", False),
    ],
)
def test_a_kernel_without_nexthop_objects_is_too_old(kernel: str, lacking: bool) -> None:
    assert [verdict.lacking for verdict in judged("kernel", Survey(kernel=kernel))] == ([True] if lacking else [])


@pytest.mark.parametrize(
    ("rp_filter", "noted"),
    [
        ({"all": 1, "eth0": 0}, True),
        ({"all": 0, "eth0": 1}, True),
        ({"all": 1, "eth0": 2}, False),
        ({"all": 2, "eth0": 1}, False),
        ({"all": 0, "eth0": 0, "cni0": 1}, False),
        ({}, False),
    ],
)
def test_a_strict_uplink_is_noted_by_what_the_kernel_makes_of_both_values(
    rp_filter: dict[str, int], noted: bool
) -> None:
    verdicts = judged("reverse-path", Survey(rp_filter=rp_filter, uplink="eth0", devices=(UPLINK,)))
    assert [verdict.lacking for verdict in verdicts] == ([False] if noted else [])
    assert not noted or "sysctl -w net.ipv4.conf.eth0.rp_filter=2" in verdicts[0].says


@pytest.mark.parametrize(
    ("device", "lacking", "says"),
    [
        (Device("vethabc", 1500), [False], "to 1536"),
        (Device("vethabc", 1536), [], ""),
        (Device("cali12", 1300), [True], "IPv6 needs 1280"),
        (Device("flannel.1", 1450), [False], "leaves 1414 bytes of the 1450 of flannel.1"),
        (Device("vethabc", 1300, up=False), [], ""),
        (Device("wlan0", 1300), [], ""),
    ],
)
def test_the_way_to_pods_needs_room_for_the_encapsulation(device: Device, lacking: list[bool], says: str) -> None:
    verdicts = judged("mtu", Survey(devices=(UPLINK, device), uplink="eth0"))
    assert [verdict.lacking for verdict in verdicts] == lacking
    assert says in "".join(verdict.says for verdict in verdicts)


def test_each_mode_is_judged_by_what_it_takes() -> None:
    survey = Survey(devices=(Device("eth0", 1480), Device("veth1", 1504)), uplink="eth0")
    assert [verdict.says.split()[1] for verdict in judged("mtu", survey, MODES)] == ["vxlan-gpe"]


@pytest.mark.parametrize(
    ("chain", "noted"),
    [
        (ForwardChain("ip", "filter", "FORWARD", "drop"), False),  # Docker's, and iptables': our ACCEPT is in it
        (ForwardChain("inet", "filter", "forward", "drop"), True),
        (ForwardChain("inet", "firewalld", "filter_FORWARD", "accept", refuses=True), True),
        (ForwardChain("inet", "flowtable", "f", "accept"), False),
        (ForwardChain("ip", "mine", "FORWARD", "drop"), True),
    ],
)
def test_chains_that_an_accept_of_iptables_does_not_overrule_are_named(chain: ForwardChain, noted: bool) -> None:
    verdicts = judged("firewalls", Survey(chains=(chain,)))
    assert bool(verdicts) == noted
    assert not noted or f"{chain.family} {chain.table} {chain.name}" in verdicts[0].says
    assert not noted or ("firewall-cmd" in verdicts[0].says) == (chain.table == "firewalld")


def test_that_firewalls_could_not_be_looked_at_is_noted() -> None:
    assert "install nft" in judged("firewalls", Survey(chains=None))[0].says


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (None, []),
        ({}, ["ManageForeignRoutes=no", "ManageForeignRoutingPolicyRules=no"]),
        ({"ManageForeignRoutes": "no"}, ["ManageForeignRoutingPolicyRules=no"]),
        ({"ManageForeignRoutes": "No", "ManageForeignRoutingPolicyRules": "0"}, []),
    ],
)
def test_a_networkd_that_deletes_what_is_not_its_own_is_noted(
    settings: dict[str, str] | None, named: list[str]
) -> None:
    verdicts = judged("networkd", Survey(networkd=settings))
    assert [line for line in named if line not in "".join(v.says for v in verdicts)] == []
    assert bool(verdicts) == bool(named)


@pytest.mark.parametrize(
    ("survey", "name"),
    [
        (Survey(cni=frozenset({"cilium-cni"})), "Cilium"),
        (Survey(devices=(Device("lxc1234", 1500),)), "Cilium"),
        (Survey(devices=(Device("cilium_host", 1500),)), "Cilium"),
        (Survey(devices=(Device("cali0a1b", 1500),)), "Calico"),
        (Survey(cni=frozenset({"calico", "portmap"})), "Calico"),
        (Survey(devices=(Device("flannel.1", 1450),)), "flannel"),
        (Survey(devices=(Device("kube-bridge", 1500),)), "kube-router"),
        (Survey(devices=(Device("weave", 1376),)), "Weave"),
    ],
)
def test_a_pod_network_is_known_by_its_configuration_or_its_devices(survey: Survey, name: str) -> None:
    verdicts = judged("pod-network", survey)
    assert verdicts and {verdict.says.split()[0] for verdict in verdicts} == {name}
    assert not any(verdict.lacking for verdict in verdicts)


def test_that_cilium_drops_gre_is_said_to_those_who_use_it() -> None:
    cilium = Survey(cni=frozenset({"cilium-cni"}))
    for modes, said in (((VXLAN_GPE,), False), ((GRE,), True), ((MPLS, VXLAN_GPE), True)):
        assert any("drops GRE" in verdict.says for verdict in judged("pod-network", cilium, modes)) == said


# --- reading ---------------------------------------------------------------------------------------------


def chain(table: str, name: str, **more: object) -> dict[str, object]:
    return {"chain": {"family": "inet", "table": table, "name": name, **more}}


def rule(table: str, name: str, *expressions: object) -> dict[str, object]:
    return {"rule": {"family": "inet", "table": table, "chain": name, "expr": list(expressions)}}


def test_forward_chains_are_read_from_what_nft_prints() -> None:
    ruleset = {
        "nftables": [
            {"metainfo": {}},
            chain("a", "input", type="filter", hook="input", prio=0, policy="drop"),
            chain("a", "drops", type="filter", hook="forward", prio=0, policy="drop"),
            chain("a", "not-a-hook"),
            chain("b", "ends", type="filter", hook="forward", prio=0, policy="accept"),
            rule("b", "ends", {"accept": None}),
            rule("b", "ends", {"counter": {}}, {"reject": {"type": "icmpx"}}),
            chain("b", "asks", type="filter", hook="forward", prio=0, policy="accept"),
            rule("b", "asks", {"match": {}}, {"drop": None}),
        ]
    }
    assert forward_chains(ruleset) == (
        ForwardChain("inet", "a", "drops", "drop", False),
        ForwardChain("inet", "b", "ends", "accept", True),
        ForwardChain("inet", "b", "asks", "accept", False),
    )


def test_networkds_settings_come_from_the_files_that_count(tmp_path: Path) -> None:
    assert networkd_settings(tmp_path) is None
    (tmp_path / "run/systemd/netif").mkdir(parents=True)
    assert networkd_settings(tmp_path) == {}
    for folder, name, text in (
        ("usr/lib/systemd/networkd.conf.d", "10-a.conf", "[Network]\nManageForeignRoutes=no\n"),
        ("etc/systemd/networkd.conf.d", "10-a.conf", "[Network]\nManageForeignRoutes=yes\n[DHCPv4]\nA=b\n"),
        ("run/systemd/networkd.conf.d", "20-b.conf", "[Network]\n#X=1\nManageForeignRoutingPolicyRules = no\n"),
        ("usr/lib/systemd", "networkd.conf", "[Network]\nManageForeignRoutes=no\nKeep=lib\n"),
        ("etc/systemd", "networkd.conf", "[Network]\nSpeedMeter=no\n"),
    ):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    assert networkd_settings(tmp_path) == {
        "SpeedMeter": "no",
        "ManageForeignRoutes": "yes",
        "ManageForeignRoutingPolicyRules": "no",
    }


def test_plugins_are_read_from_lists_and_from_single_files(tmp_path: Path) -> None:
    folder = tmp_path / "etc/cni/net.d"
    assert cni_types(tmp_path) == frozenset()
    folder.mkdir(parents=True)
    (folder / "10.conflist").write_text(json.dumps({"plugins": [{"type": "calico"}, {"type": "portmap"}, 7]}))
    (folder / "20.conf").write_text(json.dumps({"type": "bridge"}))
    (folder / "30.conf").write_text("no JSON")
    (folder / "40.conf").write_text("[1]")
    assert cni_types(tmp_path) == {"calico", "portmap", "bridge"}


# --- showing ---------------------------------------------------------------------------------------------

FINDINGS = (
    Finding("the program ip", True),
    Finding("mode gre: device", False, "modprobe ip_gre", optional=True),
    Finding("the pod network's own habits", False, "Cilium does\nCilium drops", note=True, name="pod-network"),
)


def test_what_should_be_known_is_neither_good_nor_lacking() -> None:
    assert as_text(FINDINGS).splitlines() == [
        "ok    the program ip",
        "LACK  mode gre: device",
        "      modprobe ip_gre",
        "NOTE  the pod network's own habits",
        "      Cilium does",
        "      Cilium drops",
    ]


def test_for_programs_each_has_a_state_and_all_of_it_a_verdict() -> None:
    plain = as_plain(FINDINGS)
    assert plain["ok"] is True
    assert [finding["state"] for finding in plain["findings"]] == ["ok", "lacking", "note"]
    assert plain["findings"][2]["name"] == "pod-network"
    assert as_plain([*FINDINGS, Finding("the program ip", False, "install it")])["ok"] is False
