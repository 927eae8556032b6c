"""One bad object never stops another: a good Service works amid everything that can be wrong."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.testbed import traffic
from tests.testbed.cluster import CLIENT
from tests.testbed.cni import RESULTS, Pod
from tests.testbed.scene import VIPS, Scene

both_versions = pytest.mark.parametrize("version", [4, 6])

BAD_SERVICES = {
    # name: (annotations, reason of the problem, what its message must name)
    "no-address": ({"cmd.nu/tunnel": "web.example"}, "InvalidVIP", "web.example"),
    "one-bad-member": ({"cmd.nu/tunnel": "198.51.100.77, 198.51.100.300"}, "InvalidVIP", "198.51.100.300"),
    "taken": ({"cmd.nu/tunnel": VIPS[4]}, "VIPTaken", "default/web"),
    "of-a-node": ({"cmd.nu/tunnel": "10.1.1.2"}, "VIPNotAllowed", "ingress1"),
    "of-a-pod": ({"cmd.nu/tunnel": "10.244.3.200"}, "VIPNotAllowed", "10.244.3.0/24"),
    "multicast": ({"cmd.nu/tunnel": "224.0.0.5"}, "VIPNotAllowed", "multicast"),
    "unknown-mode": ({"cmd.nu/tunnel": "198.51.100.78", "cmd.nu/tunnel-mode": "ipip"}, "UnknownMode", "ipip"),
    "of-a-pod-in-ipv6": ({"cmd.nu/tunnel": "fd00:10:244:3::200"}, "VIPNotAllowed", "fd00:10:244:3::/64"),
    "link-local": ({"cmd.nu/tunnel": "fe80::7"}, "VIPNotAllowed", "link-local"),
    "taken-in-ipv6": ({"cmd.nu/tunnel": f"{VIPS[6]}"}, "VIPTaken", "default/web"),
    "no-endpoints": ({"cmd.nu/tunnel": "198.51.100.79"}, "NoEndpoints", "selector"),
}
WITHOUT_PODS = ("no-endpoints",)
"""All others are before the pods of `web`: what is not refused would be served."""
ASIDE = "/run/entry-of-a-stranger"
"""Where an entry of libcni's cache is while nobody is to find it."""
ACCEPTED = {4: {VIPS[4], "198.51.100.77", "198.51.100.80"}, 6: {VIPS[6]}}
"""The good Service's, the good member of a list, and that of an endpoint that is there, if without a tunnel."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        scene.apply_service()
        # A pod without our plugin in its chain, behind a Service of its own: an endpoint without record.
        scene.apply_service("stranger", "198.51.100.80")
        for name, (annotations, _, _) in BAD_SERVICES.items():
            selector = {"app": name if name in WITHOUT_PODS else "web"}
            scene.manifests.apply_service(name, annotations, selector)
        scene.manifests.write("broken.yaml", "kind: Service\nmetadata: {name: [unclosed\n")
        scene.add_pods([("worker1", "pod1"), ("worker2", "pod2")], {"app": "web"})
        chain = dict(scene.cluster.chain("worker1"))
        chain["plugins"] = [plugin for plugin in chain["plugins"] if plugin["type"] != "service-tunnel"]
        stranger = scene.cluster.add_pod("worker1", "stranger", {"app": "stranger"}, chain=chain)
        scene.cluster.nodes["worker1"].host.run("mv", cached(stranger), ASIDE)
        scene.sync()
        scene.wait(lambda: len(problems(scene, "ingress1")) >= len(BAD_SERVICES), "problems")
        scene.wait(lambda: all(scene.announced(vip) for vip in VIPS.values()), "the good Service")
        scene.wait(lambda: all(scene.announced(vip) for vip in ACCEPTED[4]), "what is accepted beside it")
        pods = [pod for pod in scene.cluster.pods if pod.labels["app"] == "web"]
        scene.wait(lambda: all(ACCEPTED[4] - {"198.51.100.80"} <= on_lo(pod, 4) for pod in pods), "the pods' VIPs")
        yield scene


def cached(pod: Pod) -> str:
    """The entry of a pod in libcni's cache."""
    return f"{RESULTS}/testbed-{pod.attachment.container}-eth0"


def on_lo(pod: Pod, version: int) -> set[str]:
    """The addresses on a pod's `lo` but for the loopback ones."""
    shown = pod.place.run("ip", "-brief", f"-{version}", "addr", "show", "dev", "lo", "scope", "global").stdout
    return {word.partition("/")[0] for word in shown.split()[2:]}


def problems(scene: Scene, node: str) -> dict[tuple[str, str], str]:
    return {(p["reason"], p["object"]): p["message"] for p in scene.helpers[node].status()["problems"]}


@both_versions
def test_the_good_service_works(scene: Scene, version: int) -> None:
    assert scene.cluster.client.call(traffic.ask_tcp, VIPS[version], 8080).client == CLIENT[version]
    assert scene.cluster.client.call(traffic.ask_udp, VIPS[version], 8080).client == CLIENT[version]


@pytest.mark.parametrize("name", BAD_SERVICES)
def test_a_bad_service_is_told_by_name_with_its_fault(scene: Scene, name: str) -> None:
    _, reason, words = BAD_SERVICES[name]
    found = problems(scene, "ingress1")
    assert (reason, f"default/{name}") in found
    assert words in found[reason, f"default/{name}"]
    assert f"default/{name}" in found[reason, f"default/{name}"]


