"""The built plugin and a runDir that is full or read-only: real file systems, in mount namespaces of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.test_pod_netns import ETH0, picture, pod_netns
from tests.testbed.cni import plugin_binary

VIPS = ["198.51.100.7", "2001:db8::7"]
RECORD = "attachments/pods:c1:eth0"
TIGHT = [f"size={pages * 4}k,nr_inodes={inodes}" for pages in (1, 2) for inodes in (1, 2, 3, 4)]
"""One inode is the folder itself, one the folder of records, one a record, one the next record beside it."""


class Pod:
    """A pod, and what a runtime has to say of it."""

    def __init__(self, netns: str, folder: Path) -> None:
        self.netns = netns
        self.folder = folder
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        conf = {
            "cniVersion": "1.1.0",
            "name": "pods",
            "type": "service-tunnel",
            "runDir": str(self.run_dir),
            "log": {"file": str(folder / "log")},
            "tunnels": [{"vips": VIPS}],
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]},
        }
        (folder / "conf").write_text(json.dumps(conf))

    def session(self, mount: str, *steps: str) -> list[dict[str, Any]]:
        """Verbs and shell commands in a mount namespace in which runDir is a tmpfs of its own; all gone at the end.

        Returns for each verb its exit status, its answer, and the files that are in runDir then.
        """
        lines = [f"mount -t tmpfs -o {mount} none {self.run_dir}"]
        for step in steps:
            if step.isupper():
                call = f"CNI_COMMAND={step} {plugin_binary()} <{self.folder}/conf >{self.folder}/out"
                lines.append(f"{call} && echo 0 || echo $?")
                lines.append(f"echo $(cat {self.folder}/out)")
                lines.append(f"cd {self.run_dir} && echo $(find . -type f -printf '%P\\n'); cd /")
            else:
                lines.append(step)
        environ = {
            "PATH": os.environ["PATH"],
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": ETH0,
            "CNI_PATH": "/opt/cni/bin",
        }
        command = ["unshare", "--mount", "sh", "-e", "-c", "\n".join(lines)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert not done.stderr and not done.returncode, done.stderr
        told = done.stdout.splitlines()
        return [
            {"status": int(status), "answer": json.loads(answer or "null"), "files": files.split()}
            for status, answer, files in zip(told[::3], told[1::3], told[2::3], strict=True)
        ]

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    with pod_netns("1") as netns:
        yield Pod(netns, tmp_path)


def test_a_disk_with_too_little_room_for_records_fails_add_and_leaves_nothing(pod: Pod) -> None:
    before = picture(pod.netns)
    worked = []
    for mount in TIGHT:
        (added,) = pod.session(mount, "ADD")
        if added["status"]:
            assert (added["answer"]["code"], added["files"]) == (5, []), mount
            assert "No space left" in added["answer"]["msg"] and str(pod.run_dir) in added["answer"]["msg"]
            assert picture(pod.netns) == before, mount
        else:
            worked.append(mount)
            assert added["files"] == [RECORD]
            pod.session("size=1m", "ADD", "DEL")  # the file system has gone with its session, and the record with it
            assert picture(pod.netns) == before, mount
    assert worked == [TIGHT[-1]]


def test_a_disk_that_filled_up_since_add_lets_check_del_and_gc_work(pod: Pod) -> None:
    before = picture(pod.netns)
    fill = f"dd if=/dev/zero of={pod.run_dir}/full bs=4k status=none 2>/dev/null || true"
    added, _, deleted = pod.session("size=64k", "ADD", fill, "CHECK", "DEL")
    assert [added["status"], deleted["status"], deleted["files"]] == [0, 0, ["full"]]
    assert picture(pod.netns) == before


def test_status_tells_of_a_disk_on_which_no_pod_could_start(pod: Pod) -> None:
    fill = f"dd if=/dev/zero of={pod.run_dir}/full bs=4k status=none 2>/dev/null || true"
    room, full = pod.session("size=64k", "STATUS", fill, "STATUS")
    assert [room["status"], room["files"], full["status"], full["files"]] == [0, [], 1, ["full"]]
    assert full["answer"]["code"] == 50 and "No space left" in full["answer"]["msg"]
    (read_only,) = pod.session("ro", "STATUS")
    assert read_only["answer"]["code"] == 50


def test_a_second_add_on_a_full_disk_fails_and_leaves_the_pod_as_it_is(pod: Pod) -> None:
    fill = f"dd if=/dev/zero of={pod.run_dir}/full bs=4k status=none 2>/dev/null || true"
    first, second, deleted = pod.session("size=64k", "ADD", fill, "ADD", "DEL")
    assert [first["status"], second["status"], second["answer"]["code"]] == [0, 1, 5]
    assert sorted(second["files"]) == [RECORD, "full"]
    assert deleted["files"] == ["full"]


def test_a_run_dir_that_is_read_only_fails_add_and_leaves_nothing(pod: Pod) -> None:
    before = picture(pod.netns)
    (added, deleted) = pod.session("ro", "ADD", "DEL")
    assert [added["status"], added["answer"]["code"], deleted["status"]] == [1, 5, 0]
    assert "Read-only" in added["answer"]["msg"]
    assert picture(pod.netns) == before


def test_a_run_dir_that_became_read_only_lets_del_clear_the_pod_and_say_that_the_record_stays(pod: Pod) -> None:
    before = picture(pod.netns)
    _, deleted = pod.session("size=1m", "ADD", f"mount -o remount,ro {pod.run_dir}", "DEL")
    assert [deleted["status"], deleted["answer"], deleted["files"]] == [0, None, [RECORD]]
    assert picture(pod.netns) == before
    assert "the attachment record stays" in str(pod.log()[-1]["troubles"])
