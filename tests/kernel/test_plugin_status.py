"""STATUS of the built plugin: says beforehand what would keep every ADD from working, whatever it is."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.kernel.plugin_calls import Pod, Reply

AS_ROOT = ("--reuid=0", "--regid=0", "--clear-groups")


def status(pod: Pod, *before: str) -> Reply:
    """STATUS, by a program that changes what the plugin may do."""
    done = subprocess.run(
        [*before, str(pod.binary)],
        input=json.dumps(pod.conf("1.1.0", prevResult=...)).encode(),
        env=pod.environ("STATUS") | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        timeout=60,
    )
    return Reply(done)


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_a_capability_that_is_missing_is_named(pod: Pod, capability: str) -> None:
    drop = f"-{capability}"
    reply = status(pod, "setpriv", *AS_ROOT, f"--bounding-set={drop}", f"--inh-caps={drop}")
    assert f"CAP_{capability.upper()}" in reply.failed(50)["msg"]
    assert '"outcome":"error"' in (pod.folder / "log").read_text()


def test_read_only_sysctls_are_told(pod: Pod) -> None:
    """As in a container that is not privileged."""
    inside = "mount --make-rprivate / && mount -o bind,ro /proc/sys /proc/sys && exec $0"
    reply = status(pod, "unshare", "--mount", "sh", "-c", inside)
    error = reply.failed(50)
    assert "/proc/sys/net/ipv4/conf/default/rp_filter" in error["msg"]
    assert "Read-only" in error["msg"]


@pytest.mark.parametrize(
    ("call", "errno", "says"),
    [
        # The last send of a STATUS is the question to nf_tables; a kernel without it answers so.
        ("sendto", "EOPNOTSUPP", "nf_tables"),
        ("socket", "EPROTONOSUPPORT", "netlink"),
        ("openat", "EMFILE", "runDir"),
    ],
)
def test_a_kernel_that_refuses_is_told(pod: Pod, call: str, errno: str, says: str) -> None:
    when = "1+"
    if call == "openat":
        when = f"{_opened_before(pod)}+"
    inject = (
        "strace",
        "-f",
        "-qq",
        "--output=/dev/null",
        f"--trace={call}",
        f"--inject={call}:error={errno}:when={when}",
    )
    assert says in status(pod, *inject).failed(50)["msg"]


def _opened_before(pod: Pod) -> int:
    """The number of the `openat` by which the plugin first looks into runDir."""
    log = pod.folder / "strace"
    status(pod, "strace", "-f", "-qq", f"--output={log}", "--trace=openat").succeeded()
    opened = log.read_text().splitlines()
    return next(number for number, line in enumerate(opened, 1) if "/attachments" in line)


def test_a_node_on_which_all_works_is_content_and_nothing_is_changed(pod: Pod) -> None:
    path = "/proc/sys/net/ipv4/conf/default/rp_filter"
    with open(path) as file:
        before = file.read()
    assert status(pod).succeeded().text == b""
    with open(path) as file:
        assert file.read() == before
    assert pod.records() == []
