"""What an operator's tools get from a running helper: probes, metrics, the service manager's notices, `status`."""

from __future__ import annotations

import queue
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.host import Host
from tests.testbed.namespaces import REPOSITORY
from tests.testbed.scene import PATIENCE, VIPS, Scene

PORT = 9100
NODE = "ingress1"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: away
contexts: [{name: away, context: {cluster: away, user: nobody}}]
clusters: [{name: away, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: nobody, user: {token: none}}]
"""


class Notices:
    """Where a service manager would listen: reads all the time, as it does."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.path = str(path)
        self._heard: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while text := self._socket.recv(4096).decode():
            self._heard.put(text)

    def next(self, beginning: str) -> str:
        """The next notice that begins so."""
        while not (text := self._heard.get(timeout=PATIENCE)).startswith(beginning):
            pass
        return text

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.path)
        self._thread.join(10)
        self._socket.close()


@pytest.fixture(scope="module")
def notices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notices]:
    listening = Notices(tmp_path_factory.mktemp("systemd") / "notify")
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def scene(notices: Notices) -> Iterator[Scene]:
    with Scene(options=["--metrics", f"127.0.0.1:{PORT}"], helpers=False) as scene:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NOTIFY_SOCKET", notices.path)
            patch.setenv("WATCHDOG_USEC", "400000")
            scene.start_helpers([NODE])
        scene.apply_service()
        scene.add_pods((("worker1", "pod1"), ("worker2", "pod2")), {"app": "web"})
        scene.sync()
        scene.settle()
        yield scene


def fetched(path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except urllib.error.URLError:
        return 0, ""


def metrics(scene: Scene) -> dict[str, float]:
    _, text = scene.cluster.nodes[NODE].host.call(fetched, "/metrics")
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("service_tunnel_")]
    return {name.removeprefix("service_tunnel_"): float(value) for name, _, value in lines}


def test_the_service_manager_hears_that_it_is_ready_and_alive_and_how_it_is(scene: Scene, notices: Notices) -> None:
    assert notices.next("READY=1") == "READY=1"
    for _ in range(3):
        notices.next("WATCHDOG=1")
    scene.manifests.annotate("web", {"cmd.nu/tunnel-mode": "teleport"})
    assert notices.next("STATUS=0 Services") == "STATUS=0 Services, 0 VIPs, 1 problems"
    scene.manifests.annotate("web", {"cmd.nu/tunnel-mode": None})
    assert notices.next("STATUS=1 Services") == "STATUS=1 Services, 2 VIPs, 0 problems"


def test_probes_say_that_it_is_healthy_and_ready(scene: Scene) -> None:
    for path in ("/healthz", "/readyz"):
        assert scene.cluster.nodes[NODE].host.call(fetched, path) == (200, "ok\n")


def test_metrics_say_what_there_is_and_what_moved(scene: Scene) -> None:
    scene.settle()
    before = metrics(scene)
    assert before['objects{kind="Service"}'] == before["services"] == 1
    assert before['endpoints{state="usable"}'] == 2
    assert before['vips{state="announced"}'] == 2 and before['vips{state="forwarded"}'] == 0
    assert before["routes"] == 2 * scene.buckets
    pod = scene.cluster.pods[0]
    pod.ready = False
    scene.sync()
    moved = 2 * scene.buckets / 2
    scene.wait(lambda: metrics(scene)["bucket_moves_total"] == before["bucket_moves_total"] + moved, "the moves")
    scene.cluster.pods[1].ready = False
    scene.sync()
    none = 'errors_total{reason="NoEndpoints"}'
    scene.wait(lambda: metrics(scene).get(none, 0) == before.get(none, 0) + 1, "the error")
    for one in scene.cluster.pods:
        one.ready = True
    scene.sync()
    scene.settle()
    after = metrics(scene)
    assert after["convergence_seconds_count"] >= before["convergence_seconds_count"] + 3
    assert after["last_success_timestamp_seconds"] > before["last_success_timestamp_seconds"]


