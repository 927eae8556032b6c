"""The image's programs in its own root, on a node, with the folders and exactly the rights that the manifests name."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from install import image
from install.image import archive, dependencies, packages
from tests.portability import container
from tests.testbed import traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.scene import PATIENCE, VIPS, Helper, Scene

pytestmark = pytest.mark.timeout(900)  # the image may have to be built
INGRESS_SOCKET = "/run/service-tunnel-ingress/helper.sock"
LIMIT = 120e6
"""Bytes of the compressed archive."""


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image") / "root"
    image.root(folder)
    return folder


class InContainer(Helper):
    """A helper in its container."""

    def __init__(self, scene: InImage, node: str, role: str, name: str, socket: str) -> None:
        self.node, self.host, self._socket = node, scene.cluster.nodes[node].host, socket
        self.log = scene.folder_of_logs / f"{name}.log"
        folder = scene.objects.options[1]
        with self.log.open("a") as log:
            self.process: subprocess.Popen[str] = container.start(
                self.host, scene.root, scene.pods[role], "helper", node, ["--manifests", folder], [folder],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip


class InImage(Scene):
    """A scene whose helpers run as the manifests say, each role in its container."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pods = container.pods()
        self.keepers: dict[str, subprocess.Popen[str]] = {}
        super().__init__(rp_filter=1)  # strict everywhere, so that helpers have sysctls to change

    def start_on(self, node: str, options: Sequence[str]) -> dict[str, Helper]:
        assert not options
        found: dict[str, Helper] = {}
        if node.startswith("ingress"):
            if node not in self.keepers:
                self.keepers[node] = self.keep(node)
            found[node] = InContainer(self, node, "ingress", node, INGRESS_SOCKET)
        name = f"{node} node role" if found else node
        if (running := self.helpers.get(name)) is None or running.process.poll() is not None:
            found[name] = InContainer(self, node, "node", name, "/run/service-tunnel/helper.sock")
        return found

    def keep(self, node: str) -> subprocess.Popen[str]:
        host = self.cluster.nodes[node].host
        keeper = container.start(host, self.root, self.pods["ingress"], "namespace", node)
        self.wait(lambda: router(self, node) != 0, "the router's namespace is there")
        return keeper


def router(scene: Scene, node: str) -> int:
    """The inode of the router's namespace as the node sees it; 0 where there is none."""
    shown = scene.cluster.nodes[node].host.run("stat", "-fLc", "%T", "/run/netns/service-tunnel", check=False).stdout
    if shown.strip() != "nsfs":
        return 0
    return int(scene.cluster.nodes[node].host.run("stat", "-Lc", "%i", "/run/netns/service-tunnel").stdout)


@pytest.fixture(scope="module")
def scene(root: Path) -> Iterator[InImage]:
    scene = InImage(root)
    with scene:
        scene.apply_service()
        scene.add_pods((("worker1", "pod1"), ("worker2", "pod2"), ("ingress1", "pod3")), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def test_the_image_is_small_and_has_nothing_of_others_in_it(root: Path) -> None:
    assert archive(root).stat().st_size < LIMIT
    site = next(root.glob("usr/local/lib/python3*/dist-packages"))
    assert sorted(path.name for path in (site / "install").iterdir() if path.name != "__pycache__") == [
        "__init__.py",
        "node",
    ]
    assert not [name for name in ("tests", "conformance", "pip", "pytest") if (site / name).exists()]


def test_the_containerfile_takes_the_same_lists() -> None:
    text = image.PACKAGES.with_name("Containerfile").read_text()
    assert "$(cat /packages)" in text and "install.image programs" in text
    assert packages() and dependencies() and not re.search(r"^ENTRYPOINT|^VOLUME|^USER", text, re.MULTILINE)


@pytest.mark.parametrize("command", ["service-tunnel-helper", "service-tunnel-install"])
def test_each_command_starts_as_nobody_and_says_its_version(root: Path, command: str) -> None:
    done = subprocess.run(
        ["chroot", "--userspec=65534:65534", root, "/usr/bin/env", "-i", f"/usr/local/bin/{command}", "--version"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "0.1.0" in done.stdout, done.stderr


def test_helpers_in_containers_with_named_rights_bring_a_clients_packets_into_pods(scene: InImage) -> None:
    for version, vip in VIPS.items():
        answers = {scene.cluster.client.call(traffic.ask_tcp, vip, 8080).client for _ in range(8)}
        assert answers == {CLIENT[version]}
    for node in ("ingress1", "worker1"):
        status = next(h for n, h in scene.helpers.items() if n == node).status()
        assert not status["problems"] and status["last_failure"] is None


def test_a_container_has_the_capabilities_that_the_manifest_names_and_no_others(scene: InImage) -> None:
    helper = scene.helpers["ingress1"]
    status = Path(f"/proc/{helper.process.pid}/status").read_text()
    names = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21}
    for kind in ("CapBnd", "CapPrm", "CapEff"):
        (found,) = re.findall(rf"^{kind}:\t(\w+)$", status, re.MULTILINE)
        assert int(found, 16) == sum(1 << bit for bit in names.values())
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)


def test_the_namespace_and_running_flows_outlive_each_container_and_its_successor_takes_over(scene: InImage) -> None:
    before = router(scene, "ingress1")
    announced = scene.cluster.nodes["ingress1"].host.run("ip", "route", "show", "proto", "116").stdout
    assert before and VIPS[4] in announced
    scene.keepers["ingress1"].kill()
    scene.keepers["ingress1"].wait()
    scene.helpers["ingress1"].kill()
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[4], 8080).client == CLIENT[4]
    scene.keepers["ingress1"] = scene.keep("ingress1")
    scene.start_helpers(["ingress1"])
    scene.settle()
    assert router(scene, "ingress1") == before
    assert scene.cluster.nodes["ingress1"].host.run("ip", "route", "show", "proto", "116").stdout == announced


