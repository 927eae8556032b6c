"""Our chains in the host's iptables, of either kind: first, whole, gone without a trace, and waited for by nobody."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni_plugin.netns import entered
from node_helper.asks import answers, question
from node_helper.kernel import ipsets, xtables
from node_helper.kernel.base_chains import BaseChains
from node_helper.kernel.commands import CommandFailed
from node_helper.kernel.host import Host as HostsKernel
from node_helper.plan.cover import covers
from node_helper.plan.state import ANNOUNCED, HostFacts, HostWanted
from tests.kernel.private_netns import private_netns, run
from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY, TestbedError
from tests.testbed.scene import VIPS

BOTH = ("iptables", "ip6tables")
OURS = {("raw", "PREROUTING"): "SERVICE-TUNNEL", ("filter", "FORWARD"): "SERVICE-TUNNEL-FORWARD"}
LEGACY = "/run/legacy"
SOCKET = "/run/helper.sock"
PATH = f"{LEGACY}:/usr/sbin:/usr/bin:/sbin:/bin"


class Chains:
    """The chains of one namespace, as the helper sees to them."""

    def __init__(self, path: str, folder: Path) -> None:
        self.path = path
        self._folder = folder

    def ensure(self) -> bool:
        with entered(self.path):
            ipsets.add(frozenset())
            return xtables.ensure_host_chains(covers(frozenset(VIPS.values())), BaseChains(self._folder).before)

    def remove(self) -> None:
        with entered(self.path):
            for version in (4, 6):
                xtables.remove_host_chains(version)
            BaseChains(self._folder).remove()
            ipsets.remove()

    def rules(self) -> str:
        """All of nf_tables, counters left out."""
        return run(self.path, "nft", "--stateless", "list", "ruleset")


@pytest.fixture
def chains(tmp_path: Path) -> Iterator[Chains]:
    with private_netns() as path:
        yield Chains(path, tmp_path)


def test_chains_that_are_whole_are_left_alone(chains: Chains) -> None:
    assert chains.ensure()
    before = chains.rules()
    assert not chains.ensure()
    assert chains.rules() == before


@pytest.mark.parametrize("tool", BOTH)
@pytest.mark.parametrize("place", OURS)
def test_another_rule_in_the_place_of_one_of_ours_is_noticed(chains: Chains, tool: str, place: tuple[str, str]) -> None:
    """As many rules as before, and the seal is still there."""
    chains.ensure()
    before = chains.rules()
    run(chains.path, tool, "-t", place[0], "-R", OURS[place], "2", "-i", "other", "-j", "ACCEPT")
    assert chains.rules() != before
    assert chains.ensure()
    assert chains.rules() == before


@pytest.mark.parametrize("tool", BOTH)
@pytest.mark.parametrize("place", OURS)
def test_we_are_first_again_when_somebody_got_before_us(chains: Chains, tool: str, place: tuple[str, str]) -> None:
    chains.ensure()
    run(chains.path, tool, "-t", place[0], "-I", place[1], "-i", "other", "-j", "ACCEPT")
    assert chains.ensure()
    lines = run(chains.path, tool, "-t", place[0], "-S", place[1]).splitlines()
    assert lines[1:] == [f"-A {place[1]} -j {OURS[place]}", f"-A {place[1]} -i other -j ACCEPT"]


@pytest.mark.parametrize("tool", BOTH)
def test_what_a_whole_restore_of_another_tool_took_away_is_put_back(chains: Chains, tool: str) -> None:
    run(chains.path, f"{tool}-restore", text="*filter\n:FORWARD DROP\n-A FORWARD -i other -j ACCEPT\nCOMMIT\n")
    chains.ensure()
    before = chains.rules()
    theirs = "*raw\nCOMMIT\n*filter\n:FORWARD DROP\n-A FORWARD -i other -j ACCEPT\nCOMMIT\n"
    run(chains.path, f"{tool}-restore", text=theirs)
    assert "SERVICE-TUNNEL" not in run(chains.path, f"{tool}-save")
    assert chains.ensure()
    assert sorted(chains.rules().splitlines()) == sorted(before.splitlines())


OTHERS: dict[str, list[tuple[str, ...]]] = {
    "nothing": [],
    "a rule in raw": [("-t", "raw", "-A", "OUTPUT", "-o", "other", "-j", "ACCEPT")],
    "a rule in our place": [("-t", "raw", "-A", "PREROUTING", "-i", "other", "-j", "ACCEPT")],
    "an empty base chain": [("-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT"), ("-t", "raw", "-F", "PREROUTING")],
    "a policy": [("-t", "filter", "-P", "FORWARD", "DROP")],
}


@pytest.mark.parametrize("others", OTHERS)
def test_after_removal_all_is_byte_for_byte_as_it_was(chains: Chains, others: str) -> None:
    for tool in BOTH:
        for command in OTHERS[others]:
            run(chains.path, tool, *command)
    before = chains.rules()
    chains.ensure()
    chains.ensure()
    assert chains.rules() != before
    chains.remove()
    assert chains.rules() == before


def test_what_others_have_put_beside_ours_stays_when_ours_goes(chains: Chains) -> None:
    chains.ensure()
    for tool in BOTH:
        run(chains.path, tool, "-t", "raw", "-A", "PREROUTING", "-i", "other", "-j", "ACCEPT")
        run(chains.path, tool, "-P", "FORWARD", "DROP")
    chains.remove()
    for tool in BOTH:
        assert "-A PREROUTING -i other -j ACCEPT" in run(chains.path, f"{tool}-save", "-t", "raw")
        assert ":FORWARD DROP" in run(chains.path, f"{tool}-save", "-t", "filter")


def test_a_vip_far_from_the_others_waits_for_chains_that_heed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them others' rules would drop its packets; those that are heeded already go on meanwhile."""

    def fail(*_: object) -> bool:
        raise CommandFailed(4, "another holds the lock")

    near, far = "198.51.100.1", "203.0.113.1"
    with private_netns() as path:
        run(path, "ip", "link", "add", "svctun", "type", "veth", "peer", "name", "host0")
        run(path, "sh", "-c", "ip link set svctun up; ip link set host0 up; ip addr add 10.9.0.1/24 dev svctun")
        with entered(path):
            kernel, facts = HostsKernel(tmp_path), HostFacts(addresses=("10.9.0.1",), paths={})

            def cycle(*vips: str) -> None:
                served = dict.fromkeys(vips, (ANNOUNCED, 1400))
                wanted = HostWanted(served=served, vips=frozenset(vips), router=True)
                kernel.prepare(wanted, facts, full=False)
                assert kernel.serve(wanted, facts) == []

            try:
                cycle(near)
                with monkeypatch.context() as patched:
                    patched.setattr(xtables, "ensure_host_chains", fail)
                    cycle(near, far)
                    assert kernel.chain_trouble
                    assert _served(path) == {near}
                cycle(near, far)
                assert not kernel.chain_trouble
                assert _served(path) == {near, far}
            finally:
                kernel.close()
        saved = run(path, "iptables-save")
    assert saved.count("-s 192.0.0.0/4 -m set --match-set svctun-vips4 src") == 3


