"""The built plugin where a path leads to something odd: it refuses or passes on, never waits or reaches elsewhere."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fake_helper import NONE, FakeHelper
from tests.kernel.plugin_calls import Pod, result

AT_ONCE = 5.0
"""Seconds; the plugin takes hundredths of one, a machine full of other tests some more."""
STRANGER = 4711


@contextmanager
def at_once() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < AT_ONCE


# --- CNI_NETNS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["self", "{pid}"])
@pytest.mark.parametrize("tunnels", [[], [{"vips": ["198.51.100.7"]}]], ids=["no tunnels", "tunnels"])
def test_the_hosts_own_namespace_is_nobodys_pod(pod: Pod, process: str, tunnels: list[object]) -> None:
    path = f"/proc/{process.format(pid=os.getpid())}/ns/net"
    before = subprocess.run(["ip", "-o", "addr"], capture_output=True, check=True).stdout
    error = pod.call("ADD", pod.conf(tunnels=tunnels), environ={"CNI_NETNS": path}).failed(4)
    assert "the host's own network namespace" in error["msg"]
    assert pod.records() == []
    pod.call("DEL", pod.conf(tunnels=tunnels), environ={"CNI_NETNS": path}).succeeded()
    assert subprocess.run(["ip", "-o", "addr"], capture_output=True, check=True).stdout == before


def test_a_bind_mount_of_the_hosts_own_namespace_is_recognised(pod: Pod) -> None:
    """As `ip netns attach NAME 1` makes it; in a mount namespace of the test's own."""
    inside = (
        "mount --make-rprivate / && touch $0/bound && mount --bind /proc/self/ns/net $0/bound && "
        "exec env CNI_NETNS=$0/bound $1"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, pod.folder, pod.binary],
        env=pod.environ("ADD") | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        input=json.dumps(pod.conf()).encode(), capture_output=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the host's own network namespace" in json.loads(done.stdout)["msg"]


