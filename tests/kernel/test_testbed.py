"""The testbed itself: what every other kernel test stands on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.testbed.cluster import Cluster, NodeSpec
from tests.testbed.cni import PluginFailed, bridge_chain, ptp_chain
from tests.testbed.host import Host, new_prefix
from tests.testbed.namespaces import REPOSITORY, CommandFailed, TestbedError
from tests.testbed.watching import Watch

FOUR_PODS = [("ingress1", "pod1"), ("ingress2", "pod2"), ("worker1", "pod3"), ("worker2", "pod4")]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(0.01)


class Watched:
    """Network namespaces held open from `with` on: the kernel gives the inode of one that has ended to the next."""

    def __init__(self, *paths: str | Path) -> None:
        self._open = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        self.all = {os.fstat(descriptor).st_ino for descriptor in self._open}

    def inhabited(self) -> set[int]:
        """Inodes of those in which there are processes."""
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # it ended while we looked
                    found.add(os.stat(entry / "ns/net").st_ino)
        return found & self.all

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        cluster.add_pods(FOUR_PODS)
        yield cluster


@pytest.fixture
def host() -> Iterator[Host]:
    with Host("alone") as host:
        yield host


@pytest.mark.parametrize("version", [4, 6])
def test_the_client_reaches_every_pod_by_its_own_address(cluster: Cluster, version: int) -> None:
    for pod in cluster.pods:
        cluster.client.run("ping", "-c1", "-W5", pod.address(version))


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_a_pod_of_another_node(cluster: Cluster, version: int) -> None:
    first, *_, last = cluster.pods
    first.place.run("ping", "-c1", "-W5", last.address(version))


@pytest.mark.parametrize("version", [4, 6])
def test_the_client_has_many_addresses(cluster: Cluster, version: int) -> None:
    last = cluster.client_addresses(version, 5000)[-1]
    cluster.client.run("ping", "-c1", "-W5", "-I", last, cluster.pods[0].address(version))


def test_the_chain_passes_check(cluster: Cluster) -> None:
    for pod in cluster.pods:
        pod.check()


def test_a_name_in_a_node_is_not_seen_in_another(cluster: Cluster) -> None:
    first, second = cluster.nodes["ingress1"].host, cluster.nodes["ingress2"].host
    first.run("ip", "netns", "add", "service-tunnel")
    assert not second.path("/run/netns/service-tunnel").exists()
    assert not Path("/run/netns/service-tunnel").exists()
    second.run("ip", "netns", "add", "service-tunnel")
    first.run("ip", "netns", "del", "service-tunnel")
    assert second.path("/run/netns/service-tunnel").exists()
    second.run("ip", "netns", "del", "service-tunnel")


def test_a_pod_that_is_deleted_leaves_nothing_on_its_node(cluster: Cluster) -> None:
    node = cluster.nodes["worker1"]
    before = node.host.run("ip", "route").stdout
    pod = cluster.add_pod("worker1", "short")
    assert node.host.run("ip", "route").stdout != before
    cluster.delete_pod(pod)
    assert node.host.run("ip", "route").stdout == before
    assert not node.host.path("/run/netns/short").exists()
    assert not [
        entry for entry in node.host.path("/var/lib/cni/results").iterdir() if pod.attachment.container in entry.name
    ]


def test_a_chain_that_fails_leaves_nothing_on_its_node(cluster: Cluster) -> None:
    node = cluster.nodes["worker1"]
    before = node.host.run("ip", "route").stdout
    wrong = ptp_chain(node.pod_cidrs, further=[{"type": "tuning", "sysctl": {"net.ipv4.none": "1"}}])
    with pytest.raises(PluginFailed, match="tuning"):
        cluster.add_pod("worker1", "never", chain=wrong)
    assert node.host.run("ip", "route").stdout == before
    assert not node.host.path("/run/netns/never").exists()


def test_a_missing_plugin_is_named_with_the_way_to_it(cluster: Cluster) -> None:
    chain = ptp_chain(cluster.nodes["worker1"].pod_cidrs, further=[{"type": "no-such-plugin"}])
    with pytest.raises(TestbedError, match="no CNI plugin no-such-plugin"):
        cluster.add_pod("worker1", "never", chain=chain)


def test_pods_may_share_a_bridge() -> None:
    with Cluster([NodeSpec("node")], chain=bridge_chain) as cluster:
        first, second = cluster.add_pods([("node", "first"), ("node", "second")])
        first.place.run("ping", "-c1", "-W5", second.ipv4)
        cluster.client.run("ping", "-c1", "-W5", second.ipv6)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_rp_filter_is_the_same_in_hosts_pods_and_their_devices(mode: int) -> None:
    with Cluster([NodeSpec("node")], rp_filter=mode) as cluster:
        pod = cluster.add_pod("node", "pod")
        host = cluster.nodes["node"].host
        for place, device in ((host, "eth0"), (host, pod.host_device), (pod.place, "eth0"), (pod.place, "all")):
            assert place.sysctl(f"net.ipv4.conf.{device}.rp_filter") == str(mode)


def test_the_router_loses_the_next_hop_of_a_killed_node_only() -> None:
    with Cluster() as cluster:
        for vip in ("198.51.100.1", "2001:db8::1"):
            cluster.announce(vip)
        cluster.kill_node("ingress1")
        for vip in ("198.51.100.1", "2001:db8::1"):
            assert "to-ingress2" in cluster.router.run("ip", "route", "get", vip).stdout
        cluster.revive_node("ingress1")
        cluster.client.run("ping", "-c1", "-W5", cluster.nodes["ingress1"].addresses[4])
        cluster.announce("198.51.100.1")
        assert "to-ingress1" in cluster.router.run("ip", "route", "show", "198.51.100.1").stdout


def test_two_testbeds_stand_side_by_side() -> None:
    with Cluster([NodeSpec("node")]) as one, Cluster([NodeSpec("node")]) as other:
        for cluster in (one, other):
            pod = cluster.add_pod("node", "pod")
            cluster.client.run("ping", "-c1", "-W5", pod.ipv4)
        one.close()
        other.client.run("ping", "-c1", "-W5", other.pods[0].ipv6)


def test_close_ends_processes_and_namespaces() -> None:
    cluster = Cluster([NodeSpec("node")])
    pod = cluster.add_pod("node", "pod")
    places = (cluster.client, cluster.nodes["node"].host, pod.place)
    with Watched(*(place.netns() for place in places)) as watched:
        stray = pod.place.popen("sh", "-c", "trap '' TERM; sleep 600 & wait", stdout=subprocess.PIPE)
        wait_for(lambda: watched.inhabited() == watched.all, "the process in the pod")
        cluster.close()
        assert stray.poll() is not None
        wait_for(lambda: not watched.inhabited(), "the end of all processes")


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    code = """
from tests.testbed.cluster import Cluster, NodeSpec
cluster = Cluster([NodeSpec("node")], visible=True)
pod = cluster.add_pod("node", "pod")
pod.place.popen("setsid", "sleep", "600")
print(cluster.prefix, cluster.client.pid, cluster.router.pid, cluster.nodes["node"].host.pid, flush=True)
cluster.client.run("sleep", "600", timeout=600)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        prefix, *pids = owner.stdout.readline().split()
        assert Path(f"/run/netns/{prefix}node").exists()
        paths = [f"/proc/{pid}/ns/net" for pid in pids] + [f"/proc/{pids[-1]}/root/run/netns/pod"]
        with Watched(*paths) as watched:
            wait_for(lambda: watched.inhabited() == watched.all, "the process in the pod")
            owner.send_signal(signal.SIGKILL)
            wait_for(lambda: not any(Path("/proc", pid).exists() for pid in pids), "the end of the holders")
            wait_for(lambda: not watched.inhabited(), "the end of all processes")
    assert not list(Path("/run/netns").glob(f"{prefix}*"))