def test_the_good_member_of_a_list_with_a_bad_one_is_served(scene: Scene) -> None:
    services = {service["name"]: service for service in scene.helpers["ingress1"].status()["services"]}
    assert services["default/one-bad-member"]["vips"] == ["198.51.100.77"]


@both_versions
def test_no_refused_address_reaches_the_kernel(scene: Scene, version: int) -> None:
    for node in scene.cluster.nodes.values():
        shown = node.host.run("ip", f"-{version}", "route", "show", "proto", "116").stdout
        routed = {line.split()[0] for line in shown.splitlines()}
        assert routed == (ACCEPTED[version] if node in scene.cluster.ingress_nodes else set())
        saved = node.host.run("ipset", "save", f"svctun-vips{version}").stdout.splitlines()
        members = {line.split()[2] for line in saved if line.startswith("add ")}
        # That without endpoints leads nowhere, but is allowed.
        assert members == ACCEPTED[version] | ({"198.51.100.79"} if version == 4 else set())
    for name, node_name in (("pod1", "worker1"), ("pod2", "worker2")):
        found = on_lo(scene.cluster.nodes[node_name].pods[name], version)
        assert found == ACCEPTED[version] - {"198.51.100.80"}


def test_an_unreadable_file_is_named_and_the_others_go_on(scene: Scene) -> None:
    messages = [message for (reason, _), message in problems(scene, "ingress1").items() if reason == "UnreadableFile"]
    assert len(messages) == 1 and "broken.yaml" in messages[0]
    scene.manifests.write("broken.yaml", "")
    scene.wait(lambda: not any(r == "UnreadableFile" for r, _ in problems(scene, "ingress1")), "the mended file")


def test_an_endpoint_without_attachment_record_is_told_on_its_node(scene: Scene) -> None:
    scene.helpers["worker1"].process.send_signal(signal.SIGHUP)  # it is looked for at a full comparison

    def told() -> str:
        return problems(scene, "worker1")["NoAttachment", "default/stranger"]

    scene.wait(lambda: f"not adopted: {RESULTS} has no entry of it" in told(), "why it is not adopted")
    assert "restarted" in told()
    assert ("NoAttachment", "default/stranger") not in problems(scene, "worker2")


def test_a_machine_without_node_object_says_so_and_goes_on(scene: Scene) -> None:
    scene.manifests.remove("Node", "ingress2")
    try:
        scene.wait(lambda: ("UnknownNode", "ingress2") in problems(scene, "ingress2"), "a helper without a Node")
        status = scene.helpers["ingress2"].status()
        assert status["draining"] and "label" in status["draining_why"], "it was one, so it forwards for a while"
        assert ("UnknownNode", "ingress1") not in problems(scene, "ingress1")
    finally:
        scene.manifests.apply_node(scene.cluster.nodes["ingress2"])


def test_a_state_folder_that_cannot_be_written_is_told_and_stops_nothing(scene: Scene) -> None:
    host = scene.helpers["worker2"].host
    host.run("mount", "-t", "tmpfs", "-o", "ro", "none", "/var/lib/service-tunnel")
    try:
        scene.manifests.apply_service("another", {"cmd.nu/tunnel": "198.51.100.81"}, namespace="another")
        scene.wait(lambda: ("StateNotWritten", "worker2") in problems(scene, "worker2"), "a full disk")
        helper = scene.helpers["worker2"]
        scene.wait(lambda: "another/another" in {s["name"] for s in helper.status()["services"]}, "the Service")
    finally:
        host.run("umount", "/var/lib/service-tunnel")
        scene.manifests.remove("Service", "another", "another")


def test_a_pod_without_record_is_served_once_it_is_adopted(scene: Scene) -> None:
    pod = scene.cluster.nodes["worker1"].pods["stranger"]
    traffic.serve(pod)
    with scene.helpers["worker1"].halted():  # else it may be faster than the command
        scene.cluster.nodes["worker1"].host.run("mv", ASIDE, cached(pod))
        said = scene.helper_command("worker1", "adopt")
    assert "default/stranger: adopted" in said and "default/pod1: has a record already" in said
    scene.wait(lambda: ("NoAttachment", "default/stranger") not in problems(scene, "worker1"), "the adopted pod")
    scene.cluster.announce("198.51.100.80")
    assert scene.cluster.client.call(traffic.ask_tcp, "198.51.100.80", 8080).name == "stranger"


def test_a_service_that_gives_an_address_up_hands_it_to_the_one_that_waits(scene: Scene) -> None:
    scene.manifests.annotate("web", {"cmd.nu/tunnel": VIPS[6]})
    scene.wait(lambda: ("VIPTaken", "default/taken") not in problems(scene, "ingress1"), "the address changing hands")
    services = {service["name"]: service for service in scene.helpers["ingress1"].status()["services"]}
    assert services["default/taken"]["vips"] == [VIPS[4]]
    assert services["default/web"]["vips"] == [VIPS[6]]
    scene.manifests.annotate("web", {"cmd.nu/tunnel": ",".join(VIPS.values())})
