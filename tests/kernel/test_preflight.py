"""`service-tunnel-helper preflight`: what a node lacks is named with the way out, and trying leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cni_plugin.tunnel import GRE, MODES, MPLS, VXLAN_GPE
from tests.kernel_features import lacking_modes
from tests.testbed.cluster import FORWARDING
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY

PROGRAMS = ("ip", "iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore")
OPERATING = (REPOSITORY / "docs" / "operating.md").read_text()
Findings = dict[str, tuple[bool, str]]
"""Of each thing that is named whether it is there, and the way out where it is not."""


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("node", sysctls=FORWARDING) as host:
        yield host


def preflight(host: Host, *options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return host.run(sys.executable, "-m", "node_helper.cli", "preflight", *options, check=False, env=env)


def findings(text: str) -> Findings:
    found: Findings = {}
    what = ""
    for line in text.splitlines():
        if line.startswith(("ok    ", "LACK  ", "NOTE  ")):
            what = line[6:]
            found[what] = (not line.startswith("LACK"), "")
        else:
            found[what] = (found[what][0], line.strip())
    return found


def program(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which the program `name` is this script."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_node_that_has_everything_is_told_so(host: Host) -> None:
    done = preflight(host)
    assert done.returncode == 0, done.stdout + done.stderr
    found = findings(done.stdout)
    lacking = [what for what, (good, _) in found.items() if not good]
    assert len(lacking) == len(lacking_modes())
    for mode in MODES:
        (what,) = [what for what in found if what.startswith(f"mode {mode}: ")]
        assert found[what][0] == (mode not in lacking_modes())
        assert found[what][0] or found[what][1].startswith("modprobe ")


def test_trying_leaves_nothing_behind(host: Host) -> None:
    commands = ("ls /run/netns", "ip link", "ip nexthop", "iptables-save", "ip6tables-save", "nft list ruleset")
    before = [host.run("sh", "-c", command, check=False).stdout for command in commands]
    preflight(host)
    assert [host.run("sh", "-c", command, check=False).stdout for command in commands] == before
    assert not [name for name in os.listdir("/run/netns") if name.startswith("svctun-try")]


@pytest.mark.parametrize("asked", [(GRE,), (VXLAN_GPE, MPLS)])
def test_only_the_modes_that_are_asked_for_are_tried(host: Host, asked: tuple[str, ...]) -> None:
    found = findings(preflight(host, *(f"--mode={mode}" for mode in asked)).stdout)
    assert [what.split(":")[0] for what in found if what.startswith("mode ")] == [f"mode {mode}" for mode in asked]


@pytest.mark.parametrize(("version", "key", "status"), [(4, "net.ipv4.ip_forward", 1), (6, None, 0)])
def test_a_node_that_does_not_forward_is_told_how(host: Host, version: int, key: str | None, status: int) -> None:
    """Without IPv4 there are no tunnels; without IPv6 there are no IPv6 VIPs, and everything else works."""
    key = key or "net.ipv6.conf.all.forwarding"
    host.set_sysctls({key: 0})
    done = preflight(host, "--mode", VXLAN_GPE)
    good, mend = findings(done.stdout)[f"IPv{version} forwarding ({key})"]
    assert not good and f"sysctl -w {key}=1" in mend
    assert done.returncode == status


@pytest.mark.parametrize("missing", PROGRAMS)
def test_a_program_that_is_missing_is_named(host: Host, tmp_path: Path, missing: str) -> None:
    for name in {*PROGRAMS, "nsenter"} - {missing}:
        (tmp_path / name).symlink_to(shutil.which(name) or f"no {name}")
    done = preflight(host, "--mode", VXLAN_GPE, env={"PATH": str(tmp_path)})
    found = findings(done.stdout)
    assert done.returncode == 1 and done.stderr == ""
    assert found[f"the program {missing}"] == (False, f"install the package that has {missing}")
    assert all(found[f"the program {name}"][0] for name in PROGRAMS if name != missing)


def test_what_the_kernel_refuses_is_told_in_its_words_and_the_rest_is_tried(host: Host, tmp_path: Path) -> None:
    refusal = "Couldn't load target `HMARK':No such file or directory"
    env = program(tmp_path, "iptables-restore", f'echo "{refusal.replace("`", chr(92) + "`")}" >&2; exit 2')
    done = preflight(host, "--mode", VXLAN_GPE, env=env)
    assert done.returncode == 1
    ((router, (good, mend)),) = [f for f in findings(done.stdout).items() if "HMARK target" in f[0]]
    assert not good and refusal in router and mend == "modprobe xt_HMARK xt_socket"
    assert findings(done.stdout)["the pods' nf_tables rules"] == (True, "")


def test_a_refused_mode_costs_no_more_than_the_mode(host: Host, tmp_path: Path) -> None:
    """Its device's type is taken away by a scratch namespace in which the device is there already."""
    real = shutil.which("ip")
    env = program(
        tmp_path,
        "ip",
        f'{real} "$@" && [ "$2" != add ] || {real} -n "$3" link add svctun-gpe type veth peer name other',
    )
    done = preflight(host, "--mode", VXLAN_GPE, env=env)
    ((what, (good, mend)),) = [f for f in findings(done.stdout).items() if f[0].startswith("mode ")]
    assert not good and "EEXIST" in what and mend.startswith("modprobe vxlan")
    assert done.returncode == 0