def test_a_kept_host_outlives_its_owner_until_it_is_told_to_end() -> None:
    code = "from tests.testbed.host import Host\nhost = Host('kept')\nhost.wait_ready()\nhost.keep()\nprint(host.pid)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    pid = int(done.stdout)
    with Watched(f"/proc/{pid}/ns/net") as watched:
        assert watched.inhabited()
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not watched.inhabited(), "the end of the kept host")


def test_a_visible_host_is_found_by_ip_netns_until_it_is_closed() -> None:
    name = f"{new_prefix()}seen"
    with Host("seen", visible_as=name):
        subprocess.run(["ip", "netns", "exec", name, "true"], check=True)
    assert not Path("/run/netns", name).exists()


def test_a_host_has_folders_of_its_own(host: Host) -> None:
    for folder in ("/run/service-tunnel", "/var/lib/cni", "/var/lib/service-tunnel", "/var/log/testbed-probe"):
        host.run("mkdir", "-p", folder)
        host.run("touch", f"{folder}/probe")
        assert not Path(folder, "probe").exists()
        assert host.path(f"{folder}/probe").exists()


def test_sysfs_shows_the_devices_of_the_host(host: Host) -> None:
    host.batch(["link add one type veth peer name other"])
    devices = {device["ifname"] for device in json.loads(host.run("ip", "-json", "link").stdout)}
    assert {"one", "other"} <= devices
    assert set(host.run("ls", "/sys/class/net").stdout.split()) == devices


def test_what_a_function_returns_or_raises_comes_back(host: Host) -> None:
    assert host.call(lambda size: b"x" * size, 300_000) == b"x" * 300_000
    with pytest.raises(KeyError, match="missing"):
        host.call(lambda: dict[str, str]()["missing"])
    with pytest.raises(TestbedError, match="cannot be handed over"):
        host.call(lambda: (item for item in "abc"))


def test_a_function_that_does_not_return_is_ended(host: Host) -> None:
    with pytest.raises(TimeoutError):
        host.call(lambda: time.sleep(600), limit=0.1)


def test_a_failed_command_tells_what_it_wrote(host: Host) -> None:
    with pytest.raises(CommandFailed, match='"none" does not exist'):
        host.run("ip", "link", "show", "dev", "none")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("ip", "route", "add", "203.0.113.0/24", "dev", "lo"), "203.0.113.0/24 dev lo"),
        (("ip", "rule", "add", "fwmark", "7", "lookup", "7"), "fwmark 0x7 lookup 7"),
        (("ip", "link", "add", "one", "type", "veth", "peer", "name", "other"), "one@other"),
        (("ip", "nexthop", "add", "id", "7", "dev", "lo"), "id 7 dev lo"),
        (("sysctl", "net.ipv4.conf.lo.rp_filter=2"), "rp_filter loose"),
        (("iptables", "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT"), "raw PREROUTING"),
        (("ip6tables-restore", "--noflush"), "OTHERS"),
        (("nft", "add", "table", "inet", "strangers"), "add table inet strangers"),
    ],
    ids=["route", "rule", "link", "nexthop", "sysctl", "iptables", "ip6tables-restore", "nft"],
)
def test_a_watch_tells_of_each_change_in_its_place_and_of_nothing_else(
    host: Host, change: tuple[str, ...], told: str
) -> None:
    with Watch([host]) as watch:
        host.run("ip", "route")
        host.run("iptables-save")
    assert watch.changes == []
    with Watch([host]) as watch:
        host.run(*change, input="*raw\n:OTHERS - [0:0]\nCOMMIT\n")
    assert any(told in line for line in watch.changes), watch.changes