def _served(path: str) -> set[str]:
    return {line.split()[0] for line in run(path, "ip", "route", "show", "proto", str(ANNOUNCED)).splitlines()}


# --- iptables of the older kind, and its lock ------------------------------------------------------------


@pytest.fixture
def legacy_host() -> Iterator[Host]:
    """Where `iptables` is the older kind, which has a lock; /run, and the lock in it, are the host's own."""
    with Host("node1") as host:
        host.run("mkdir", LEGACY, "/run/manifests")
        for tool in BOTH:
            for suffix in ("", "-save", "-restore"):
                host.run("ln", "-s", "/usr/sbin/xtables-legacy-multi", f"{LEGACY}/{tool}{suffix}")
        host.run(
            "sh", "-ec", "ip link set lo up; ip link add up0 type dummy || ip link add up0 type veth peer name up1"
        )
        host.run("sh", "-ec", "ip link set up0 up; ip addr add 10.9.0.1/24 dev up0")
        yield host


def test_a_lock_that_another_holds_keeps_nobody_waiting(legacy_host: Host) -> None:
    host = legacy_host
    socket = host.path(SOCKET)
    holder = host.popen("flock", "--close", "/run/xtables.lock", "sleep", "300")
    try:
        helper = host.popen(
            *(sys.executable, "-m", "node_helper.cli", "run", "--manifests", "/run/manifests", "--node", "node1"),
            *("--ingress-selector", "", "--socket", SOCKET, "--run-dir", "/run/helper"),
            *("--state-dir", "/run/state"),
            env={"PYTHONPATH": str(REPOSITORY), "PATH": PATH},
        )
        _wait(lambda: "ChainsNotSet" in _reasons(socket), "the problem is told")
        began = time.monotonic()
        for _ in range(5):
            assert question(socket, "tunnels", namespace="default", name="new")["answer"] == "none"
        assert time.monotonic() - began < 5
        assert "SERVICE-TUNNEL" not in host.run("iptables-legacy-save").stdout
    finally:
        holder.terminate()
        holder.wait(10)
    _wait(lambda: "ChainsNotSet" not in _reasons(socket), "all is well")
    assert "-A PREROUTING -j SERVICE-TUNNEL" in host.run("iptables-legacy-save").stdout
    inside = host.run("ip", "netns", "exec", "service-tunnel", "iptables-legacy-save", "-t", "mangle").stdout
    assert "HMARK" in inside
    helper.terminate()
    helper.wait(20)


def _reasons(socket: Path) -> set[str]:
    if not answers(socket):
        return set()
    return {problem["reason"] for problem in question(socket, "status")["status"].get("problems", ())}


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TestbedError(what)
        time.sleep(0.05)