@pytest.mark.parametrize("odd", ["mount namespace", "user namespace", "file", "folder", "fifo", "device"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_what_is_no_network_namespace_is_refused_by_add_and_passed_over_by_del(pod: Pod, odd: str, verb: str) -> None:
    path = pod.folder / "odd"
    if odd == "fifo":
        os.mkfifo(path)
    elif odd == "folder":
        path.mkdir()
    elif odd == "file":
        path.touch()
    found = {"mount namespace": "/proc/self/ns/mnt", "user namespace": "/proc/self/ns/user", "device": "/dev/tty"}
    with at_once():
        reply = pod.call(verb, environ={"CNI_NETNS": found.get(odd, str(path))})
    if verb == "DEL":
        reply.succeeded()
    else:
        assert "CNI_NETNS" in reply.failed(4)["msg"]
        assert pod.records() == []


# --- the log --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["fifo", "fifo that is full", "folder", "full device", "symlink", "proc", "nowhere"])
def test_a_log_that_is_no_file_costs_no_pod_its_start(pod: Pod, odd: str) -> None:
    path, precious = pod.folder / "odd.log", pod.folder / "precious"
    precious.write_text("kept")
    ends = []
    if odd.startswith("fifo"):
        os.mkfifo(path)
    if odd == "fifo that is full":
        ends = [os.open(path, os.O_RDWR | os.O_NONBLOCK)]
        os.write(ends[0], bytes(1 << 16))
    elif odd == "folder":
        path.mkdir()
    elif odd == "symlink":
        path.symlink_to(precious)
    path = {"full device": Path("/dev/full"), "proc": Path("/proc/self/comm"), "nowhere": path / "x"}.get(odd, path)
    conf = pod.conf(log={"file": str(path), "level": "debug"})
    with FakeHelper(pod.socket, NONE), at_once():
        assert pod.call("ADD", conf).succeeded().json == result("1.0.0")
        pod.call("CHECK", conf).succeeded()
        pod.call("DEL", conf).succeeded()
        pod.call("ADD", pod.conf(log=conf["log"], helperWait="soon")).failed(7)
    assert precious.read_text() == "kept"
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_takes_no_log_costs_no_pod_its_start(pod: Pod, disk: str) -> None:
    (pod.folder / "disk").mkdir()
    fill = {"full": "head -c 100000 /dev/zero >$0/disk/fill || :", "read-only": "mount -o remount,ro $0/disk"}[disk]
    inside = f"mount --make-rprivate / && mount -t tmpfs -o size=64k none $0/disk && {{ {fill}; }} && exec $1"
    with FakeHelper(pod.socket, NONE):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", inside, pod.folder, pod.binary],
            env=pod.environ("ADD") | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            input=json.dumps(pod.conf(log={"file": str(pod.folder / "disk" / "log")})).encode(),
            stdout=subprocess.PIPE, timeout=20,
        )  # fmt: skip
    assert json.loads(done.stdout) == result("1.0.0")
    assert done.returncode == 0


def test_each_verb_leaves_one_line_with_pod_container_outcome_and_duration(pod: Pod) -> None:
    conf = pod.conf("1.1.0", log={"file": str(pod.folder / "log")})  # the default level
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD", conf).succeeded()
        pod.call("CHECK", conf).succeeded()
        pod.call("ADD", conf, environ={"CNI_NETNS": "/proc/self/ns/net"}).failed(4)
        pod.call("DEL", conf).succeeded()
        pod.call("CHECK", conf).failed(102)
        pod.call("GC", conf | {"cni.dev/valid-attachments": []}).succeeded()
        pod.call("STATUS", conf).succeeded()
    lines = [json.loads(line) for line in (pod.folder / "log").read_text().splitlines()]
    assert [(line["command"], line["outcome"], line.get("code")) for line in lines] == [
        ("ADD", "none", None),
        ("CHECK", "ok", None),
        ("ADD", "error", 4),
        ("DEL", "ok", None),
        ("CHECK", "error", 102),
        ("GC", "ok", None),
    ]
    for line in lines:
        assert (line["pod"], line["container"], line["network"]) == ("shop/web-1", "0123456789abcdef", "pods")
        assert 0 < line["ms"] < 20_000
    assert lines[2]["msg"].startswith("CNI_NETNS")
    assert stat.S_IMODE((pod.folder / "log").stat().st_mode) & 0o137 == 0


# --- what decides ---------------------------------------------------------------------------------------


def test_records_are_for_root_alone_whatever_the_mask(pod: Pod) -> None:
    before = os.umask(0)
    try:
        with FakeHelper(pod.socket, NONE):
            pod.call("ADD", pod.conf(runDir=f"{pod.folder}/deep/run")).succeeded()
    finally:
        os.umask(before)
    folder = pod.folder / "deep" / "run" / "attachments"
    (record,) = folder.iterdir()
    assert (stat.S_IMODE(folder.stat().st_mode), stat.S_IMODE(record.stat().st_mode)) == (0o700, 0o600)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700, "nobody else can put another folder there"
    assert stat.S_IMODE(folder.parents[1].stat().st_mode) == 0o755


def test_a_record_that_another_user_planted_is_not_believed(pod: Pod) -> None:
    with FakeHelper(pod.socket, NONE):
        pod.call("ADD").succeeded()
        (record,) = (pod.folder / "run" / "attachments").iterdir()
        os.chown(record, STRANGER, STRANGER)
        assert f"owner uid {STRANGER}" in str(pod.call("CHECK").json)
        pod.call("DEL").succeeded()
    assert not record.exists()


def test_a_list_of_namespaces_that_another_user_planted_lets_no_pod_start_without_its_tunnels(pod: Pod) -> None:
    listed = pod.folder / "state" / "tunnelled-namespaces"
    listed.write_text("another\n")
    pod.call("ADD").succeeded()
    os.chown(listed, STRANGER, STRANGER)
    pod.call("ADD").failed(11)


@pytest.mark.parametrize("how", ["link to the folder", "dots", "relative"])
def test_run_dir_may_be_a_link_but_says_plainly_where_it_is(pod: Pod, how: str) -> None:
    (pod.folder / "real").mkdir()
    (pod.folder / "link").symlink_to("real")
    path = {"link to the folder": f"{pod.folder}/link", "dots": f"{pod.folder}/real/../x", "relative": "run"}[how]
    with FakeHelper(pod.socket, NONE):
        reply = pod.call("ADD", pod.conf(runDir=path))
    if how == "link to the folder":
        reply.succeeded()
        assert len(list((pod.folder / "real" / "attachments").iterdir())) == 1
    else:
        assert "runDir" in reply.failed(7)["msg"]
        assert not (pod.folder / "x").exists()


def test_a_configuration_without_end_is_refused(pod: Pod) -> None:
    with at_once():
        pod.call("ADD", stdin=b'{"name":"' + bytes([97]) * (17 << 20)).failed(6)
