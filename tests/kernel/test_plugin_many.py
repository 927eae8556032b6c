"""Two hundred attachments at once, GC among many, and records that cannot be read: the built plugin from outside."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest

from cni_plugin import attachment
from cni_plugin.attachment import Attachment
from tests.kernel.private_netns import batch, private_netns, wait_until_delivered, wait_until_up
from tests.kernel.test_pod_netns import picture, without_numbers
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import plugin_binary
from tests.testbed.manifests import BOTH_8080
from tests.testbed.scene import PATIENCE, SOCKET, Scene

PODS, AT_ONCE = 200, 16
WORKER = "worker1"
VIPS = ("198.51.100.7", "2001:db8::7")


class Node:
    """A node's folders; its pods are namespaces with one interface."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.log = folder / "log"
        self.helper: dict[str, Any] | None = None
        """Keys of the chain entry of a node that has a helper; the pods are named after their containers then."""

    def call(self, verb: str, container: str = "", netns: str = "", network: str = "pods", more: Any = ()) -> str:
        """Standard output of a call that has to succeed."""
        conf = {
            "cniVersion": "1.1.0",
            "name": network,
            "type": "service-tunnel",
            "runDir": str(self.run_dir),
            "log": {"file": str(self.log)},
            "tunnels": [{"vips": VIPS}],
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
            **dict(more),
        }
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns}
        environ |= {"CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
        if self.helper is not None:
            conf |= self.helper
            environ["CNI_ARGS"] = f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={container};K8S_POD_UID=u-{container}"
        done = subprocess.run(
            [plugin_binary()], env=environ, input=json.dumps(conf), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
        return done.stdout

    def garbage(self, *valid: str, network: str = "pods") -> None:
        listed = {"cni.dev/valid-attachments": [{"containerID": name, "ifname": "eth0"} for name in valid]}
        self.call("GC", network=network, more=listed)

    def files(self) -> list[str]:
        return sorted(str(file.relative_to(self.run_dir)) for file in self.run_dir.rglob("*") if file.is_file())

    def troubles(self) -> str:
        """What the last line of the log complains of."""
        return str(json.loads(self.log.read_text().splitlines()[-1])["troubles"])


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@contextmanager
def pod() -> Iterator[str]:
    with private_netns() as netns:
        batch(
            netns,
            "link add eth0 type veth peer name outside",
            "link set outside addrgenmode none up",
            "link set eth0 addrgenmode none up",
            "addr add 10.0.0.2/24 dev eth0",
            "addr add fd00::2/64 dev eth0 nodad",
            "route add default via 10.0.0.1",
            "route add default via fd00::1",
        )
        wait_until_up(netns, "eth0", "outside")
        wait_until_delivered(netns, "fd00::2")
        yield netns


# ---- many at once -------------------------------------------------------------------------------------------------


def users(namespaces: set[int]) -> list[str]:
    """What in this system still refers to network namespaces of these inodes: processes, descriptors, mounts."""
    named = {f"net:[{inode}]" for inode in namespaces}
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if any(n in line for n in named)]
    for process in Path("/proc").glob("[0-9]*"):
        # Processes, and what they have open, come and go.
        with suppress(OSError):
            for link in [process / "ns" / "net", *(process / "fd").iterdir()]:
                with suppress(OSError):
                    if os.readlink(link) in named:
                        found.append(str(link))
    return found


def calls_for(path: str) -> list[str]:
    """Calls of the plugin that still run for pods below this path."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"CNI_NETNS={path}".encode() in (process / "environ").read_bytes():
                found.append(process.name)
    return found


def test_two_hundred_pods_at_once_leave_nothing_when_they_are_gone(node: Node) -> None:
    own = f"/proc/{os.getpid()}/fd/"
    with ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as threads:
        namespaces = [stack.enter_context(pod()) for _ in range(PODS)]
        inodes = {os.stat(netns).st_ino for netns in namespaces}
        sample = namespaces[:: PODS // 4]
        before = [picture(netns) for netns in sample]
        names = [f"c{number}" for number in range(PODS)]

        list(threads.map(lambda container, netns: node.call("ADD", container, netns), names, namespaces))
        records, troubles = attachment.read_all(str(node.run_dir))
        assert troubles == [] and {record.container: record.netns for record in records} == dict(
            zip(names, namespaces, strict=True)
        )
        assert {(record.state, record.tunnels.tunnels[0].vips) for record in records} == {("ready", VIPS)}
        assert all(VIPS[0] in picture(netns)["ip"] for netns in sample)

        list(threads.map(lambda container, netns: node.call("DEL", container, netns), names, namespaces))
        assert [picture(netns) for netns in sample] == before
        assert node.files() == []
        assert calls_for(own) == []
    assert users(inodes) == []
    assert not any(device.startswith("svctun") for device in os.listdir("/sys/class/net"))


def known_pod(name: str, number: int) -> dict[str, Any]:
    """What the cluster says of a pod behind the Service `web`."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"u-{name}", "labels": {"app": "web"}},
        "spec": {"nodeName": WORKER, "containers": [{"name": "server", "ports": []}]},
        "status": {"phase": "Running", "podIPs": [{"ip": f"10.250.{number >> 8}.{number & 255}"}]},
    }