def test_metrics_say_how_the_plugin_was_answered_and_how_soon(scene: Scene) -> None:
    before = metrics(scene)
    helper = scene.helpers[NODE]
    scene.add_pods(((NODE, "pod3"),), {"app": "web"})  # by the plugin itself
    asked = {"none": 3, "unknown": 2}
    for _ in range(asked["none"]):
        assert helper.ask("tunnels", namespace="elsewhere", name="other")["answer"] == "none"
    for _ in range(asked["unknown"]):
        assert helper.ask("tunnels", namespace="default", name="nobody-knows-it")["answer"] == "unknown"
    after = metrics(scene)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    for answer, count in {"tunnels": 1, **asked}.items():
        assert more(f'asks_total{{answer="{answer}"}}') == count
        assert more(f'ask_seconds_count{{answer="{answer}"}}') == count
        assert more(f'ask_seconds_sum{{answer="{answer}"}}') > 0
    scene.remove_pod(scene.cluster.nodes[NODE].pods["pod3"])
    scene.settle()


def test_status_shows_what_has_passed(scene: Scene) -> None:
    scene.manifests.annotate("web", {"cmd.nu/tunnel": f"{VIPS[4]},{VIPS[6]},198.51.100.300"})
    shown = scene.helpers[NODE].status
    scene.wait(lambda: [p["reason"] for p in shown()["problems"]] == ["InvalidVIP"], "the problem")
    assert "InvalidVIP (Service default/web, for " in scene.helper_command(NODE, "status")
    scene.manifests.annotate("web", {"cmd.nu/tunnel": f"{VIPS[4]},{VIPS[6]}"})
    scene.wait(lambda: not shown()["problems"], "its end")
    text = scene.helper_command(NODE, "status", VIPS[4])
    assert "problems that have passed:\n  " in text and "InvalidVIP (Service default/web, until " in text
    assert f"Service default/web  VIP {VIPS[4]}, {VIPS[6]}" in text
    assert "no Service of that kind" in scene.helper_command(NODE, "status", "other/*")


def test_a_service_that_flaps_leaves_a_few_lines_in_the_log(scene: Scene) -> None:
    helper = scene.helpers[NODE]

    def flap(mode: str | None, problems: int) -> None:
        scene.manifests.annotate("web", {"cmd.nu/tunnel-mode": mode})
        scene.wait(lambda: len(helper.status()["problems"]) == problems, "the change")

    before = helper.log.read_text().splitlines()
    for _ in range(10):
        flap("teleport", 1)
        flap(None, 0)
    lines = helper.log.read_text().splitlines()[len(before) :]
    assert len(lines) <= 12, "\n".join(lines)
    (passed,) = [p for p in helper.status()["passed_problems"] if p["reason"] == "UnknownMode"]
    assert passed["times"] >= 10


def test_the_service_manager_hears_that_it_stops(scene: Scene, notices: Notices) -> None:
    scene.helpers[NODE].stop()
    assert notices.next("STOPPING=1") == "STOPPING=1\nSTATUS=stopping; traffic goes on"


def test_an_api_server_that_is_away_makes_it_not_ready_but_not_unhealthy(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    options = ("--kubeconfig", str(tmp_path / "kubeconfig"), "--node", NODE, "--metrics", f"127.0.0.1:{PORT}")
    with Host(NODE) as host:
        host.run("ip", "link", "set", "lo", "up")
        log = (tmp_path / "log").open("w")
        host.popen(
            *(sys.executable, "-m", "node_helper.cli", "run", *options),
            env={"PYTHONPATH": str(REPOSITORY)}, stdout=log, stderr=log,
        )  # fmt: skip
        answers = host.call(_until_it_answers)
        log.close()
    assert answers == [(200, "ok\n"), (503, "not yet synced: Services and pods are still being read\n")], (
        tmp_path / "log"
    ).read_text()


def _until_it_answers() -> list[tuple[int, str]]:
    import time

    deadline = time.monotonic() + PATIENCE / 2
    while time.monotonic() < deadline and not fetched("/healthz")[0]:
        time.sleep(0.05)
    return [fetched("/healthz"), fetched("/readyz")]