def test_the_output_that_the_documentation_shows_is_what_is_printed(host: Host) -> None:
    """The same things in the same order; and where a mode is lacking, here or there, with the same way out."""
    section = OPERATING.partition("### preflight")[2]
    shown = findings(section.partition("```\n$ service-tunnel-helper preflight\n")[2].partition("```")[0])
    printed = findings(preflight(host).stdout)
    assert [without_words(what) for what in shown] == [without_words(what) for what in printed]
    assert [what for what, (good, _) in shown.items() if not good], "it shows what a lack looks like"
    for (good, mend), (here, mend_here) in zip(shown.values(), printed.values(), strict=True):
        assert good or mend
        assert good or here or mend == mend_here


ROUTE_TO_DROP = """
add table inet mine
add chain inet mine forwarded { type filter hook forward priority 10; policy drop; }
add chain inet mine seen { type filter hook forward priority 20; policy accept; }
add rule inet mine seen counter
add table ip other
add chain ip other last { type filter hook forward priority 30; policy accept; }
add rule ip other last ct state established accept
add rule ip other last counter reject
"""


def test_the_surroundings_are_looked_at_and_no_reason_to_fail(host: Host) -> None:
    """Firewalls that drop, a strict uplink and a small way to pods, on a node that forwards all the same."""
    host.run("sh", "-ec", "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up")
    host.run("sh", "-ec", "ip addr add 10.1.1.2/24 dev up0; ip route add default via 10.1.1.1")
    host.run("sh", "-ec", "ip link add cali1 mtu 1400 type veth peer name lxc1; ip link set cali1 up")
    host.set_sysctls({"net.ipv4.conf.up0.rp_filter": 1})
    host.run("nft", "-f", "-", input=ROUTE_TO_DROP)
    host.run("iptables", "-P", "FORWARD", "DROP")
    done = preflight(host, "--json", "--mode", VXLAN_GPE)
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0 and json.loads(done.stdout)["ok"]
    assert [found[name]["state"] for name in ("mtu", "firewalls", "reverse-path", "pod-network")] == ["note"] * 4
    assert [line.split()[2:5] for line in found["firewalls"]["mend"]] == [
        ["inet", "mine", "forwarded"],
        ["ip", "other", "last"],
    ]
    assert "the 1400 of cali1, and up0 takes in 1500" in " ".join(found["mtu"]["mend"])
    assert "net.ipv4.conf.up0.rp_filter=2" in found["reverse-path"]["mend"][0]
    assert {line.split()[0] for line in found["pod-network"]["mend"]} == {"Cilium", "Calico"}


def without_words(what: str) -> str:
    """Without the words of the kernel, which begin with the name of an error."""
    return re.sub(r" \(E[A-Z]+ [^()]*\)$", "", what)