def test_a_namespace_that_was_deleted_is_made_anew_and_filled(scene: InImage) -> None:
    before = router(scene, "ingress2")
    scene.cluster.nodes["ingress2"].host.run("ip", "netns", "delete", "service-tunnel")
    scene.wait(lambda: router(scene, "ingress2") not in (0, before), "the keeper makes another")
    host = scene.cluster.nodes["ingress2"].host
    # VIP routes went with the link, and come last. The helper notices by itself, at --resync at the latest.
    routes = ("ip", "route", "show", "proto", "116")
    scene.wait(lambda: VIPS[4] in host.run(*routes).stdout, "ingress2 serves again", seconds=3 * PATIENCE)
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[4], 8080).client == CLIENT[4]


def test_the_installer_in_its_container_puts_plugin_and_entry_on_the_node(scene: InImage) -> None:
    host = scene.cluster.nodes["worker1"].host
    pod = json.loads(json.dumps(scene.pods["node"]))
    for volume in pod["volumes"]:  # the testbed's node has no /etc and /opt of its own
        volume["hostPath"]["path"] = (
            volume["hostPath"]["path"].replace("/opt/", "/run/opt/").replace("/etc/", "/run/etc/")
        )
    conf = host.path("/run/etc/cni/net.d/10-pods.conflist")
    conf.parent.mkdir(parents=True)
    conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp"}]}))
    os.chown(conf, 1234, 1234)
    conf.chmod(0o600)
    installer = container.start(host, scene.root, pod, "installer", "worker1", stdout=subprocess.PIPE)
    try:
        scene.wait(lambda: "service-tunnel" in conf.read_text(), "the entry is there")
        found = conf.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 1234, 0o600)
        shown = host.run("/run/opt/cni/bin/service-tunnel", env={"CNI_COMMAND": "VERSION"}).stdout
        assert "1.1.0" in json.loads(shown)["supportedVersions"]
    finally:
        installer.terminate()
        assert installer.wait(30) == 0
        assert installer.stdout
        installer.stdout.close()


def test_the_uninstall_manifest_takes_everything_of_the_helpers_off_a_node(scene: InImage) -> None:
    host = scene.cluster.nodes["ingress2"].host
    for name in [name for name in scene.helpers if name.startswith("ingress2")]:
        scene.helpers[name].stop()
    scene.keepers["ingress2"].terminate()
    assert scene.keepers["ingress2"].wait(30) == 0 and router(scene, "ingress2")
    pod = container.pods("uninstall")["uninstall"]
    for name in ("ingress", "node"):
        assert container.start(host, scene.root, pod, name, "ingress2").wait(60) == 0
    assert not router(scene, "ingress2") and not host.path("/run/netns/service-tunnel").exists()
    left = [host.run(*command).stdout for command in (("ip", "link"), ("iptables-save",), ("nft", "list", "ruleset"))]
    assert "svctun" not in "".join(left) and "SERVICE-TUNNEL" not in "".join(left)
    assert host.run("ip", "route", "show", "proto", "116").stdout == ""
