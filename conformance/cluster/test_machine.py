"""A machine by itself: what is its own, what outlives a reboot, and that nothing outlives its maker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.cluster import keeper
from conformance.cluster.machine import Machine

IN_ANOTHER_PROCESS = """
from conformance.cluster.machine import Machine
machine = Machine("made", {}, {})
machine.popen("sleep", "1000")
print(machine.pid, machine._holder.pid, flush=True)
machine.run("sleep", "1000", timeout=1000)
"""
SWEEP = "from conformance.cluster import keeper; keeper.sweep()"
WITH_V2_ALONE = 'umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    made = Machine("alone", {"net.ipv4.ip_forward": 1}, {"/etc/some/file": "text"})
    yield made
    made.close()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_it_has_a_name_processes_and_files_of_its_own(machine: Machine) -> None:
    assert machine.run("hostname").stdout == "alone\n"
    assert machine.run("cat", "/etc/some/file").stdout == "text"
    assert not Path("/etc/some/file").exists()
    assert machine.run("ls", "/opt", "/var/lib").stdout.split() == ["/opt:", "/var/lib:"]
    numbers = [int(line) for line in machine.run("ps", "-eo", "pid=").stdout.split()]
    assert min(numbers) == 1 and len(numbers) <= 3
    assert machine.sysctl("net.ipv4.ip_forward") == "1"


def test_it_sees_its_own_cgroups_only(machine: Machine) -> None:
    lines = machine.run("cat", "/proc/self/cgroup").stdout.splitlines()
    assert {line.split(":")[2] for line in lines} <= {"/", f"/{keeper.INMATES}"}
    mounted = [line.split()[1] for line in machine.run("cat", "/proc/mounts").stdout.splitlines() if " cgroup" in line]
    assert len(mounted) == len(set(mounted)) == len(keeper.hierarchies())


def test_etc_and_var_outlive_a_reboot_and_run_does_not(machine: Machine) -> None:
    boot = machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    machine.run("touch", "/var/lib/kept", "/etc/kept", "/run/gone")
    sleeping = machine.popen("sleep", "1000")
    machine.reboot()
    assert sleeping.poll() is not None
    machine.run("test", "-e", "/var/lib/kept", "-a", "-e", "/etc/kept", "-a", "!", "-e", "/run/gone")
    assert machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout != boot


@pytest.mark.parametrize("before", [(), ("unshare", "--mount", "sh", "-c", WITH_V2_ALONE, "sh")], ids=["as here", "v2"])
@pytest.mark.parametrize("killed", ["maker", "keeper"])
def test_nothing_outlives_its_maker_or_its_keeper(before: tuple[str, ...], killed: str) -> None:
    """Of the keeper, which nobody kills, cgroups stay, without processes, until the next run."""
    command = [*before, sys.executable, "-c", IN_ANOTHER_PROCESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as maker:
        assert maker.stdout is not None
        first, kept = (int(word) for word in maker.stdout.readline().split())
        cgroups = Path(f"/proc/{first}/cgroup").read_text()
        assert f"/svctun-{maker.pid}-made" in cgroups and cgroups_of(maker.pid)
        os.kill(kept if killed == "keeper" else maker.pid, signal.SIGKILL)
        assert eventually(lambda: not Path(f"/proc/{first}").exists())
        maker.kill()
    if killed == "keeper":
        subprocess.run([*before, sys.executable, "-c", SWEEP], check=True)
    assert eventually(lambda: not cgroups_of(maker.pid))


def cgroups_of(maker: int) -> list[Path]:
    """All that are visible here; where v2 stands beside v1, it is mounted in a folder like the others."""
    return [*keeper.CGROUPS.glob(f"svctun-{maker}-*"), *keeper.CGROUPS.glob(f"*/svctun-{maker}-*")]
