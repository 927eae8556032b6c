"""Telling a pod's network namespace from whatever else a path may lead to."""

from __future__ import annotations

import errno
import os
import pty
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_plugin import netns
from cni_plugin.netns import NetnsError, NetnsReplaced, NoPodNetns, entered, of_pod


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This thread counts as being in another namespace, so that its own can stand in for a pod's."""
    monkeypatch.setattr(netns, "OWN", "/proc/thread-self/ns/uts")


def test_a_network_namespace_is_known_by_device_and_inode(elsewhere: None) -> None:
    there = os.stat("/proc/self/ns/net")
    assert of_pod("/proc/self/ns/net") == (there.st_dev, there.st_ino) == netns.identity("/proc/self/ns/net")


@pytest.mark.parametrize("process", ["self", "thread-self", "{pid}"])
def test_the_hosts_own_namespace_is_no_pods(process: str) -> None:
    with pytest.raises(NoPodNetns, match="the host's own network namespace"):
        of_pod(f"/proc/{process.format(pid=os.getpid())}/ns/net")


def test_where_proc_is_missing_that_is_what_the_message_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "OWN", "/nowhere/thread-self/ns/net")
    with pytest.raises(NoPodNetns, match="/nowhere/thread-self/ns/net: No such file"):
        of_pod("/proc/self/ns/net")


def test_the_hosts_own_namespace_is_not_entered_as_another() -> None:
    with pytest.raises(NetnsError, match="own"), entered("/proc/self/ns/net"):
        pass


@pytest.mark.parametrize("kind", ["mnt", "pid", "user", "ipc", "cgroup"])
def test_a_namespace_of_another_kind_is_refused(elsewhere: None, kind: str) -> None:
    with pytest.raises(NoPodNetns, match="of another kind"):
        of_pod(f"/proc/self/ns/{kind}")


@pytest.fixture(params=["file", "folder", "fifo", "socket", "device", "terminal", "nothing", "loop", "below a file"])
def odd(request: pytest.FixtureRequest) -> Iterator[str]:
    """A path that leads to no namespace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "odd")
        if request.param == "file":
            path.touch()
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "fifo":
            os.mkfifo(path)
        elif request.param == "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        elif request.param == "device":
            path = Path("/dev/zero")
        elif request.param == "loop":
            path.symlink_to(path)
        elif request.param == "below a file":
            path.touch()
            path = path / "net"
        if request.param == "terminal":
            ours, theirs = pty.openpty()
            yield os.ttyname(theirs)
            os.close(ours)
            os.close(theirs)
        else:
            yield str(path)


@pytest.mark.timeout(10)
def test_what_is_no_namespace_is_refused_and_not_waited_for(odd: str) -> None:
    with pytest.raises(NoPodNetns, match=r"no network namespace|not there"):
        of_pod(odd)
    with pytest.raises(NetnsError), entered(odd):
        pass


def test_a_path_that_is_another_namespaces_by_now_is_not_entered() -> None:
    inode = os.stat("/proc/self/ns/net").st_ino
    with (
        pytest.raises(NetnsReplaced, match="another network namespace by now"),
        entered("/proc/self/ns/net", inode + 1),
    ):
        pass


def test_a_refused_setns_tells_the_kernels_own_reason(tmp_path: Path) -> None:
    """Python before 3.12, and so the built plugin, has none of its own; newer ones answer the same."""
    with (
        (tmp_path / "file").open("w") as file,
        pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as of_no_namespace,
    ):
        netns._setns(file.fileno())
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as of_nothing:
        netns._setns(999_999)
    assert (of_no_namespace.value.errno, of_nothing.value.errno) == (errno.EINVAL, errno.EBADF)
