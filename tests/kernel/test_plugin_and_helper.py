"""ADD and a real helper at once: Services that are annotated in between, helpers that start, hang or die meanwhile."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cni_plugin import attachment
from tests.kernel.test_plugin_many import calls_for
from tests.testbed.cluster import NodeSpec
from tests.testbed.cni import PluginFailed, Pod, plugin_binary
from tests.testbed.scene import VIPS, Scene

NODE = "worker1"
SERVED: dict[str, str | None] = {"cmd.nu/tunnel": ",".join(VIPS.values())}
NOT_SERVED: dict[str, str | None] = {"cmd.nu/tunnel": None}


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    options = {"whenHelperIsAway": "retry-if-tunnelled", "helperWait": 30.0}
    with Scene([NodeSpec(NODE)], options=["--resync", "3600"], plugin=options) as scene:
        scene.apply_service(vips="")
        scene.settle()
        yield scene


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """Without pods, with a helper that runs, with a Service that is not annotated."""
    yield shared
    for pod in list(shared.cluster.pods):
        shared.remove_pod(pod)
    if shared.helpers[NODE].process.poll() is not None:
        shared.start_helpers([NODE])
    shared.manifests.annotate("web", NOT_SERVED)
    shared.settle()


def adding(scene: Scene, name: str, scheduled: Callable[[Pod], None] = lambda _: None) -> Pod:
    """ADD of a pod behind the Service, which the cluster knows before; what it says of it does not change after."""

    def known(pod: Pod) -> None:
        scene.manifests.apply_pod(pod)
        scheduled(pod)

    return scene.cluster.add_pod(NODE, name, {"app": "web"}, scheduled=known)


def record(scene: Scene, name: str) -> attachment.Attachment | None:
    found, troubles = attachment.read_all(str(scene.cluster.nodes[NODE].host.path("/run/service-tunnel")))
    assert not troubles
    return next((one for one in found if one.name == name), None)


def annotated(scene: Scene, annotations: dict[str, str | None]) -> None:
    """The Service is annotated, and the helper has acted upon it."""
    scene.manifests.annotate("web", annotations)
    wanted = any(annotations.values())
    helper = scene.helpers[NODE]
    scene.wait(lambda: bool(helper.status()["services"]) == wanted, "the helper knows of the annotation")


def has_vips(pod: Pod) -> set[str]:
    shown = pod.place.run("ip", "-o", "addr", "show", "dev", "lo").stdout
    return {vip for vip in VIPS.values() if f" {vip}/" in shown}


# ---- a Service is annotated while ADD is at work ------------------------------------------------------------------

POINTS = {
    "its record is written": ("rename", 1),
    "it has connected": ("connect", 1),
    "it has asked": ("sendto", 1),
    "it has the answer": ("recvfrom", 2),
    "it is about to be ready": ("mkdir", 2),
    "it is ready": ("rename", 2),
}
"""When ADD stops: after which system call of the plugin, for a pod whose answer is `none`."""


@contextmanager
def stopping(scene: Scene, folder: Path, point: tuple[str, int]) -> Iterator[Path]:
    """ADDs of the plugin stop after a system call until somebody says SIGCONT; yields strace's log."""
    name, number = point
    log, wrapper = folder / "strace", folder / "service-tunnel"
    inject = f"--trace={name} --inject={name}:signal=STOP:when={number}"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ "$CNI_COMMAND" = ADD ] || exec {plugin_binary()}\n'
        f"exec strace -f -qq --output={log} {inject} {plugin_binary()}\n"
    )
    wrapper.chmod(0o755)
    folders = scene.cluster.nodes[NODE].runtime.folders
    folders.insert(0, str(folder))
    try:
        yield log
    finally:
        folders.remove(str(folder))


def stopped(scene: Scene, log: Path) -> int:
    """The process that stopped."""
    scene.wait(lambda: log.exists() and "stopped by SIGSTOP" in log.read_text(), "ADD is at that point")
    match = re.search(r"^(\d+) .*stopped by SIGSTOP", log.read_text(), re.MULTILINE)
    assert match
    return int(match[1])


@pytest.mark.parametrize("point", POINTS)
def test_a_service_annotated_in_the_middle_of_an_add_is_not_missed(scene: Scene, tmp_path: Path, point: str) -> None:
    with stopping(scene, tmp_path, POINTS[point]) as log, ThreadPoolExecutor(1) as thread:
        running = thread.submit(adding, scene, "pod1")
        process = stopped(scene, log)
        annotated(scene, SERVED)
        os.kill(process, signal.SIGCONT)
        pod = running.result(60)
    scene.wait(lambda: has_vips(pod) == set(VIPS.values()), "the pod has the VIPs")
    pod.check()