@pytest.mark.timeout(6 * PATIENCE)
def test_two_hundred_pods_that_come_and_go_at_once_under_a_real_helper(tmp_path: Path) -> None:
    """ADD and DEL interleaved: every pod comes, the one half goes again while the other half is still coming."""
    own = f"/proc/{os.getpid()}/fd/"
    names = [f"c{number}" for number in range(PODS)]
    options = ["--resync", "3600"]
    with ExitStack() as stack, ThreadPoolExecutor(AT_ONCE) as threads:
        scene = stack.enter_context(Scene([NodeSpec(WORKER)], options=options))
        host = scene.cluster.nodes[WORKER].host
        node = Node(tmp_path)
        node.run_dir = host.path("/run/service-tunnel")
        node.helper = {
            "helperSocket": str(host.path(SOCKET)),
            "runDir": str(node.run_dir),
            "stateDir": str(host.path("/var/lib/service-tunnel")),
            "whenHelperIsAway": "retry",
            "helperWait": 60.0,
            "tunnels": [],
        }
        scene.manifests.apply_service("web", {"cmd.nu/tunnel": ",".join(VIPS)}, {"app": "web"}, BOTH_8080)
        for number, name in enumerate(names):
            scene.manifests.apply(known_pod(name, number))
        namespaces = [stack.enter_context(pod()) for _ in range(PODS)]
        inodes = {os.stat(netns).st_ino for netns in namespaces}
        before = list(map(without_numbers, threads.map(picture, namespaces)))

        def come(number: int) -> None:
            node.call("ADD", names[number], namespaces[number])
            if number % 2:
                node.call("DEL", names[number], namespaces[number])

        list(threads.map(come, range(PODS)))
        records, troubles = attachment.read_all(str(node.run_dir))
        assert troubles == []
        assert {record.container for record in records} == set(names[::2])
        assert {(record.state, record.tunnels.tunnels[0].vips, record.standalone) for record in records} == {
            (attachment.READY, VIPS, False)
        }
        after = list(map(without_numbers, threads.map(picture, namespaces)))
        assert [names[n] for n in range(1, PODS, 2) if after[n] != before[n]] == [], "those that are gone left nothing"
        alike = {str(after[n]["nft"]) for n in range(0, PODS, 2)}
        assert len(alike) == 1, "those that are there have the same"
        assert all(all(vip in str(after[n]) for vip in VIPS) for n in range(0, PODS, 2))

        list(threads.map(lambda n: node.call("CHECK", names[n], namespaces[n]), range(0, PODS, 2)))
        list(threads.map(lambda n: node.call("DEL", names[n], namespaces[n]), range(0, PODS, 2)))
        after = list(map(without_numbers, threads.map(picture, namespaces)))
        assert [names[n] for n in range(PODS) if after[n] != before[n]] == []
        assert list((node.run_dir / "attachments").iterdir()) == []
        assert calls_for(own) == []
    assert users(inodes) == []


def test_add_del_and_gc_of_others_do_not_disturb_each_other(node: Node) -> None:
    """GC of the one network, while pods of another come and go."""
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        namespaces = [stack.enter_context(pod()) for _ in range(3)]
        before = [without_numbers(picture(netns)) for netns in namespaces]

        def come_and_go(number: int) -> None:
            for _ in range(5):
                node.call("ADD", f"c{number}", namespaces[number])
                assert f"attachments/pods:c{number}:eth0" in node.files()
                node.call("DEL", f"c{number}", namespaces[number])

        coming = [threads.submit(come_and_go, number) for number in range(3)]
        while not all(done.done() for done in coming):
            node.garbage(network="other")
        for done in coming:
            done.result()
        assert [without_numbers(picture(netns)) for netns in namespaces] == before
        assert node.files() == []