def test_a_service_that_loses_its_annotation_in_the_middle_of_an_add_is_forgotten(scene: Scene, tmp_path: Path) -> None:
    annotated(scene, SERVED)
    with stopping(scene, tmp_path, POINTS["it has the answer"]) as log, ThreadPoolExecutor(1) as thread:
        running = thread.submit(adding, scene, "pod1")
        process = stopped(scene, log)
        annotated(scene, NOT_SERVED)
        os.kill(process, signal.SIGCONT)
        pod = running.result(60)
    scene.wait(lambda: not has_vips(pod), "the pod has no VIP any more")
    scene.wait(lambda: passes_check(pod), "CHECK to be content, once the record says what the pod has")


def passes_check(pod: Pod) -> bool:
    try:
        pod.check()
    except PluginFailed:
        return False
    return True


def test_a_static_pod_is_known_by_namespace_and_name(scene: Scene) -> None:
    """The kubelet makes its UID from a file, and the API server gives the mirror pod another."""

    def with_another_uid(pod: Pod) -> None:
        arguments = {**pod.attachment.arguments, "K8S_POD_UID": "5ae1a1d3ff8a6ef16ea1b9a0ae7ea2d0"}
        pod.attachment = replace(pod.attachment, arguments=arguments)

    annotated(scene, SERVED)
    pod = adding(scene, "static-worker1", with_another_uid)
    assert has_vips(pod) == set(VIPS.values())
    written = record(scene, "static-worker1")
    assert written is not None and written.uid != pod.uid
    annotated(scene, NOT_SERVED)
    scene.wait(lambda: not has_vips(pod), "the pod has no VIP any more")


# ---- the helper comes and goes ------------------------------------------------------------------------------------


@contextmanager
def waiting(scene: Scene, name: str) -> Iterator[Future[Pod]]:
    """An ADD that has written its record, and waits for a helper that does not answer."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(adding, scene, name)
        scene.wait(lambda: record(scene, name) is not None or running.done(), "ADD has begun")
        assert not running.done()
        yield running


def asked_in_vain(name: str) -> bool:
    """Whether a plugin waits for the answer to a question that it has put."""
    for pid in calls_for(f"/run/netns/{name}"):
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("7", "45"):  # poll, recvfrom
                return True
    return False


def test_a_helper_that_starts_within_helper_wait_is_used(scene: Scene) -> None:
    annotated(scene, SERVED)
    scene.helpers[NODE].stop()
    with waiting(scene, "pod1") as running:
        scene.start_helpers([NODE])
        assert has_vips(running.result(60)) == set(VIPS.values())


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_helper_that_is_restarted_in_the_middle_of_an_ask_is_asked_again(scene: Scene, end: str) -> None:
    annotated(scene, SERVED)
    helper = scene.helpers[NODE]
    helper.process.send_signal(signal.SIGSTOP)
    try:
        with waiting(scene, "pod1") as running:
            scene.wait(lambda: asked_in_vain("pod1"), "the question is put")
            if end == "stop":
                helper.process.terminate()
                helper.process.send_signal(signal.SIGCONT)
            helper.kill()
            scene.start_helpers([NODE])
            assert has_vips(running.result(60)) == set(VIPS.values())
    finally:
        if helper.process.poll() is None:
            helper.process.send_signal(signal.SIGCONT)


def test_a_helper_that_hangs_for_a_while_is_waited_for(scene: Scene) -> None:
    annotated(scene, SERVED)
    helper = scene.helpers[NODE]
    helper.process.send_signal(signal.SIGSTOP)
    try:
        with waiting(scene, "pod1") as running:
            scene.wait(lambda: asked_in_vain("pod1"), "the question is put")
            helper.process.send_signal(signal.SIGCONT)
            assert has_vips(running.result(60)) == set(VIPS.values())
    finally:
        helper.process.send_signal(signal.SIGCONT)


def test_while_the_helper_is_away_its_list_says_which_pods_have_to_wait(scene: Scene) -> None:
    """`tunnelled-namespaces`, as the helper itself wrote it."""
    annotated(scene, SERVED)
    scene.helpers[NODE].kill()
    chain = scene.cluster.chain(NODE)
    chain["plugins"][-1]["helperWait"] = 0.3
    with pytest.raises(PluginFailed, match="waits for its tunnels") as failed:
        scene.cluster.add_pod(NODE, "pod1", {"app": "web"}, chain=chain)
    assert failed.value.code == 11
    assert record(scene, "pod1") is None
    other = scene.cluster.add_pod(NODE, "pod2", {"app": "web"}, namespace="other", chain=chain)
    assert has_vips(other) == set()


def test_a_service_annotated_just_before_a_pods_add_is_served_by_it_from_the_start(scene: Scene) -> None:
    """The helper has heard of it, and may still be at work on it when it is asked."""
    for number in range(8):
        scene.manifests.annotate("web", SERVED)
        pod = adding(scene, f"early{number}")
        assert has_vips(pod) == set(VIPS.values())
        annotated(scene, NOT_SERVED)