# ---- records that are not as they should be -----------------------------------------------------------------------


def changed(plain: dict[str, Any], **changes: Any) -> bytes:
    packed: bytes = msgpack.packb(plain | changes)
    return packed


BROKEN: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda plain: changed(plain)[:-7],
    "rubbish": lambda _: bytes(range(256)),
    "foreign": lambda plain: changed(plain, container="somebody"),
    "older": lambda plain: changed(plain, v=0),
    "huge": lambda _: b"\xc4" * (2 << 20),
}


def record_of(node: Node, container: str, network: str = "pods") -> Path:
    return node.run_dir / "attachments" / f"{network}:{container}:eth0"


@pytest.mark.parametrize("kind", [*BROKEN, "folder"])
def test_del_with_a_broken_record_clears_the_pod_and_removes_it(node: Node, kind: str) -> None:
    with pod() as netns:
        before = picture(netns)
        node.call("ADD", "c1", netns)
        file = record_of(node, "c1")
        plain = msgpack.unpackb(file.read_bytes())
        if kind == "folder":
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(BROKEN[kind](plain))
        for _ in range(2):
            assert node.call("DEL", "c1", netns) == ""
            assert picture(netns) == before
        assert node.files() == []


def test_a_newer_versions_record_outlives_del_and_gc(node: Node) -> None:
    with pod() as netns:
        before = picture(netns)
        node.call("ADD", "c1", netns)
        file = record_of(node, "c1")
        newer = changed(msgpack.unpackb(file.read_bytes()), v=attachment.FORMAT + 1, tunnels="of another form")
        file.write_bytes(newer)
        node.garbage()
        assert "newer version" in node.troubles() and VIPS[0] in picture(netns)["ip"]
        node.call("DEL", "c1", netns)
        assert "newer version" in node.troubles() and picture(netns) == before
        assert file.read_bytes() == newer


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_a_pod_is_cleared_although_its_interface_has_gone_before(node: Node, verb: str) -> None:
    """As when the plugin before us in the chain has had its DEL already."""
    with pod() as netns, pod() as untouched:
        node.call("ADD", "c1", netns)
        for path in (netns, untouched):
            batch(path, "link del eth0")
        if verb == "GC":
            node.garbage()
        else:
            node.call("DEL", "c1", netns)
        assert without_numbers(picture(netns)) == without_numbers(picture(untouched))
        assert node.files() == []


def test_gc_clears_what_is_not_listed_and_touches_nothing_else(node: Node) -> None:
    with ExitStack() as stack:
        kept, stale, gone, other = (stack.enter_context(pod()) for _ in range(4))
        before = picture(stale)
        for container, netns in (("kept", kept), ("stale", stale), ("gone", gone)):
            node.call("ADD", container, netns)
        node.call("ADD", "stale", other, network="others")
        full = [picture(netns) for netns in (kept, other)]
        # The namespace behind this one is another pod's by now.
        record = attachment.read(str(node.run_dir), "pods", "gone", "eth0")
        assert record is not None
        attachment.write(str(node.run_dir), record.replace(netns=kept, container="gone"))
        # And these cannot be read: two of this network, one that is listed, one of another network.
        for name in ("pods:a:eth0", "pods:zz:eth0", "pods:listed:eth0", "others:x:eth0", "README"):
            (node.run_dir / "attachments" / name).write_bytes(b"rubbish")
        node.garbage("kept", "listed")
        left = ["README", "others:stale:eth0", "others:x:eth0", "pods:kept:eth0", "pods:listed:eth0"]
        assert node.files() == [f"attachments/{name}" for name in left]
        assert picture(stale) == before
        assert [picture(netns) for netns in (kept, other)] == full


def test_gc_is_not_stopped_by_a_record_of_a_namespace_that_cannot_be_entered(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    inode = (tmp_path / "file").stat().st_ino
    with pod() as netns:
        before = picture(netns)
        node.call("ADD", "c1", netns)
        template = attachment.read(str(node.run_dir), "pods", "c1", "eth0")
        assert template is not None
        for number, path in enumerate((str(tmp_path / "file"), "/proc/self/ns/net", "/nowhere", "/proc/self/ns/mnt")):
            odd: Attachment = template.replace(container=f"a{number}", netns=path, inode=inode)
            attachment.write(str(node.run_dir), odd)
        node.garbage()
        assert picture(netns) == before
        assert node.files() == []
